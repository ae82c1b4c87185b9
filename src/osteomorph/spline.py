"""Vectors on a grid from cubic B-spline control points, one matrix per array axis, and how much they vary and bend."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import factorial, prod
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from osteomorph.fields import along_axes
from osteomorph.geometry import Grid

Rows = tuple[slice, slice, slice]
EVERYWHERE: Rows = (slice(None),) * 3

DERIVATIVES = 3
"""Matrices per axis: values, first and second derivatives per mm."""


def cubic_matrix(n: int, step: float, order: int = 0) -> np.ndarray:
    """(n, m) values of m uniform cubic B-splines, ``step`` voxels apart, at n voxel centres; each row sums to 1.

    order: or their first or second derivatives per voxel.
    """
    intervals = max(1, int(np.ceil((n - 1) / step + 1e-9)))
    start = (n - 1) / 2 - intervals * step / 2
    place = (np.arange(n) - start) / step
    cell = np.floor(place).astype(int).clip(0, intervals - 1)
    t = place - cell
    pieces = (
        ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6),
        (-((1 - t) ** 2) / 2, (3 * t**2 - 4 * t) / 2, (-3 * t**2 + 2 * t + 1) / 2, t**2 / 2),
        (1 - t, 3 * t - 2, 1 - 3 * t, t),
    )[order]
    matrix = np.zeros((n, intervals + 3))
    for k, piece in enumerate(pieces):
        matrix[np.arange(n), cell + k] = piece / step**order
    return matrix


@final
@dataclass(frozen=True, eq=False)
class Basis:
    """derivatives: per array axis the matrices of values and of first and second derivatives per mm."""

    derivatives: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def on(cls, grid: Grid, control_mm: float, like: Tensor) -> "Basis":
        """At the voxel centres of a grid; control points ``control_mm`` apart, never nearer than voxels."""
        axes = []
        for n, h in zip(grid.shape, grid.spacing_mm, strict=True):
            step = max(1.0, control_mm / h)
            matrices = [cubic_matrix(n, step, order) / h**order for order in range(DERIVATIVES)]
            axes.append(tuple(torch.as_tensor(m, dtype=like.dtype, device=like.device) for m in matrices))
        return cls(tuple(axes))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the control points."""
        i, j, k = (matrices[0].shape[1] for matrices in self.derivatives)
        return 3, i, j, k

    def zero(self) -> Float[Tensor, "3 a b c"]:
        like = self.derivatives[0][0]
        return torch.zeros(self.shape, dtype=like.dtype, device=like.device)

    def __call__(self, control: Float[Tensor, "3 a b c"], rows: Rows = EVERYWHERE) -> Float[Tensor, "3 i j k"]:
        """Vectors at the voxels that ``rows`` names. Carries gradients."""
        return along_axes(control, [matrices[0][part] for matrices, part in zip(self.derivatives, rows, strict=True)])

    def transposed(self, vectors: Float[Tensor, "3 i j k"]) -> Float[Tensor, "3 a b c"]:
        """What the splines are multiplied with at all voxels, summed: the transpose of calling it."""
        return along_axes(vectors, [matrices[0].T for matrices in self.derivatives])

    def pooled(self) -> "Basis":
        """The same splines' means over blocks of two voxels a side, at the end of an axis of one where they do not come out."""
        return Basis(tuple(tuple(_halved(matrix) for matrix in matrices) for matrices in self.derivatives))


def _halved(matrix: Tensor) -> Tensor:
    whole = len(matrix) // 2 * 2
    return torch.cat([(matrix[:whole:2] + matrix[1:whole:2]) / 2, matrix[whole:]])


Grams = list[tuple[int, tuple[Tensor, ...]]]
"""How often each mixed derivative counts, and per axis the products of one basis with another, averaged over the grid."""


@final
@dataclass(frozen=True, eq=False)
class Roughness:
    """Mean over a grid of the squared derivatives of one order of a sum of splines: order 1 its gradient (no unit), order 2
    its Hessian (1/mm^2). Derivatives are those of the splines themselves, so that it depends on no lattice.

    As a function of the control points c of one of them: constant + 2 c . beside + c . K c, K given by ``grams`` and what comes
    from the other splines by the first two.
    """

    grams: Grams
    beside: Float[Tensor, "3 a b c"]
    constant: float

    @classmethod
    def of(cls, basis: Basis, order: int, others: Sequence[tuple[Basis, Tensor]] = ()) -> "Roughness":
        """others: the splines, with their control points, that are added to that of ``basis``."""
        beside = basis.zero()
        for other, control in others:
            beside += _stiffness(_grams(basis, other, order), control)
        constant = 0.0
        for (one, control), (other, there) in product(others, others):
            constant += float((control * _stiffness(_grams(one, other, order), there)).sum())
        return cls(_grams(basis, basis, order), beside, constant)

    def __call__(self, control: Float[Tensor, "3 a b c"]) -> Float[Tensor, ""]:
        value: Tensor = _Quadratic.apply(control, self)
        return value

    def stiffness(self, control: Float[Tensor, "3 a b c"]) -> Float[Tensor, "3 a b c"]:
        """K c."""
        return _stiffness(self.grams, control)


class _Quadratic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, control: Tensor, roughness: Roughness) -> Tensor:
        half = _stiffness(roughness.grams, control).add_(roughness.beside)
        ctx.save_for_backward(half)
        return (control * (half + roughness.beside)).sum() + roughness.constant

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        (half,) = ctx.saved_tensors
        return 2 * outer * half, None


def _grams(one: Basis, other: Basis, order: int) -> Grams:
    products = [
        [first.T @ second / len(first) for first, second in zip(a, b, strict=True)]
        for a, b in zip(one.derivatives, other.derivatives, strict=True)
    ]
    return [
        (
            factorial(order) // prod(factorial(k) for k in orders),
            tuple(along[k] for along, k in zip(products, orders, strict=True)),
        )
        for orders in product(range(order + 1), repeat=3)
        if sum(orders) == order
    ]


def _stiffness(grams: Grams, control: Float[Tensor, "3 d e f"]) -> Float[Tensor, "3 a b c"]:
    """K c, with c' K c the mean over the grid of the product of the derivatives of two splines."""
    (times, first), *others = grams
    out = times * along_axes(control, first)
    for times, matrices in others:
        out += times * along_axes(control, matrices)
    return out
