"""Gauss-Newton steps of soft tissue's field: each solves the linear least-squares problem that one description poses.

Descriptions (MIND-SSC) are differenced on a lattice, the field's steps are cubic B-splines, and what is asked of a step is to
explain the difference and to bend little. One step gets most of what a descent of many iterations does: it knows every
voxel's slope at once.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from osteomorph.case import Case
from osteomorph.geometry import Grid, sample
from osteomorph.plan import NewtonLevel
from osteomorph.resampling import coarser
from osteomorph.similarity import mind_ssc
from osteomorph.spline import Basis, Roughness
from osteomorph.threads import spread
from osteomorph.transforms import Displacement, Transform

SCALE = 0.02
"""Mean squared difference of features at which a voxel has a quarter of its say (Geman and McClure's robust weight)."""

PLANES = 4
"""Of the lattice, whose features are differenced together, to stay in the cache."""

SOLVED = 1e-3
MOST_ROUNDS = 60
"""Of conjugate gradients: the residual's share that is left, and how many there are at most."""

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
    count = grid.shape[0]

    def fill(start: int) -> None:
        inner = slice(start, min(start + PLANES, count))
        low, high = max(inner.start - 1, 0), min(inner.stop + 1, count)
        one, other = here[:, low:high], moved[:, low:high]
        mean, own = one + other, slice(inner.start - low, inner.stop - low)
        rises = [torch.zeros_like(mean) for _ in range(3)]
        for axis, h in enumerate(grid.spacing_mm, 1):
            n = mean.shape[axis]
            if n > 2:
                inside = rises[axis - 1].narrow(axis, 1, n - 2)
                torch.sub(mean.narrow(axis, 2, n - 2), mean.narrow(axis, 0, n - 2), out=inside).mul_(0.25 / float(h))
        rises = [rise[:, own] for rise in rises]
        left = one[:, own] - other[:, own]
        weight = seen[inner] * (SCALE / (SCALE + left.square().mean(0))).square() * held[inner]
        for axis, rise in enumerate(rises):
            slope[axis, inner] = (rise * left).mean(0) * weight
        weight *= held[inner]
        for number, (a, b) in enumerate(PAIRS):
            normal[number, inner] = (rises[a] * rises[b]).mean(0) * weight

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

    def __call__(self, control: Float[Tensor, "3 a b c"]) -> Float[Tensor, "3 a b c"]:
        x, y, z = self.basis(control)
        xx, yy, zz, xy, xz, yz = self.normal
        pulled = torch.stack([xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z])
        return self.basis.transposed(pulled).add_(self.roughness.stiffness(control), alpha=self.bending)

    def solved(self) -> Float[Tensor, "3 a b c"]:
        """By conjugate gradients."""
        left = self.basis.transposed(self.slope)
        control, way = torch.zeros_like(left), left.clone()
        square = first = float(left.square().sum())
        for _ in range(MOST_ROUNDS):
            if square <= SOLVED**2 * first:
                break
            pulled = self(way)
            length = square / float((way * pulled).sum())
            control.add_(way, alpha=length)
            left.sub_(pulled, alpha=length)
            before, square = square, float(left.square().sum())
            way.mul_(square / before).add_(left)
        return control


def _pooled(data: Float[Tensor, "c i j k"]) -> Float[Tensor, "c i2 j2 k2"]:
    """Sums over blocks of two voxels a side."""
    ends = [end for n in reversed(data.shape[1:]) for end in (0, n % 2)]
    return avg_pool3d(pad(data, ends), 2) * 8
