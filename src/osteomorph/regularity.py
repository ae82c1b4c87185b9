"""How smooth, and in bone how rigid, a transform is: diffusion, bending, the rigidity penalty. Everything per mm.

Vectors are ``(*b, 3, i, j, k)``, components along the RAS world axes in mm, at the grid's voxel centres. The array axes of
a grid are orthonormal, so sums over derivatives along them are sums over derivatives along the world axes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from osteomorph.geometry import Grid
from osteomorph.objective import Alignment, Term

Offset = tuple[int, int, int]
Tap = tuple[Offset, int]

BLOCK = 1 << 15
"""Voxels worked on at a time on a CPU: they stay in its cache, and torch starts no threads for so few."""


class Difference(NamedTuple):
    """A finite difference: scale times the sum of factor * value at offset. Factors are whole, so that equal values cancel."""

    taps: tuple[Tap, ...]
    scale: float
    times: float = 1.0
    """How often its square counts."""


class Group(NamedTuple):
    """Differences taken at the same voxels, those at which all of them are inside the volume."""

    differences: list[Difference]
    weight: Tensor | None
    """Of these voxels; None for all alike."""

    @property
    def taps(self) -> list[Tap]:
        return [tap for difference in self.differences for tap in difference.taps]


def _along(axis: int, steps: int) -> Offset:
    return (steps * (axis == 0), steps * (axis == 1), steps * (axis == 2))


def _mixed(a: int, b: int, p: int, q: int) -> Offset:
    one, other = _along(a, p), _along(b, q)
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])


def _first(grid: Grid, axis: int) -> Difference:
    h = 2 * float(grid.spacing_mm[axis])
    return Difference(((_along(axis, 1), 1), (_along(axis, -1), -1)), 1 / h)


def _second(grid: Grid, axes: Sequence[int]) -> list[Difference]:
    """All second derivatives along ``axes``; the mixed ones occur twice in the Hessian."""
    h = grid.spacing_mm
    pure = [Difference(((_along(a, 1), 1), ((0, 0, 0), -2), (_along(a, -1), 1)), float(1 / h[a] ** 2)) for a in axes]
    mixed = [
        Difference(tuple((_mixed(a, b, p, q), p * q) for p in (1, -1) for q in (1, -1)), float(1 / (4 * h[a] * h[b])), 2.0)
        for a, b in combinations(axes, 2)
    ]
    return pure + mixed


# -- everywhere -------------------------------------------------------------------------------------------------------
def diffusion(
    vectors: Float[Tensor, "*b 3 i j k"], grid: Grid, weight: Float[Tensor, "i j k"] | None = None
) -> Float[Tensor, "*b"]:
    """Mean over the volume of the squared gradient, sum over a and b of (du_a / dx_b)^2; no unit (thesis 3.4.1).

    Forward differences in mm. A pair of neighbours counts by the product of their weights. A shear of 5 % has 0.0025.
    """
    groups = []
    for axis in range(3):
        h = float(grid.spacing_mm[axis])
        step = Difference(((_along(axis, 1), 1), ((0, 0, 0), -1)), 1 / h)
        if vectors.shape[axis - 3] > 1:
            ends = None if weight is None else [_shifted(weight, step.taps, offset) for offset, _ in step.taps]
            groups.append(Group([step], None if ends is None else ends[0] * ends[1]))
    return _mean_squares(vectors, groups)


def bending(
    vectors: Float[Tensor, "*b 3 i j k"], grid: Grid, weight: Float[Tensor, "i j k"] | None = None
) -> Float[Tensor, "*b"]:
    """Mean over the volume of the squared Hessian, sum over a, b, c of (d2u_a / dx_b dx_c)^2, in 1/mm^2 (thesis 3.11).

    Central differences at the voxels that have all their neighbours. Axes of fewer than three voxels are left out.
    """
    axes = [d for d in range(3) if vectors.shape[d - 3] > 2]
    if not axes:
        return vectors.new_zeros(vectors.shape[:-4])
    group = Group(_second(grid, axes), None)
    if weight is not None:
        group = group._replace(weight=_shifted(weight, group.taps, (0, 0, 0)))
    return _mean_squares(vectors, [group])


def _mean_squares(vectors: Tensor, groups: list[Group]) -> Tensor:
    rows = [_MeanSquares.apply(one, groups) for one in vectors.reshape(-1, *vectors.shape[-4:])]
    return torch.stack(rows).reshape(vectors.shape[:-4])


def _shifted(volume: Tensor, reach: Iterable[Tap], offset: Offset) -> Tensor:
    """The part of ``volume`` that lies ``offset`` away from the voxels at which every tap of ``reach`` is inside."""
    for axis in range(3):
        steps = [tap[axis] for tap, _ in reach]
        before, after = max(0, -min(steps)), max(0, max(steps))
        n = volume.shape[axis - 3]
        volume = volume.narrow(axis - 3, before + offset[axis], n - before - after)
    return volume


class _MeanSquares(torch.autograd.Function):
    """Sum over groups of the weighted mean of squared differences. Its gradient is made in the same pass, by the adjoint."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, groups: list[Group]) -> Tensor:
        gradient = torch.zeros_like(vectors) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64, device=vectors.device)
        for group in groups:
            total += _mean_square(vectors, gradient, group)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total.to(vectors.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None


def _mean_square(vectors: Tensor, gradient: Tensor | None, group: Group) -> Tensor:
    """Weighted mean of the squares, summed over components; adds its gradient to ``gradient``."""
    values = {offset: _shifted(vectors, group.taps, offset) for offset, _ in group.taps}
    slopes = {} if gradient is None else {offset: _shifted(gradient, group.taps, offset) for offset in values}
    components, rows, columns, depth = next(iter(values.values())).shape
    weight = group.weight
    count = float(rows * columns * depth) if weight is None else max(float(weight.sum()), torch.finfo(torch.float32).tiny)
    planes = max(1, BLOCK // (components * columns * depth)) if vectors.device.type == "cpu" else rows
    sums = []
    for start in range(0, rows, planes):
        slab = slice(start, start + planes)
        value_at = {offset: value[:, slab] for offset, value in values.items()}
        slope_at = {offset: slope[:, slab] for offset, slope in slopes.items()}
        for taps, scale, times in group.differences:
            (offset, factor), *others = taps
            value = value_at[offset] * factor
            for offset, factor in others:
                value.add_(value_at[offset], alpha=factor)
            heavy = value if weight is None else value * weight[slab]
            if slope_at:
                for offset, factor in taps:
                    slope_at[offset].add_(heavy, alpha=2 * times * scale**2 * factor / count)
            sums.append((heavy * value).sum().double() * (times * scale**2))
    return torch.stack(sums).sum() / count


# -- in bone ----------------------------------------------------------------------------------------------------------
class RigidityParts(NamedTuple):
    """What a rigid transform has none of; each a mean over voxels."""

    bending: Float[Tensor, ""]
    """Squared Hessian in 1/mm^2 (thesis 3.11)."""
    orthonormality: Float[Tensor, ""]
    """Squared Frobenius norm of J J^T - I, no unit (thesis 3.14)."""
    determinant: Float[Tensor, ""]
    """(det J - 1)^2, no unit (thesis 3.15)."""

    @property
    def total(self) -> Float[Tensor, ""]:
        """Their sum, the rigidity penalty (thesis 3.16)."""
        return self.bending + self.orthonormality + self.determinant


def rigidity_parts(vectors: Float[Tensor, "3 i j k"], grid: Grid, mask: Bool[Tensor, "i j k"]) -> RigidityParts:
    """Departure of x + u(x) from a rigid transform at the voxels of ``mask`` that have all their neighbours.

    Central differences in mm (Staring et al., 2007; thesis 3.11-3.16), worked out at those voxels alone: the 19 values
    that each needs are gathered. No voxel, no penalty.
    """
    _, n, m = mask.shape
    found = mask[1:-1, 1:-1, 1:-1].nonzero() + 1 if min(mask.shape) > 2 else mask.new_zeros(0, 3, dtype=torch.long)
    if not len(found):
        return RigidityParts(*vectors.new_zeros(3))
    voxels = (found[:, 0] * n + found[:, 1]) * m + found[:, 2]
    differences = [_first(grid, axis) for axis in range(3)] + _second(grid, range(3))
    return RigidityParts(*_Rigidity.apply(vectors, voxels, Neighbourhood(differences, grid.direction, (n * m, m, 1))))


class Neighbourhood:
    """The 18 neighbours that nine derivatives at a voxel need, the voxel's own value being taken away from theirs."""

    def __init__(self, differences: list[Difference], direction: np.ndarray, strides: Offset) -> None:
        self.direction = direction
        offsets = sorted({offset for difference in differences for offset, _ in difference.taps} - {(0, 0, 0)})
        self.steps = torch.tensor([sum(o * s for o, s in zip(offset, strides, strict=True)) for offset in offsets])
        self.taps = [[(offsets.index(o), f * scale) for o, f in taps if o in offsets] for taps, scale, _ in differences]
        self.users = [[(d, f) for d, taps in enumerate(self.taps) for t, f in taps if t == tap] for tap in range(len(offsets))]
        self.times = [times for _, _, times in differences[3:]]

    def derivatives(self, around: Float[Tensor, "18 3 m"]) -> Float[Tensor, "9 3 m"]:
        """First, pure second and mixed second ones along the array axes."""
        return _combined(around, self.taps)

    def adjoint(self, slopes: Float[Tensor, "9 3 m"]) -> Float[Tensor, "18 3 m"]:
        """From a gradient by derivatives to one by neighbours."""
        return _combined(slopes, self.users)

    def jacobian(self, derivatives: Float[Tensor, "9 3 m"]) -> Float[Tensor, "3 3 m"]:
        """Entry [b, a]: d(component a of x + u)/d(world axis b)."""
        rows = [_sum(float(self.direction[b, d]) * derivatives[d] for d in range(3)) for b in range(3)]
        jacobian = torch.stack(rows)
        jacobian.diagonal().add_(1)
        return jacobian


class _Rigidity(torch.autograd.Function):
    """The three means, block by block of voxels, and their gradient by hand: 2 H, 4 (J J^T - I) J and 2 (det J - 1) cof J."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, voxels: Tensor, near: Neighbourhood) -> Tensor:
        flat = vectors.reshape(3, -1)
        steps = near.steps.to(voxels.device)[:, None]
        kept, sums = [], []
        for some in voxels.split(_block(voxels)):
            where = (some + steps).flatten()
            around = [one.index_select(0, where).unflatten(0, (len(steps), -1)) - one.index_select(0, some) for one in flat]
            derivatives = near.derivatives(torch.stack(around, 1))
            jacobian = near.jacobian(derivatives)
            hessian = _sum(times * part.square() for times, part in zip(near.times, derivatives[3:], strict=True))
            parts = (hessian, _excess(jacobian).square(), (_cofactors(jacobian)[0] * jacobian[0]).sum(0).sub(1).square())
            sums.append(torch.stack([part.sum() for part in parts]).double())
            kept.append(derivatives)
        ctx.save_for_backward(voxels, *(kept if ctx.needs_input_grad[0] else []))
        ctx.near, ctx.shape = near, vectors.shape
        return (torch.stack(sums).sum(0) / len(voxels)).to(vectors.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        voxels, *kept = ctx.saved_tensors
        near: Neighbourhood = ctx.near
        steps = near.steps.to(voxels.device)[:, None]
        gradient = torch.zeros(ctx.shape, dtype=outer.dtype, device=outer.device)
        bending, orthonormality, determinant = (float(one) / len(voxels) for one in outer)
        for some, derivatives in zip(voxels.split(_block(voxels)), kept, strict=True):
            jacobian = near.jacobian(derivatives)
            excess, cofactors = _excess(jacobian), _cofactors(jacobian)
            change = (cofactors[0] * jacobian[0]).sum(0).sub(1)
            slope = torch.stack([(4 * orthonormality) * (excess * row).sum(1) for row in jacobian])
            slope += (2 * determinant) * change * cofactors
            slopes = [_sum(float(near.direction[b, d]) * slope[b] for b in range(3)) for d in range(3)]
            slopes += [(2 * bending * times) * part for times, part in zip(near.times, derivatives[3:], strict=True)]
            around = near.adjoint(torch.stack(slopes))
            where = (some + steps).flatten()
            for component, part in zip(gradient.view(3, -1), around.unbind(1), strict=True):
                component.index_add_(0, where, part.flatten())
                component.index_add_(0, some, part.sum(0), alpha=-1)
        return gradient, None, None


def _combined(values: Tensor, recipes: list[list[tuple[int, float]]]) -> Tensor:
    out = []
    for (first, factor), *others in recipes:
        total = values[first] * factor
        for other, factor in others:
            total.add_(values[other], alpha=factor)
        out.append(total)
    return torch.stack(out)


def _block(voxels: Tensor) -> int:
    return BLOCK // 20 if voxels.device.type == "cpu" else len(voxels)


def _excess(jacobian: Tensor) -> Tensor:
    """J J^T - I, from rows that are world axes."""
    excess = _sum(row[:, None] * row for row in jacobian)
    excess.diagonal().sub_(1)
    return excess


def _cofactors(jacobian: Tensor) -> Tensor:
    """Derivative of the determinant by each entry."""
    a, b, c = jacobian
    return torch.stack([torch.linalg.cross(p, q, dim=0) for p, q in ((b, c), (c, a), (a, b))])


def dense_rigidity_parts(vectors: Float[Tensor, "3 i j k"], grid: Grid, mask: Bool[Tensor, "i j k"]) -> RigidityParts:
    """The same as :func:`rigidity_parts`, over the whole volume and then masked, as in the thesis. A reference: slow."""
    first, second = [_first(grid, axis) for axis in range(3)], _second(grid, range(3))
    reach = Group(second, None).taps
    inner = _shifted(mask, reach, (0, 0, 0))
    derivatives = [
        scale * _sum(factor * _shifted(vectors, reach, offset) for offset, factor in taps) for taps, scale, _ in first + second
    ]
    rows = [_sum(float(grid.direction[b, d]) * derivatives[d] for d in range(3)) for b in range(3)]
    j = [[rows[b][a] + float(a == b) for b in range(3)] for a in range(3)]
    hessian = _sum(d.times * value.square().sum(0) for d, value in zip(second, derivatives[3:], strict=True))
    orthonormality = _sum(
        (_sum(j[r][w] * j[s][w] for w in range(3)) - float(r == s)).square() for r in range(3) for s in range(3)
    )
    volume = _sum(j[0][p] * (j[1][q] * j[2][r] - j[1][r] * j[2][q]) for p, q, r in ((0, 1, 2), (1, 2, 0), (2, 0, 1)))
    count = inner.sum().clamp(min=1)
    return RigidityParts(*[(value * inner).sum() / count for value in (hessian, orthonormality, (volume - 1).square())])


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


# -- terms ------------------------------------------------------------------------------------------------------------
@final
@dataclass(frozen=True)
class Diffusion(Term):
    """Mean squared gradient of u, no unit; least (0) for a translation."""

    def __call__(self, alignment: Alignment) -> Float[Tensor, ""]:
        return diffusion(alignment.warp.vectors, alignment.warp.grid)


@final
@dataclass(frozen=True)
class Bending(Term):
    """Mean squared Hessian of u in 1/mm^2; least (0) for an affine map."""

    def __call__(self, alignment: Alignment) -> Float[Tensor, ""]:
        return bending(alignment.warp.vectors, alignment.warp.grid)


@final
@dataclass(frozen=True)
class Rigidity(Term):
    """Rigidity penalty in bone (bending in 1/mm^2, the rest without a unit); least (0) where every bone moves rigidly."""

    def __call__(self, alignment: Alignment) -> Float[Tensor, ""]:
        return rigidity_parts(alignment.warp.vectors, alignment.warp.grid, alignment.rigid_mask).total
