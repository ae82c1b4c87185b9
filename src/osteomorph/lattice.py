"""A polyrigid transform on a grid, computed where it bends and interpolated where it does not."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool3d

from osteomorph.geometry import Grid
from osteomorph.polyrigid import Polyrigid
from osteomorph.transforms import Displacement


def lattice(transform: Polyrigid, grid: Grid, tolerance_mm: float = 0.02, coarse_mm: float = 4.0) -> Displacement:
    """T(x) - x in mm at every voxel of ``grid``, float32, to about ``tolerance_mm``; exact in the rigid regions and near them.

    From a lattice of about ``coarse_mm`` each axis is halved until the grid is reached. New nodes are interpolated by a
    cubic; those beside a bend (second difference / 8 above the tolerance) or within two coarse steps of a region's edge are
    computed instead.
    """
    strides = [2 ** int(np.clip(np.floor(np.log2(coarse_mm / h)), 0, 3)) for h in grid.spacing_mm]
    coarse = _nodes(grid, strides)
    values = _displacement(transform, coarse, torch.ones(coarse.shape, dtype=torch.bool)).unflatten(1, coarse.shape)
    while max(strides) > 1:
        finer = [max(1, s // 2) for s in strides]
        nodes = _nodes(grid, finer)
        bends = _bends(values, tolerance_mm)
        for axis, (old, new) in enumerate(zip(strides, finer, strict=True)):
            if old != new:
                values = _halved(values, axis + 1)
                bends = bends.repeat_interleave(2, axis)
        values, bends = (a[..., : nodes.shape[0], : nodes.shape[1], : nodes.shape[2]] for a in (values, bends))
        step_mm = float(max(h * s for h, s in zip(grid.spacing_mm, strides, strict=True)))
        wanted = bends | _near(transform, nodes, 1.5 * step_mm)
        values = values.contiguous()
        values[:, wanted] = _displacement(transform, nodes, wanted)
        strides = finer
    return Displacement(values, grid)


def _nodes(grid: Grid, strides: list[int]) -> Grid:
    """Voxels that many apart; one node lies beyond the grid where its last voxel falls in between."""
    shape = [-(-(n - 1) // s) + 1 for n, s in zip(grid.shape, strides, strict=True)]
    affine = grid.affine.copy()
    affine[:3, :3] = affine[:3, :3] * np.array(strides)
    return Grid((shape[0], shape[1], shape[2]), affine)


def _displacement(transform: Polyrigid, nodes: Grid, wanted: Bool[Tensor, "i j k"]) -> Float[Tensor, "3 n"]:
    points = nodes.world(wanted.nonzero().T.double())
    return (transform.moved(points) - points).float()


def _bends(values: Float[Tensor, "3 i j k"], tolerance_mm: float) -> Bool[Tensor, "i j k"]:
    out = torch.zeros(values.shape[1:])
    for axis in (1, 2, 3):
        n = values.shape[axis]
        if n > 2:
            second = values.narrow(axis, 2, n - 2) - 2 * values.narrow(axis, 1, n - 2) + values.narrow(axis, 0, n - 2)
            inner = out.narrow(axis - 1, 1, n - 2)
            inner.copy_(torch.maximum(inner, second.square().sum(0).sqrt() / 8))
    return max_pool3d((out > tolerance_mm).float()[None], 3, 1, 1)[0] > 0


def _halved(values: Float[Tensor, "3 i j k"], axis: int) -> Float[Tensor, "3 i2 j2 k2"]:
    """Nodes with the midpoints in between, by the cubic through four neighbours (at the ends extrapolated linearly)."""
    n = values.shape[axis]
    if n == 1:
        return values
    first = 2 * values.narrow(axis, 0, 1) - values.narrow(axis, 1, 1)
    last = 2 * values.narrow(axis, n - 1, 1) - values.narrow(axis, n - 2, 1)
    wide = torch.cat([first, values, last], axis)
    outer = wide.narrow(axis, 0, n - 1) + wide.narrow(axis, 3, n - 1)
    inner = values.narrow(axis, 0, n - 1) + values.narrow(axis, 1, n - 1)
    middle = (9 * inner - outer) / 16
    both = torch.stack([values.narrow(axis, 0, n - 1), middle], axis + 1).flatten(axis, axis + 1)
    return torch.cat([both, values.narrow(axis, n - 1, 1)], axis)


def _near(transform: Polyrigid, nodes: Grid, within_mm: float) -> Bool[Tensor, "i j k"]:
    """Nodes in a region or that near to one where the transform starts."""
    out = torch.zeros(nodes.shape, dtype=torch.bool)
    for region in transform.regions:
        ends = torch.stack(torch.meshgrid(*[torch.tensor([0.0, n - 1.0]).double() for n in region.grid.shape], indexing="ij"))
        corners = nodes.index(region.grid.world(ends.flatten(1)))
        low = [max(0, int(np.floor(float(v)))) for v in corners.amin(1)]
        high = [min(n, int(np.ceil(float(v))) + 1) for v, n in zip(corners.amax(1), nodes.shape, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        cut = [b - n for b, n in zip(high, nodes.shape, strict=True)]
        part = nodes.padded((-low[0], -low[1], -low[2]), (cut[0], cut[1], cut[2]))
        out[box] |= (region(part.points().flatten(1)) <= within_mm).unflatten(0, part.shape)
    return out
