"""The smooth gain of an MR that its coil adds, seen against the other image, which has none, and taken out."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from osteomorph.bone_network import is_ct
from osteomorph.case import Case, Side
from osteomorph.geometry import sample
from osteomorph.image import Image
from osteomorph.resampling import coarser

SPACING_MM = 4.0
"""Of the lattice that the gain is looked for on."""

DARK = 0.08
"""Intensity, of [0, 1], up to which a voxel says nothing of the gain: air, cortical bone and noise have none."""

BINS = 32
"""Ranges of the other image's intensity, of equally many voxels each."""

ROUNDS = 5

LARGEST = 0.5
"""Logarithm of how far a voxel may be from what is expected of it; one beyond shows another tissue, not the gain."""


def uneven_side(fixed: Image, moving: Image) -> Side | None:
    """Which image as given has a gain that the other does not share: an MR has, a CT has none. Of two MRs the fixed one, whose
    gain is then found relative to the other's; None for two CTs."""
    if not is_ct(fixed.data):
        return "fixed"
    return None if is_ct(moving.data) else "moving"


def even_gain(case: Case, side: Side, reach_mm: float) -> Case:
    """The case with the gain of one image taken out of it, wherever it is seen.

    What an image would be without gain is, for each intensity of the other one, the median of all voxels of that intensity:
    any mapping of one contrast to the other. What is left of the logarithm is smoothed by a Gaussian of ``reach_mm``, which
    leaves the gain, and both are found again from each other.

    case: prepared, and roughly aligned: anatomy is to match to some mm. Voxels that a mask leaves out do not count.
    """
    image, other = (case.fixed, case.moving) if side == "fixed" else (case.moving, case.fixed)
    own, others = (case.fixed_mask, case.moving_mask) if side == "fixed" else (case.moving_mask, case.fixed_mask)
    coarse = coarser(image, SPACING_MM)
    nodes = coarse.grid.points().flatten(1)
    values = coarse.data[0].flatten()
    seen = (values > DARK) & other.grid.contains(nodes)
    for mask in (own, others):
        if mask is not None:
            seen &= sample(mask.data, mask.grid, nodes, outside=0.0)[0] > 0.5
    if int(seen.sum()) < BINS:
        return case
    beside = coarser(other, SPACING_MM)
    reach = reach_mm / coarse.grid.spacing_mm
    gain = _log_gain(values.clamp(min=DARK).log(), sample(beside.data, beside.grid, nodes)[0], seen, coarse.grid.shape, reach)
    data = torch.empty_like(image.data)
    for planes, part in image.grid.slabs():
        here = sample(gain[None], coarse.grid, part.points().flatten(1)).unflatten(-1, part.shape)
        data[:, planes] = image.data[:, planes] / here.exp()
    even = image.with_data(data)
    return replace(case, fixed=even) if side == "fixed" else replace(case, moving=even)


def _log_gain(
    logs: Float[Tensor, " n"], other: Float[Tensor, " n"], seen: Tensor, shape: tuple[int, int, int], reach: np.ndarray
) -> Float[Tensor, "i j k"]:
    """Mean 0 where it is seen."""

    def smooth(values: Tensor) -> Tensor:
        return torch.as_tensor(ndimage.gaussian_filter(values.reshape(shape).numpy(), reach, mode="constant")).flatten()

    edges = torch.quantile(other[seen], torch.linspace(0, 1, BINS + 1))[1:-1].contiguous()
    bins = torch.bucketize(other.contiguous(), edges)
    members = [seen & (bins == k) for k in range(BINS)]
    gain = torch.zeros_like(logs)
    for _ in range(ROUNDS):
        even = logs - gain
        expected = torch.stack([even[inside].median() if inside.any() else even[seen].median() for inside in members])
        left = logs - expected[bins]
        weight = (seen & ((left - gain).abs() < LARGEST)).to(logs.dtype)
        gain = smooth(left * weight) / (smooth(weight) + 1e-3)
        gain -= (gain * weight).sum() / weight.sum()
    return gain.reshape(shape)
