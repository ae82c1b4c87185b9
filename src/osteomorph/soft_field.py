"""The soft field around exact bones: identity in every bone's region, optimised elsewhere, invertible."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from osteomorph import fields
from osteomorph.agreement import agreed
from osteomorph.case import Case
from osteomorph.descent import Progress, descend
from osteomorph.distances import DistanceMap
from osteomorph.geometry import Grid
from osteomorph.objective import Alignment, Objective
from osteomorph.plan import Level, SoftPlan
from osteomorph.refine import smoothed, terms
from osteomorph.regularity import Bending, Diffusion
from osteomorph.resampling import finer
from osteomorph.spline import Basis, Roughness
from osteomorph.threads import spread
from osteomorph.transforms import Displacement, Velocity

LEAST_DETERMINANT = 0.15
"""Of a displacement that is kept as it is; where one is below, it is taken as a velocity, which cannot fold."""

STILL = 1.1
"""Diagonals of a voxel around a region in which nothing moves: one, and what linear interpolation of distances is off by."""

LOOKED_MM = 2.0
"""Spacing at which `ramp` looks distances up."""

Smoothness = Sequence[tuple[str, float, Roughness]]

SQUARINGS = 4
"""Of the velocity: while it is optimised on the coarse lattice, and of what comes out."""


def soft_field(
    case: Case,
    hold: Float[Tensor, "i j k"],
    plan: SoftPlan,
    seed: int = 0,
    progress: Progress | None = None,
    guess: Displacement | None = None,
) -> tuple[Displacement | Velocity, list[dict[str, float]]]:
    """psi, fixed mm -> fixed mm, on the fixed image's grid; and the terms' values at each step.

    psi = x + chi(x) v(x) (or the flow of chi v): v a cubic B-spline, chi (hold) what `ramp` makes of the regions that must not
    move. Smoothness is asked of v, which knows no bones: asked of chi v it would hold tissue back all around them.

    case: prepared, the moving image already resampled through the bones' transform: both describe along the same axes.
    hold: 0 to 1 at the fixed image's voxels. guess: of v, to begin from (its own smoothness is not asked for) or to average
    with in the end, as the plan says. A displacement that comes near to folding is returned as a velocity.
    """
    grid = case.fixed.grid
    stride = max(1, round(plan.lattice_mm / float(grid.spacing_mm.mean())))
    generator = torch.Generator().manual_seed(seed)
    history: list[dict[str, float]] = []
    total = sum(level.iterations for level in plan.levels)
    told = None if progress is None else lambda done: progress("soft", done, total)
    found: list[tuple[Basis, Tensor]] = []
    if guess is not None and plan.begin == "guess":
        before = finer(guess.vectors, guess.grid, grid)
    else:
        before = torch.zeros(3, *grid.shape, dtype=case.fixed.data.dtype)
    for level in plan.levels:
        seen = smoothed(case, level.smooth_mm)
        similarity = Objective([term for term in terms(plan, level, case, ()) if not isinstance(term[2], (Bending, Diffusion))])
        basis = Basis.on(grid, level.control_mm, before)
        smoothness = _smoothness(plan, level, basis, found)
        control = basis.zero()
        memo: dict[object, object] = {}

        def loss(
            seen: Case = seen,
            similarity: Objective = similarity,
            smoothness: Smoothness = smoothness,
            basis: Basis = basis,
            control: Tensor = control,
            before: Tensor = before,
            memo: Any = memo,
        ) -> tuple[Tensor, dict[str, float]]:
            a, b, c = (int(o) for o in torch.randint(stride, (3,), generator=generator))
            lattice = grid.strided(stride, (a, b, c))
            rows = (slice(a, None, stride), slice(b, None, stride), slice(c, None, stride))
            vectors = (before[:, rows[0], rows[1], rows[2]] + basis(control, rows)) * hold[rows]
            if plan.field == "velocity":
                vectors = fields.exponential(vectors, lattice, SQUARINGS)
            total, values = similarity(Alignment(seen, Displacement(vectors, lattice), stride, (a, b, c), memo=memo))
            for name, weight, roughness in smoothness:
                value = roughness(control)
                values[name] = float(value.detach())
                total = total + weight * value
            return total, values

        descend(control, level, loss, history, told)
        found.append((basis, control))
        before += basis(control)
    vectors = before.mul_(hold)
    if guess is not None and plan.agree_mm > 0:
        vectors = agreed(vectors, hold, grid, guess, plan.agree_mm, case)
    return (Velocity(vectors, grid, SQUARINGS) if plan.field == "velocity" else without_folds(vectors, grid)), history


def _smoothness(plan: SoftPlan, level: Level, basis: Basis, found: Sequence[tuple[Basis, Tensor]]) -> Smoothness:
    """Name, weight and value of what is asked of the free field."""
    weights = (("diffusion", plan.weights.diffusion, 1), ("bending", plan.weights.bending * level.bending_factor, 2))
    return [(name, weight, Roughness.of(basis, order, found)) for name, weight, order in weights if weight > 0]


def without_folds(vectors: Float[Tensor, "3 i j k"], grid: Grid) -> Displacement | Velocity:
    """x + u(x) where that keeps a distance from folding, else the flow of u, which cannot fold."""
    if float(fields.jacobian_determinant(vectors, grid).min()) < LEAST_DETERMINANT:
        return Velocity(vectors, grid, SQUARINGS)
    return Displacement(vectors, grid)


def still_mm(grid: Grid) -> float:
    """Distance from a region up to which `ramp` is 0."""
    looked = _looked_grid(grid)
    still = STILL * float(np.linalg.norm(grid.spacing_mm))
    bent = 0.0 if looked is grid else float(looked.spacing_mm.max()) ** 2 / (4 * still)  # of distance to a point, still away
    return still + bent


def held_mm(grid: Grid, ramp_mm: float) -> float:
    """And up to which it is below 1."""
    return still_mm(grid) + ramp_mm


def ramp(regions: Sequence[DistanceMap], grid: Grid, ramp_mm: float) -> Float[Tensor, "i j k"]:
    """0 in the regions and one voxel's diagonal around them, so that interpolation keeps them exactly still; from there a
    smoothstep of the distance to the nearest one, and 1 from ``ramp_mm`` on (after Little et al., 1997).

    Distances are looked up `LOOKED_MM` apart, and linear in between: as far too long as that can make them, more is still.
    """
    still, reach, looked = still_mm(grid), held_mm(grid, ramp_mm), _looked_grid(grid)
    slack = 4 * float(grid.spacing_mm.max())  # a region's map grows more slowly than distance
    least = torch.full(looked.shape, reach + slack)
    seen = [(region, box) for region in regions if (box := region.box_on(looked, reach + slack)) is not None]
    for (_, box), distance in zip(seen, spread(lambda item: item[0].on(looked.cropped(item[1])), seen), strict=True):
        least[box] = torch.minimum(least[box], distance)
    if looked is not grid:
        least = finer(least[None], looked, grid)[0]
    share = least.sub_(still).div_(ramp_mm).clamp_(0, 1)
    return share * share * (3 - 2 * share)


def _looked_grid(grid: Grid) -> Grid:
    """Every n-th voxel of a grid, about `LOOKED_MM` apart and at most so; the grid itself where it is no finer."""
    strides = [max(1, int(LOOKED_MM / h + 0.01)) for h in grid.spacing_mm]
    return grid if max(strides) == 1 else grid.nodes(strides)
