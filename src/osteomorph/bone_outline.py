"""The outline of found bones on the image's own grid: the network's, and in a CT where intensity says that bone ends.

The network answers at 2 mm and draws what it has not seen a little too small. In a CT the edge of a bone lies where intensity
is about halfway between its cortex and what surrounds it, whatever the scanner's resolution.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor

from osteomorph.geometry import Grid
from osteomorph.image import Image
from osteomorph.resampling import regrid

DOUBTED, SURE = -4.0, 2.0
"""Logits between which a CT decides where bone ends: for a voxel from the first on, against one below the second."""

BRIGHT_HU, DARK_HU = 150.0, 50.0
"""Bone is at least as bright as the first; what is not as bright as the second is none."""

CORTEX, CORTEX_MM = 0.45, 2.5
"""Share of the brightest intensity around, at most so far away along each axis, from which on a voxel is bone."""


def outlined(
    logit: Image, numbers: Int[np.ndarray, "p q r"], onto: Grid, hounsfield: Float[np.ndarray, "i j k"] | None = None
) -> Int[np.ndarray, "i j k"]:
    """The number of each voxel of ``onto``: bone where the interpolated logit, and a CT, say so, of the bone whose share is
    largest.

    numbers: on the logit's grid, of directions like ``onto``'s; a bone's outline lies within two of its voxels. hounsfield: of
    a CT, on ``onto``; None for an MR.
    """
    near = _spread(numbers)
    out = np.zeros(onto.shape, np.int16)
    found = ndimage.find_objects(near)
    every = [box for box in found if box is not None]
    if not every:
        return out
    reached = tuple(slice(min(b[d].start for b in every), max(b[d].stop for b in every)) for d in range(3))
    window, part = _window(_grown(reached, logit.grid)[1], onto)
    if part is None:
        return out
    bone = _bone(regrid(logit, part).data[0], part.spacing_mm, None if hounsfield is None else hounsfield[window])
    inner = torch.zeros(part.shape, dtype=torch.int16)
    most = torch.zeros(part.shape)
    for number, box in enumerate(found, 1):
        if box is None:
            continue
        lattice_box, grid = _grown(box, logit.grid)
        here, fine = _window(grid, part)
        if fine is None:
            continue
        share = regrid(Image(torch.from_numpy((near[lattice_box] == number).astype(np.float32))[None], grid), fine).data[0]
        better = bone[here] & (share > most[here]) & (share > 0)
        inner[here][better] = number
        most[here] = torch.maximum(most[here], share)
    out[window] = inner.numpy()
    return out


def _bone(
    logit: Float[Tensor, "i j k"], spacing_mm: Float[np.ndarray, "3"], hounsfield: Float[np.ndarray, "i j k"] | None
) -> Bool[Tensor, "i j k"]:
    if hounsfield is None:
        return logit > 0
    own = torch.from_numpy(hounsfield)
    around = _brightest(own, [round(CORTEX_MM / h) for h in spacing_mm])
    bright = (own > BRIGHT_HU) & (own > CORTEX * around)
    dark = own < DARK_HU
    return ((logit > 0) & ~(dark & (logit < SURE))) | (bright & (logit > DOUBTED))


def _brightest(data: Float[Tensor, "i j k"], reach: list[int]) -> Float[Tensor, "i j k"]:
    """The largest value at most so many voxels away along each axis: of runs of twice the length at every step."""
    for axis, wide in enumerate(reach):
        ends = list(data.shape)
        ends[axis] = wide
        end = data.new_full(ends, -torch.inf)
        run, length = torch.cat([end, data, end], axis), 1
        while 2 * length <= 2 * wide + 1:
            run, length = _later(run, axis, length), 2 * length
        data = _later(run, axis, 2 * wide + 1 - length)
    return data


def _later(data: Tensor, axis: int, step: int) -> Tensor:
    """The larger one of each value and the one some steps after it."""
    n = data.shape[axis] - step
    return torch.maximum(data.narrow(axis, 0, n), data.narrow(axis, step, n))


def _spread(numbers: Int[np.ndarray, "i j k"]) -> Int[np.ndarray, "i j k"]:
    """Every voxel within two of a bone takes the number of the nearest one."""
    if not numbers.any():
        return numbers
    far, index = ndimage.distance_transform_edt(numbers == 0, return_indices=True)
    return np.where(far <= 2.0, numbers[tuple(index)], 0)


def _grown(box: tuple[slice, ...], grid: Grid) -> tuple[tuple[slice, ...], Grid]:
    wide = tuple(slice(max(0, s.start - 3), min(n, s.stop + 3)) for s, n in zip(box, grid.shape, strict=True))
    before = (-wide[0].start, -wide[1].start, -wide[2].start)
    after = tuple(s.stop - n for s, n in zip(wide, grid.shape, strict=True))
    return wide, grid.padded(before, (after[0], after[1], after[2]))


def _window(inner: Grid, onto: Grid) -> tuple[tuple[slice, ...], Grid | None]:
    """The voxels of ``onto`` that ``inner`` covers."""
    ends = torch.tensor([[0.0] * 3, [n - 1.0 for n in inner.shape]], dtype=torch.float64).T
    at = onto.index(inner.world(ends))
    low = [max(0, int(np.floor(float(v.min())))) for v in at]
    high = [min(n, int(np.ceil(float(v.max()))) + 1) for v, n in zip(at, onto.shape, strict=True)]
    if any(b <= a for a, b in zip(low, high, strict=True)):
        return (), None
    part = onto.padded((-low[0], -low[1], -low[2]), tuple(b - n for b, n in zip(high, onto.shape, strict=True)))  # type: ignore[arg-type]
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True)), part
