"""Gauss-Newton steps of soft tissue's field: each solves the linear least-squares problem that one description poses.

Descriptions (MIND-SSC) are differenced on a lattice, the field's steps are cubic B-splines, and what is asked of a step is to
explain the difference and to bend little. One step gets most of what a descent of many iterations does: it knows every
voxel's slope at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from osteomorph.case import Case
from osteomorph.fields import along_axes
from osteomorph.geometry import Grid, sample
from osteomorph.plan import NewtonLevel
from osteomorph.resampling import coarser
from osteomorph.similarity import mind_ssc
from osteomorph.spline import Basis, Roughness
from osteomorph.threads import spread
from osteomorph.transforms import Displacement, Transform

SCALE = 0.02
"""Mean squared difference of features at which a voxel has a quarter of its say (Geman and McClure's robust weight)."""

PLANES = 16
"""Of the lattice, whose features are differenced together, to stay in the cache."""

SOLVED = 3e-3
MOST_ROUNDS = 60
"""Of conjugate gradients: the residual's share that is left, and how many there are at most."""

RIDGE = 0.1
"""Of an axis' largest eigenvalue, what its splines' products are taken for at least: what was best of 1e-5 to 0.1 on one voxel
along an axis costs nothing on many."""

LEAST = 1e-6
"""Share of the largest that what is divided by is kept above."""

PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def newton_steps(
    case: Case,
    through: Transform,
    hold: Float[Tensor, "i j k"],
    guess: Displacement,
    levels: Sequence[NewtonLevel],
) -> Displacement:
    """v in mm, fixed mm -> fixed mm, at the last level's spacing: moving(through(x + hold(x) v(x))) looks like fixed(x).

    case: prepared images and masks. through: fixed mm -> moving mm. hold: 0 to 1 at the fixed image's voxels, what of v counts.
    guess: v to begin from; bending is asked of each step alone. Air, by the fixed mask, has no say.
    """
    found = guess
    for level in levels:
        found = _level(case, through, hold, found, level)
    return found


def _level(
    case: Case, through: Transform, hold: Float[Tensor, "i j k"], begin: Displacement, level: NewtonLevel
) -> Displacement:
    fixed, moving = (coarser(image, level.spacing_mm) for image in (case.fixed, case.moving))
    grid, points = fixed.grid, fixed.grid.points().flatten(1)
    found = sample(begin.vectors, begin.grid, points).unflatten(1, grid.shape)
    held = sample(hold[None], case.fixed.grid, points).view(grid.shape)
    known = torch.ones_like(held)
    if (mask := case.fixed_mask) is not None:
        known = sample(mask.data[:1], mask.grid, points).view(grid.shape)
    here, basis = mind_ssc(fixed.data[:1], by_voxel=False), Basis.on(grid, level.control_mm, held)
    turn = torch.as_tensor(grid.direction.copy(), dtype=held.dtype)
    for _ in range(level.steps):
        there = through((points + (held * found).flatten(1)).double())
        seen = known * moving.grid.contains(there).view(grid.shape)
        if (mask := case.moving_mask) is not None:
            seen *= sample(mask.data[:1], mask.grid, there.float(), outside=0.0).view(grid.shape)
        moved = sample(moving.data[:1], moving.grid, there.float()).unflatten(1, grid.shape)
        problem = _Problem(*_normal(here, mind_ssc(moved, by_voxel=False), seen, held, grid), basis, level.bending)
        found = found + torch.tensordot(turn, basis(problem.solved()), 1)
    return Displacement(found, grid)


def _normal(
    here: Float[Tensor, "c i j k"],
    moved: Float[Tensor, "c i j k"],
    seen: Float[Tensor, "i j k"],
    held: Float[Tensor, "i j k"],
    grid: Grid,
) -> tuple[Float[Tensor, "6 i j k"], Float[Tensor, "3 i j k"]]:
    """Per voxel h^2 w G G' (its `PAIRS`) and h w G d: G the features' slopes along the array axes per mm, the mean of both
    images' (Benhimane and Malis, 2004), d what differs, h how much of the field counts, w the say."""
    normal, slope = torch.zeros(6, *grid.shape), torch.zeros(3, *grid.shape)
    count, channels = grid.shape[0], len(here)
    per_mm = [0.25 / float(h) for h in grid.spacing_mm]

    def fill(start: int) -> None:
        inner = slice(start, min(start + PLANES, count))
        low, high = max(inner.start - 1, 0), min(inner.stop + 1, count)
        own = slice(inner.start - low, inner.stop - low)
        products, pulls, square = normal[:, inner], slope[:, inner], torch.zeros_like(seen[inner])
        rises = torch.zeros(3, high - low, *grid.shape[1:])  # at the grid's border there are none
        for one, other in zip(here[:, low:high], moved[:, low:high], strict=True):
            mean = one + other
            for axis, n in enumerate(mean.shape):
                if n > 2:
                    inside = rises[axis].narrow(axis, 1, n - 2)
                    torch.sub(mean.narrow(axis, 2, n - 2), mean.narrow(axis, 0, n - 2), out=inside)
            left, steep = one[own] - other[own], rises[:, own]
            square.addcmul_(left, left)
            for pull, rise in zip(pulls, steep, strict=True):
                pull.addcmul_(rise, left)
            for product, (a, b) in zip(products, PAIRS, strict=True):
                product.addcmul_(steep[a], steep[b])
        weight = seen[inner] * (SCALE / (SCALE + square / channels)).square() * held[inner] / channels
        for pull, h in zip(pulls, per_mm, strict=True):
            pull.mul_(weight * h)
        weight *= held[inner]
        for product, (a, b) in zip(products, PAIRS, strict=True):
            product.mul_(weight * (per_mm[a] * per_mm[b]))

    for _ in spread(fill, range(0, count, PLANES)):
        pass
    return normal, slope


@final
class _Problem:
    """c with (sum over voxels of B' normal B, per voxel, + bending K) c = B' slope: B the spline, K what it bends."""

    def __init__(self, normal: Tensor, slope: Tensor, basis: Basis, bending: float) -> None:
        voxels = slope[0].numel()
        self.normal, self.slope = (_pooled(part) / voxels for part in (normal, slope))
        self.basis = basis.pooled()
        self.roughness, self.bending = Roughness.of(basis, 2), bending
        self.nearly = _Alike.of(basis, self.normal[:3].flatten(1).sum(1), bending)

    def __call__(self, control: Float[Tensor, "3 a b c"]) -> Float[Tensor, "3 a b c"]:
        x, y, z = self.basis(control)
        xx, yy, zz, xy, xz, yz = self.normal
        pulled = torch.stack([xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z])
        return self.basis.transposed(pulled).add_(self.roughness.stiffness(control), alpha=self.bending)

    def solved(self) -> Float[Tensor, "3 a b c"]:
        """By conjugate gradients, preconditioned."""
        left = self.basis.transposed(self.slope)
        control, first = torch.zeros_like(left), float(left.square().sum())
        nearly = self.nearly.solved(left)
        way, fall = nearly.clone(), float((left * nearly).sum())
        for _ in range(MOST_ROUNDS):
            if float(left.square().sum()) <= SOLVED**2 * first:
                break
            pulled = self(way)
            length = fall / float((way * pulled).sum())
            control.add_(way, alpha=length)
            left.sub_(pulled, alpha=length)
            nearly = self.nearly.solved(left)
            before, fall = fall, float((left * nearly).sum())
            way.mul_(fall / before).add_(nearly)
        return control


@final
@dataclass(frozen=True, eq=False)
class _Alike:
    """A problem like another one that is solved at once: its normal matrices are diagonal and the same everywhere, and the
    splines' second derivatives as if they were differences, so that each axis has modes which do not mix.

    modes: per axis, orthonormal under the splines' products. weight: what a unit of each product of modes costs.
    """

    modes: tuple[Tensor, ...]
    weight: Float[Tensor, "3 a b c"]

    @classmethod
    def of(cls, basis: Basis, normal: Float[Tensor, "3"], bending: float) -> "_Alike":
        """normal: the mean of the normal matrices' diagonals."""
        modes, squares = [], []
        for values, slopes, *_ in basis.derivatives:
            products, rises = ((part.T @ part / len(part)).double().numpy() for part in (values, slopes))
            ridge = RIDGE * np.linalg.norm(products, 2)  # where an axis has fewer voxels than splines
            square, mode = eigh(rises, products + ridge * np.eye(len(products)))
            modes.append(torch.as_tensor(mode, dtype=values.dtype))
            squares.append(torch.as_tensor(square, dtype=values.dtype).clamp_(min=0))
        x, y, z = squares
        bends = (x[:, None, None] + y[:, None] + z).square_().mul_(bending)
        least = LEAST * float(normal.max()) + torch.finfo(normal.dtype).tiny
        return cls(tuple(modes), normal.clamp(min=least)[:, None, None, None] + bends)

    def solved(self, pulled: Float[Tensor, "3 a b c"]) -> Float[Tensor, "3 a b c"]:
        return along_axes(along_axes(pulled, [mode.T for mode in self.modes]).div_(self.weight), self.modes)


def _pooled(data: Float[Tensor, "c i j k"]) -> Float[Tensor, "c i2 j2 k2"]:
    """Sums over blocks of two voxels a side."""
    ends = [end for n in reversed(data.shape[1:]) for end in (0, n % 2)]
    return avg_pool3d(pad(data, ends), 2) * 8
