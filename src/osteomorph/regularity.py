"""How smooth, and in bone how rigid, a transform is: diffusion, bending, the rigidity penalty. Everything per mm.

Vectors are ``(*b, 3, i, j, k)``, components along the RAS world axes in mm, at the grid's voxel centres. The array axes of
a grid are orthonormal, so sums over derivatives along them are sums over derivatives along the world axes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from osteomorph.geometry import Grid
from osteomorph.objective import Alignment, Term

Offset = tuple[int, int, int]


class Difference(NamedTuple):
    """A finite difference: sum of factor * value at offset."""

    taps: tuple[tuple[Offset, float], ...]
    times: float = 1.0
    """How often its square counts."""


def _along(axis: int, steps: int) -> Offset:
    return (steps * (axis == 0), steps * (axis == 1), steps * (axis == 2))


def _mixed(a: int, b: int, p: int, q: int) -> Offset:
    one, other = _along(a, p), _along(b, q)
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])


def _first(grid: Grid, axis: int) -> Difference:
    h = 2 * float(grid.spacing_mm[axis])
    return Difference(((_along(axis, 1), 1 / h), (_along(axis, -1), -1 / h)))


def _second(grid: Grid, axes: Sequence[int]) -> list[Difference]:
    """All second derivatives along ``axes``; the mixed ones occur twice in the Hessian."""
    h = grid.spacing_mm
    pure = [
        Difference(((_along(a, 1), 1 / h[a] ** 2), ((0, 0, 0), -2 / h[a] ** 2), (_along(a, -1), 1 / h[a] ** 2))) for a in axes
    ]
    mixed = [
        Difference(tuple((_mixed(a, b, p, q), p * q / (4 * h[a] * h[b])) for p in (1, -1) for q in (1, -1)), 2.0)
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
    total = vectors.new_zeros(vectors.shape[:-4])
    for axis in range(3):
        if vectors.shape[axis - 3] < 2:
            continue
        h = float(grid.spacing_mm[axis])
        step = Difference(((_along(axis, 1), 1 / h), ((0, 0, 0), -1 / h)))
        pairs = None if weight is None else _shifted(weight, step, (0, 0, 0)) * _shifted(weight, step, _along(axis, 1))
        total = total + _mean_square(vectors, [step], pairs)
    return total


def bending(
    vectors: Float[Tensor, "*b 3 i j k"], grid: Grid, weight: Float[Tensor, "i j k"] | None = None
) -> Float[Tensor, "*b"]:
    """Mean over the volume of the squared Hessian, sum over a, b, c of (d2u_a / dx_b dx_c)^2, in 1/mm^2 (thesis 3.11).

    Central differences at the voxels that have all their neighbours. Axes of fewer than three voxels are left out.
    """
    axes = [d for d in range(3) if vectors.shape[d - 3] > 2]
    differences = _second(grid, axes)
    if not differences:
        return vectors.new_zeros(vectors.shape[:-4])
    if weight is not None:
        weight = _shifted(weight, Difference(tuple(tap for d in differences for tap in d.taps)), (0, 0, 0))
    return _mean_square(vectors, differences, weight)


def _mean_square(vectors: Tensor, differences: list[Difference], weight: Tensor | None) -> Tensor:
    rows = [_MeanSquare.apply(one, differences, weight) for one in vectors.reshape(-1, *vectors.shape[-4:])]
    return torch.stack(rows).reshape(vectors.shape[:-4])


def _shifted(volume: Tensor, reach: Difference, offset: Offset) -> Tensor:
    """The part of ``volume`` that lies ``offset`` away from the voxels at which every tap of ``reach`` is inside."""
    for axis in range(3):
        before = max(0, -min(tap[axis] for tap, _ in reach.taps))
        after = max(0, max(tap[axis] for tap, _ in reach.taps))
        n = volume.shape[axis - 3]
        volume = volume.narrow(axis - 3, before + offset[axis], n - before - after)
    return volume


class _MeanSquare(torch.autograd.Function):
    """Weighted mean of summed squares of differences. Its gradient is made in the same pass: the adjoint of what is there."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, differences: list[Difference], weight: Tensor | None) -> Tensor:
        reach = Difference(tuple(tap for difference in differences for tap in difference.taps))
        count = (
            float(_shifted(vectors[0], reach, (0, 0, 0)).numel())
            if weight is None
            else max(float(weight.sum()), torch.finfo(torch.float64).tiny)
        )
        gradient = torch.zeros_like(vectors) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64, device=vectors.device)
        for taps, times in differences:
            (offset, factor), *others = taps
            value = _shifted(vectors, reach, offset) * factor
            for offset, factor in others:
                value.add_(_shifted(vectors, reach, offset), alpha=factor)
            heavy = value if weight is None else value * weight
            total += times * (heavy * value).sum()
            if gradient is not None:
                for offset, factor in taps:
                    _shifted(gradient, reach, offset).add_(heavy, alpha=2 * times * factor / count)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return (total / count).to(vectors.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None


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
    inner = torch.zeros_like(mask)
    inner[1:-1, 1:-1, 1:-1] = mask[1:-1, 1:-1, 1:-1]
    voxels = inner.flatten().nonzero()[:, 0]
    if not len(voxels):
        return RigidityParts(*vectors.new_zeros(3))
    differences = [_first(grid, axis) for axis in range(3)] + _second(grid, range(3))
    offsets = sorted({offset for difference in differences for offset, _ in difference.taps} - {(0, 0, 0)})
    factors = torch.zeros(len(differences), len(offsets), dtype=torch.float64)
    for row, difference in enumerate(differences):
        for offset, factor in difference.taps:
            if offset != (0, 0, 0):  # values are taken relative to the centre's
                factors[row, offsets.index(offset)] = factor
    _, n, m = mask.shape
    steps = torch.tensor([(i * n + j) * m + k for i, j, k in offsets], device=mask.device)
    around = _Around.apply(vectors, voxels, steps)
    derivatives = (factors.to(vectors) @ around).transpose(0, 1)
    return _parts(list(derivatives[:3]), list(derivatives[3:6]), list(derivatives[6:]), grid, None)


class _Around(torch.autograd.Function):
    """(3, taps, voxels) values at flat index voxel + step, less the voxel's own."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, voxels: Tensor, steps: Tensor) -> Tensor:
        ctx.save_for_backward(voxels, steps)
        ctx.shape = vectors.shape
        where = (voxels + steps[:, None]).flatten()
        flat = vectors.reshape(3, -1)
        around = torch.stack([component.index_select(0, where) for component in flat]).unflatten(1, (len(steps), -1))
        return around.sub_(torch.stack([component.index_select(0, voxels) for component in flat])[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        voxels, steps = ctx.saved_tensors
        where = (voxels + steps[:, None]).flatten()
        gradient = torch.zeros(ctx.shape, dtype=outer.dtype, device=outer.device)
        for component, part in zip(gradient.view(3, -1), outer, strict=True):
            component.index_add_(0, where, part.flatten())
            component.index_add_(0, voxels, part.sum(0), alpha=-1)
        return gradient, None, None


def dense_rigidity_parts(vectors: Float[Tensor, "3 i j k"], grid: Grid, mask: Bool[Tensor, "i j k"]) -> RigidityParts:
    """The same as :func:`rigidity_parts`, over the whole volume and then masked, as in the thesis. A reference: slow."""
    first, second = [_first(grid, axis) for axis in range(3)], _second(grid, range(3))
    reach = Difference(tuple(tap for difference in second for tap in difference.taps))
    inner = _shifted(mask, reach, (0, 0, 0))
    derivatives = [
        _sum(factor * _shifted(vectors, reach, offset) for offset, factor in difference.taps) for difference in first + second
    ]
    return _parts(derivatives[:3], derivatives[3:6], derivatives[6:], grid, inner)


def _parts(first: list[Tensor], pure: list[Tensor], mixed: list[Tensor], grid: Grid, mask: Tensor | None) -> RigidityParts:
    """From derivatives (3, ...) along the array axes. A = J - I is kept apart from I, for the sake of float32."""
    direction = grid.direction
    a = [[_sum(float(direction[w, d]) * first[d][c] for d in range(3)) for w in range(3)] for c in range(3)]
    hessian = _sum(x.square().sum(0) for x in pure) + 2 * _sum(x.square().sum(0) for x in mixed)
    orthonormality = _sum(
        (1 if r == s else 2) * (a[r][s] + a[s][r] + _sum(a[r][w] * a[s][w] for w in range(3))).square()
        for r in range(3)
        for s in range(r, 3)
    )
    trace = a[0][0] + a[1][1] + a[2][2]
    minors = _sum(a[r][r] * a[s][s] - a[r][s] * a[s][r] for r, s in combinations(range(3), 2))
    volume = _sum(a[0][p] * (a[1][q] * a[2][r] - a[1][r] * a[2][q]) for p, q, r in ((0, 1, 2), (1, 2, 0), (2, 0, 1)))
    determinant = (trace + minors + volume).square()
    values = (hessian, orthonormality, determinant)
    if mask is None:
        return RigidityParts(*[value.mean() for value in values])
    count = mask.sum().clamp(min=1)
    return RigidityParts(*[(value * mask).sum() / count for value in values])


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
