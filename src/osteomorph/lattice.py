"""A polyrigid transform on a grid, computed where it bends and interpolated where it does not."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import max_pool3d

from osteomorph.geometry import SLAB_VOXELS, Grid, affine_ramps
from osteomorph.image import Part
from osteomorph.polyrigid import Polyrigid
from osteomorph.threads import spread
from osteomorph.transforms import Displacement, Rigid

Then = Callable[[Float64[Tensor, "3 n"]], Float64[Tensor, "3 n"]]
"""What is done to points that the transform has moved. It leaves those alone that come from a region."""


def lattice(
    transform: Polyrigid, grid: Grid, tolerance_mm: float = 0.02, coarse_mm: float = 8.0, then: Then | None = None
) -> Displacement:
    """T(x) - x in mm at every voxel of ``grid``, float32, to about ``tolerance_mm``; exact in the rigid regions and near them.

    From a lattice of about ``coarse_mm`` each axis is halved until the grid is reached. New nodes are interpolated by a
    cubic; those beside a bend (second difference / 8 above the tolerance) or within a third of a coarse step of a
    region's edge are computed instead, and those in a region take its pose.

    then: x -> then(T(x)) - x instead.
    """
    strides = [2 ** int(np.clip(np.floor(np.log2(coarse_mm / h)), 0, 3)) for h in grid.spacing_mm]
    nodes = grid.nodes(strides)
    values = torch.empty(3, *nodes.shape)
    _compute(values, torch.ones(nodes.shape, dtype=torch.bool), transform, nodes, 0.0, then)
    while max(strides) > 1:
        finer = [max(1, s // 2) for s in strides]
        nodes = grid.nodes(finer)
        bends = _bends(values, tolerance_mm)
        for axis, (old, new) in enumerate(zip(strides, finer, strict=True)):
            if old != new:
                values = _halved(values, axis + 1, nodes.shape[axis])
                bends = bends.repeat_interleave(2, axis)
        bends = bends[: nodes.shape[0], : nodes.shape[1], : nodes.shape[2]]
        step_mm = float(max(h * s for h, s in zip(grid.spacing_mm, strides, strict=True)))
        _compute(values, bends, transform, nodes, step_mm / 3, then)
        strides = finer
    return Displacement(values, grid)


def rigid_displacement(motion: Rigid, grid: Grid) -> Float[Tensor, "3 i j k"]:
    """R x + t - x at every voxel, float32."""
    return affine_ramps((motion.matrix - np.eye(4)) @ grid.affine, grid.shape)


def _compute(
    values: Float[Tensor, "3 i j k"],
    wanted: Bool[Tensor, "i j k"],
    transform: Polyrigid,
    nodes: Grid,
    near_mm: float,
    then: Then | None,
) -> None:
    """Fill in the nodes that are wanted, and those in a region or within ``near_mm`` of one where the transform starts."""
    distance, owner, boxes = _nearest_region(transform, nodes, near_mm)
    inside = distance <= 0
    flat = ((wanted | (distance <= near_mm)) & ~inside).flatten().nonzero()[:, 0]
    for part in flat.split(SLAB_VOXELS):
        points = nodes.world(_unravelled(part, nodes.shape).double())
        moved = transform.moved(points)
        values.flatten(1)[:, part] = ((moved if then is None else then(moved)) - points).float()
    for k, box in boxes.items():
        body = transform.bodies[k]
        pose = body.pose.inverse() if transform.backward else body.pose
        rigid, here = rigid_displacement(pose, nodes.cropped(box)), (slice(None), *box)
        values[here] = torch.where(inside[box] & (owner[box] == k), rigid, values[here])


def _unravelled(flat: Int[Tensor, " n"], shape: tuple[int, int, int]) -> Int[Tensor, "3 n"]:
    return torch.stack([flat // (shape[1] * shape[2]), flat // shape[2] % shape[1], flat % shape[2]])


def _bends(values: Float[Tensor, "3 i j k"], tolerance_mm: float) -> Bool[Tensor, "i j k"]:
    out = torch.zeros(values.shape[1:])
    for axis in (1, 2, 3):
        n = values.shape[axis]
        if n > 2:
            second = values.narrow(axis, 2, n - 2) - 2 * values.narrow(axis, 1, n - 2) + values.narrow(axis, 0, n - 2)
            inner = out.narrow(axis - 1, 1, n - 2)
            inner.copy_(torch.maximum(inner, second.square().sum(0).sqrt() / 8))
    return max_pool3d((out > tolerance_mm).float()[None], 3, 1, 1)[0] > 0


def _halved(values: Float[Tensor, "3 i j k"], axis: int, count: int) -> Float[Tensor, "3 i2 j2 k2"]:
    """Nodes with the midpoints in between, so many in all, by the cubic through four neighbours (at the ends extrapolated
    linearly). count: of n nodes 2 n - 1 or 2 n - 2."""
    n = values.shape[axis]
    if n == 1:
        return values
    out = torch.empty(*values.shape[:axis], count, *values.shape[axis + 1 :])
    even, odd = ((slice(None),) * (axis - 1) + (slice(start, None, 2),) for start in (0, 1))
    for old, new in zip(values, out, strict=True):  # one component's copies at a time
        first = 2 * old.narrow(axis - 1, 0, 1) - old.narrow(axis - 1, 1, 1)
        last = 2 * old.narrow(axis - 1, n - 1, 1) - old.narrow(axis - 1, n - 2, 1)
        wide = torch.cat([first, old, last], axis - 1)
        outer = wide.narrow(axis - 1, 0, count // 2) + wide.narrow(axis - 1, 3, count // 2)
        inner = old.narrow(axis - 1, 0, count // 2) + old.narrow(axis - 1, 1, count // 2)
        new[even], new[odd] = old.narrow(axis - 1, 0, count - count // 2), inner.mul_(9).sub_(outer).div_(16)
    return out


def _nearest_region(
    transform: Polyrigid, nodes: Grid, near_mm: float
) -> tuple[Float[Tensor, "i j k"], Int[Tensor, "i j k"], dict[int, Part]]:
    """Distance to the nearest region where the transform starts, and which: of nodes within ``near_mm``, else above that. And
    the box of nodes that each region reaches."""
    distance = torch.full(nodes.shape, torch.inf)
    owner = torch.zeros(nodes.shape, dtype=torch.int16)
    regions = transform.regions
    boxes = {k: box for k, region in enumerate(regions) if (box := region.box_on(nodes, near_mm)) is not None}
    found = spread(lambda item: regions[item[0]].on(nodes.cropped(item[1])), boxes.items())
    for (k, box), here in zip(boxes.items(), found, strict=True):
        owner[box] = torch.where(here < distance[box], k, owner[box])
        distance[box] = torch.minimum(distance[box], here)
    return distance, owner, boxes
