"""What the shipped network is trained to: bone, the way to the middle of each bone, and features that find their partner."""

from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss

from osteomorph.bone_network import FEATURE_STRIDE, Found
from osteomorph.bone_samples import Patches
from osteomorph.geometry import sample

OFFSET_SCALE_MM = 10.0
"""Error of an offset from which on it counts linearly."""

APART_MM = 8.0
"""Points this far from a partner are no partner of its."""

TEMPERATURE = 0.07

FEATURE_WEIGHT = 1.0


@final
class Losses(NamedTuple):
    """Parts of one step's loss; ``found`` is the share of points whose best match among all lies within `FOUND_MM`."""

    bone: Float[Tensor, ""]
    overlap: Float[Tensor, ""]
    offset: Float[Tensor, ""]
    features: Float[Tensor, ""]
    found: float

    @property
    def total(self) -> Float[Tensor, ""]:
        return self.bone + self.overlap + 0.5 * self.offset + FEATURE_WEIGHT * self.features


FOUND_MM = 4.0


def losses(found: Found, patches: Patches, balanced: bool = False) -> Losses:
    """Of the two patches of a sample at once.

    balanced: of the offsets, a bone counts as the root of its voxels rather than as its voxels.
    """
    known = patches.labels >= 0
    bone = (patches.labels > 0).float()
    logit = found.bone[:, 0]
    entropy = binary_cross_entropy_with_logits(logit[known], bone[known])
    chance, truth = torch.sigmoid(logit) * known, bone
    both, either = (chance * truth).sum((1, 2, 3)), (chance + truth).sum((1, 2, 3))
    overlap = (1 - (2 * both + 50) / (either + 50)).mean()  # so that a patch with a few voxels of bone counts little
    inside = patches.labels > 0
    wrong = (found.offset_mm - patches.offset_mm).movedim(1, -1)[inside] / OFFSET_SCALE_MM
    each = smooth_l1_loss(wrong, torch.zeros_like(wrong), reduction="none").mean(1)
    weight = _root_weights(patches.labels[patches.labels > 0]) if balanced else torch.ones_like(each)
    offset = (weight * each).sum() / weight.sum() if len(each) else wrong.sum()
    features, share = matching(found.features, patches)
    return Losses(entropy, overlap, offset, features, share)


def _root_weights(labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """One over the root of how many voxels share a voxel's label."""
    _, place, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    return counts.float().rsqrt()[place]


def matching(features: Float[Tensor, "2 f p q r"], patches: Patches) -> tuple[Float[Tensor, ""], float]:
    """InfoNCE (van den Oord et al. 2018) between points and their partners, both ways; and the share that is found."""
    if patches.points.shape[1] < 8:
        return features.sum() * 0, 0.0
    values = []
    for side, places in enumerate((patches.points, patches.partners)):
        grid = patches.grids[side].strided(FEATURE_STRIDE)
        values.append(sample(features[side], grid, places))
    near = torch.cdist(patches.partners.T, patches.partners.T) < APART_MM
    near.fill_diagonal_(False)
    alike = torch.einsum("fp,fq->pq", values[0], values[1]) / (
        values[0].norm(dim=0)[:, None] * values[1].norm(dim=0)[None] * TEMPERATURE
    ).clamp(min=1e-6)
    best = alike.detach().argmax(1)
    apart = (patches.partners[:, best] - patches.partners).norm(dim=0)
    alike = alike.masked_fill(near, float("-inf"))
    target: Int[Tensor, " p"] = torch.arange(len(alike))
    loss = (cross_entropy(alike, target) + cross_entropy(alike.T, target)) / 2
    return loss, float((apart < FOUND_MM).float().mean())
