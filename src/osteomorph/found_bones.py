"""Bones of an image without labels, by the shipped network, on the image's own grid; and features to match two images by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor

from osteomorph.bone_contacts import parted
from osteomorph.bone_instances import InstanceSettings, instances
from osteomorph.bone_kinds import Kind, kinds_of
from osteomorph.bone_names import bone_names
from osteomorph.bone_network import FEATURE_STRIDE, SPACING_MM, BoneNetwork, is_ct, shipped_network, unit_intensities
from osteomorph.bone_outline import outlined
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.network import has_bf16
from osteomorph.resampling import regrid

TILE_VOXELS = 3_000_000
"""Of the lattice at once; a larger field of view goes through in blocks, so that memory stays below 1 GB."""

HALO = 24
"""Voxels that a block sees beyond what it answers for; a multiple of 8, so that blocks are halved where the whole is."""

LEAST_BLOCK = 16
"""Voxels along a side; a multiple of 8."""

HALF_SURE, SURENESS = 0.85, 0.02
"""Of a bone in an MR: mean probability times share of votes at which one in two overlaps a true bone with a Dice of .6 or more,
and by how much more e in e + 1 do. Chosen on 18 drawn patients (docs/training.md)."""

LOGIT = 8.0
"""Logits are cut off here before they are interpolated."""


@final
@dataclass(frozen=True, eq=False)
class FoundBones:
    """labels: on the image's grid; 1 is the most cranial bone, named as far as names can be told (`bone_names`).

    confidence: of every id, in [0, 1]: in an MR how likely it overlaps a true bone with a Dice of .6 or more; in a CT, where
        nearly all do, the mean probability of its voxels times the share of them that voted for it. kinds: of every id, what it
        most likely is and how likely that is.
    """

    labels: Labels
    confidence: Mapping[int, float] = field(default_factory=dict)
    kinds: Mapping[int, Kind] = field(default_factory=dict)

    def sure(self, least: float) -> Labels:
        """The labels whose confidence is at least that."""
        return self.labels.only([k for k, c in self.confidence.items() if c >= least])


def find_bones(image: Image, network: BoneNetwork | None = None, settings: InstanceSettings | None = None) -> FoundBones:
    """Every bone in the first channel of a CT (HU) or an MR, in any orientation and spacing.

    Bones are told apart at 2 mm; their outline is interpolated to the image's grid, where a CT tells where they end and where
    those that touch part. The same on every run.
    """
    chosen = network or shipped_network()
    lattice, prepared, ct = _prepared(image)
    strides = (1, chosen.context_stride)
    answer, context = (part[0] for part in in_blocks(lambda part: chosen.bones_in_context(part, ct), prepared, strides))
    numbers, sure = instances(torch.sigmoid(answer[0]).numpy(), answer[1:].numpy(), SPACING_MM, settings)
    numbers, confidence = _from_the_top(numbers, sure if bool(ct) else {k: _calibrated(value) for k, value in sure.items()})
    kinds = kinds_of(chosen, context, numbers)
    names = bone_names(numbers, kinds, SPACING_MM)
    logit = Image(lattice.back(answer[:1].clamp(-LOGIT, LOGIT)), lattice.own)
    hounsfield = image.data[0].float().cpu().numpy() if bool(ct) else None
    data = outlined(logit, lattice.back(torch.from_numpy(numbers)[None])[0].numpy(), image.grid, hounsfield)
    if hounsfield is not None:
        data = parted(data, hounsfield, image.grid.spacing_mm)
    stored = np.dtype(np.uint8 if len(confidence) < 256 else np.uint16)
    labels = Labels(torch.from_numpy(data)[None], image.grid, names, stored)
    there = labels.ids()
    return FoundBones(labels, {k: confidence[k] for k in there}, {k: kinds[k] for k in there})


def features_of(image: Image, network: BoneNetwork | None = None) -> Image:
    """Vectors of unit length, alike at the same place in CT and MR, every 4 mm along axes near right, anterior, superior."""
    chosen = network or shipped_network()
    lattice, prepared, _ = _prepared(image)
    (answer,) = in_blocks(lambda part: (chosen.features(part),), prepared, (FEATURE_STRIDE,))
    return Image(answer[0], lattice.canonical.strided(FEATURE_STRIDE))


# -- the lattice ----------------------------------------------------------------------------------------------------------
@final
@dataclass(frozen=True)
class _Lattice:
    """own: 2 mm along the image's axes. canonical: the same voxels with axes that run to the right, anterior and superior."""

    own: Grid
    canonical: Grid
    order: tuple[int, int, int]
    flips: tuple[int, ...]

    @classmethod
    def of(cls, grid: Grid) -> "_Lattice":
        own = grid if np.allclose(grid.spacing_mm, SPACING_MM, atol=1e-4) else grid.resampled(SPACING_MM)
        return cls(own, *own.canonical())

    def there(self, data: Tensor) -> Tensor:
        """(c, ...) from the image's axes to canonical ones."""
        return data.permute(0, *(1 + axis for axis in self.order)).flip([1 + d for d in self.flips])

    def back(self, data: Tensor) -> Tensor:
        """(c, ...) from canonical axes to the image's."""
        return data.flip([1 + d for d in self.flips]).permute(0, *(1 + self.order.index(d) for d in range(3))).contiguous()


@torch.no_grad()
def _prepared(image: Image) -> tuple[_Lattice, Float[Tensor, "1 1 i j k"], Bool[Tensor, "1"]]:
    """Intensities on the canonical lattice in [0, 1], and whether they are a CT's."""
    lattice = _Lattice.of(image.grid)
    first = Image(image.data[:1].float().cpu(), image.grid)
    low, high = first.data.aminmax()
    coarse = lattice.there(regrid(first, lattice.own).data.clamp(low, high))  # the kernel overshoots
    return lattice, unit_intensities(coarse)[None], torch.tensor([is_ct(coarse)])


@torch.no_grad()
def in_blocks(
    network: Callable[[Float[Tensor, "1 1 i j k"]], Sequence[Float[Tensor, "1 c p q r"]]],
    images: Float[Tensor, "1 1 i j k"],
    strides: Sequence[int],
) -> list[Float[Tensor, "1 c p q r"]]:
    """A network's answers, each at every so many voxels, in as few blocks as memory allows; in bfloat16 where that is quick."""
    shape, out = images.shape[2:], list[Tensor]()
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16(torch.device("cpu"))):
        for outer, inner in _blocks(shape):
            parts = network(images[_of(outer)])
            if not out:
                sizes = [[-(-n // stride) for n in shape] for stride in strides]
                out = [part.new_empty(1, part.shape[1], *size) for part, size in zip(parts, sizes, strict=True)]
            for whole, part, stride in zip(out, parts, strides, strict=True):
                few = tuple(slice(i.start // stride, -(-i.stop // stride)) for i in inner)
                taken = tuple(
                    slice(f.start - o.start // stride, f.stop - o.start // stride) for f, o in zip(few, outer, strict=True)
                )
                whole[_of(few)] = part[_of(taken)]
    return out


Slices = tuple[slice, ...]


def _of(part: Slices) -> Slices:
    """All channels of all images there."""
    return (slice(None), slice(None), *part)


def _blocks(shape: tuple[int, ...]) -> list[tuple[Slices, Slices]]:
    """What each block sees, and what it answers for; starts are multiples of 8. The longest side is cut first."""
    sizes = list(shape)

    def seen(size: int, n: int) -> int:
        return min(n, size + 2 * HALO) if size < n else n

    while np.prod([seen(s, n) for s, n in zip(sizes, shape, strict=True)]) > TILE_VOXELS and max(sizes) > LEAST_BLOCK:
        longest = max((d for d in range(3) if sizes[d] > LEAST_BLOCK), key=lambda d: seen(sizes[d], shape[d]))
        sizes[longest] = max(LEAST_BLOCK, 8 * ((sizes[longest] - 1) // 8))
    out = []
    for start in np.ndindex(*(-(-n // s) for n, s in zip(shape, sizes, strict=True))):
        inner = tuple(slice(a * s, min(a * s + s, n)) for a, s, n in zip(start, sizes, shape, strict=True))
        outer = tuple(slice(max(0, i.start - HALO), min(n, i.stop + HALO)) for i, n in zip(inner, shape, strict=True))
        out.append((outer, inner))
    return out


def _calibrated(value: float) -> float:
    return float(1 / (1 + np.exp((HALF_SURE - value) / SURENESS)))


# -- numbers ------------------------------------------------------------------------------------------
def _from_the_top(numbers: Int[np.ndarray, "i j k"], sure: Mapping[int, float]) -> tuple[np.ndarray, dict[int, float]]:
    """Renumbered from cranial to caudal, and from right to left where two are level."""
    if not sure:
        return numbers, {}
    found = sorted(sure)
    boxes = ndimage.find_objects(numbers)

    def from_top_and_right(old: int) -> tuple[int, float]:
        box = boxes[old - 1]
        middle = ndimage.center_of_mass(numbers[box] == old)
        return -round(box[2].start + middle[2]), -(box[0].start + middle[0])

    order = sorted(found, key=from_top_and_right)
    table = np.zeros(max(found) + 1, np.int32)
    for new, old in enumerate(order, 1):
        table[old] = new
    return table[numbers], {new: sure[old] for new, old in enumerate(order, 1)}
