"""Instance optimisation: equation 2.1 for one pair, coarse to fine. Touches a field, never a network."""

from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from osteomorph import fields
from osteomorph.case import Case
from osteomorph.descent import Progress, descend
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image
from osteomorph.objective import Alignment, Objective, Term
from osteomorph.plan import Level, RefinePlan, SoftPlan, Weights
from osteomorph.regularity import Bending, Diffusion, Rigidity
from osteomorph.similarity import Dice, Mind, MutualInformation
from osteomorph.spline import Basis
from osteomorph.transforms import Displacement, Velocity

NODES_PER_BIN = 4
"""Of the soft field's fine histogram: its steps look at so few voxels that products of larger ones took most of the time."""


def refine(
    case: Case,
    plan: RefinePlan,
    rigid_labels: tuple[int, ...] = (),
    seed: int = 0,
    progress: Progress | None = None,
    first: Displacement | None = None,
) -> tuple[Displacement | Velocity, list[dict[str, float]]]:
    """The warp that minimises the plan's terms, and the terms' values at each step.

    case: prepared, and already under its rigid start.
    rigid_labels: ids of the bones inside which the rigidity penalty acts.
    first: the field to begin from, no motion by default; with a velocity there is none.
    """
    if first is not None and plan.field == "velocity":
        raise ValueError("A displacement has no velocity to begin from; refine a displacement.")
    grid = case.fixed.grid.resampled(plan.field_spacing_mm)
    vectors = torch.zeros(3, *grid.shape, dtype=case.fixed.data.dtype, device=case.fixed.data.device)
    if first is not None:
        points = grid.points(vectors.dtype, vectors.device).flatten(1)
        vectors = sample(first.vectors, first.grid, points).unflatten(1, grid.shape)
    generator = torch.Generator().manual_seed(seed)
    history: list[dict[str, float]] = []
    total = sum(level.iterations for level in plan.levels)
    told = None if progress is None else lambda done: progress("refine", done, total)
    for level in plan.levels:
        looked_at = smoothed(case, level.smooth_mm)
        objective = Objective(terms(plan, level, case, rigid_labels))
        basis = Basis.on(grid, level.control_mm, vectors) if (level.control_mm > grid.spacing_mm).all() else None
        control = torch.zeros_like(vectors) if basis is None else basis.zero()
        memo: dict[object, object] = {}
        stride = max(1, round((case.fixed.grid.voxels / level.samples) ** (1 / 3)))

        def loss(
            before: Tensor = vectors,
            basis: Basis | None = basis,
            control: Tensor = control,
            looked_at: Case = looked_at,
            objective: Objective = objective,
            stride: int = stride,
            memo: Any = memo,
        ) -> tuple[Tensor, dict[str, float]]:
            a, b, c = (int(o) for o in torch.randint(stride, (3,), generator=generator))
            warp = Displacement(_integrate(before + _spread(control, basis), grid, plan), grid)
            frame = rigid_frame(plan, case)
            return objective(Alignment(looked_at, warp, stride, (a, b, c), rigid_labels, frame, memo))

        descend(control, level, loss, history, told)
        vectors = vectors + _spread(control, basis)
    if plan.field == "velocity":
        return Velocity(vectors, grid), history
    return Displacement(vectors, grid), history


def _spread(control: Tensor, basis: Basis | None) -> Tensor:
    """Vectors at every voxel; without a basis each voxel is free."""
    return control if basis is None else basis(control)


def _integrate(vectors: Tensor, grid: Grid, plan: RefinePlan) -> Tensor:
    return fields.exponential(vectors, grid) if plan.field == "velocity" else vectors


def rigid_frame(plan: RefinePlan, case: Case) -> str:
    """Where the rigid mask comes from: as the plan says, or what there is."""
    if plan.rigid_frame != "auto":
        return plan.rigid_frame
    return "warped" if case.moving_labels is not None else "fixed"


def terms(
    plan: RefinePlan | SoftPlan, level: Level, case: Case, rigid_labels: tuple[int, ...]
) -> list[tuple[str, float, Term]]:
    """The plan's terms of which the weight is above 0, for a level."""
    weights: Weights = plan.weights
    levels = NODES_PER_BIN * plan.bins if isinstance(plan, SoftPlan) else 512
    both = case.fixed_labels is not None and case.moving_labels is not None
    wanted: list[tuple[str, float, Term]] = [
        ("mutual_information", weights.mutual_information, MutualInformation(plan.bins, plan.kernel, levels)),
        ("mind", weights.mind * level.mind_factor, Mind()),
        ("dice", weights.dice if both else 0.0, Dice()),
        ("diffusion", weights.diffusion, Diffusion()),
        ("bending", weights.bending * level.bending_factor, Bending()),
        ("rigidity", weights.rigidity if rigid_labels else 0.0, Rigidity()),
    ]
    return [term for term in wanted if term[1] > 0]


def smoothed(case: Case, sigma_mm: float) -> Case:
    """The case with both images smoothed by a Gaussian."""
    if sigma_mm == 0:
        return case
    return Case(
        _gaussian(case.fixed, sigma_mm),
        _gaussian(case.moving, sigma_mm),
        case.fixed_labels,
        case.moving_labels,
        case.fixed_mask,
        case.moving_mask,
    )


def _gaussian(image: Image, sigma_mm: float) -> Image:
    sigma = sigma_mm / image.grid.spacing_mm
    smooth = [ndimage.gaussian_filter(channel.cpu().numpy(), sigma, mode="nearest") for channel in image.data]
    return image.with_data(torch.as_tensor(np.stack(smooth), dtype=image.data.dtype, device=image.data.device))
