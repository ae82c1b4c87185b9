"""From a rigid start to a smooth field that may be far from it: the discrete search, MIND-SSC described anew at every level."""

import numpy as np
import torch

from osteomorph.case import Case
from osteomorph.descent import Progress
from osteomorph.discrete import discrete_step, followed, rigid_part
from osteomorph.foreground import foreground
from osteomorph.geometry import Grid
from osteomorph.image import Image
from osteomorph.plan import DiscreteLevel, DiscretePlan
from osteomorph.resampling import regrid, resample
from osteomorph.similarity import mind_ssc
from osteomorph.threads import spread
from osteomorph.transforms import Displacement, Rigid

DESCRIBED = 3
"""Voxels that a description looks around itself: dilation and radius of MIND-SSC."""


def wide_field(case: Case, prepared: Case, start: Rigid, plan: DiscretePlan, progress: Progress | None = None) -> Displacement:
    """u in mm, fixed mm -> fixed mm: x + u(x), then the start, leads to what the fixed image shows at x.

    case: as given, for the network, which wants the intensities of the files. prepared: from it, about [0, 1].
    plan: at least one level. Reaches the sum of the levels' reaches. Air has no say, nor has what either mask leaves out.
    """
    weight = foreground(prepared.fixed) if prepared.fixed_mask is None else prepared.fixed_mask
    there = prepared.moving.grid.moved(start.inverse().matrix)
    network = _network_features(case, start) if any(level.features == "network" for level in plan.levels) else None
    found: Displacement | None = None
    for n, level in enumerate(plan.levels):
        if progress is not None:
            progress("guess", n, len(plan.levels))
        if level.features == "network" and network is not None:
            found = discrete_step(*network, level, plan, weight, _known(prepared, there), found)
        else:
            field = _described(prepared, start, level, plan, weight, found)
            found = field if found is None else followed(field, found)
        if level.rigid:
            found = rigid_part(found, there, weight)
    if progress is not None:
        progress("guess", len(plan.levels), len(plan.levels))
    if found is None:
        raise ValueError("A wide search needs at least one level.")
    return found


def _described(
    prepared: Case, start: Rigid, level: DiscreteLevel, plan: DiscretePlan, weight: Image, found: Displacement | None
) -> Displacement:
    """What is left after a field, by MIND-SSC of the moving image as that field has it."""
    fixed = _at(prepared.fixed, level.spacing_mm)
    width = np.ceil(level.reach_mm / fixed.grid.spacing_mm).astype(int) + DESCRIBED
    onto = fixed.grid.padded((int(width[0]), int(width[1]), int(width[2])))
    through = start if found is None else start.after(found)
    moved = resample(_at(prepared.moving, level.spacing_mm), through, onto, outside="border")
    here, there = spread(lambda image: image.with_data(mind_ssc(image.data[:1])), (fixed, moved))
    return discrete_step(
        here,
        there,
        level,
        plan,
        weight,
        resample(_known(prepared, prepared.moving.grid), through, onto, outside=0.0),
    )


def _network_features(case: Case, start: Rigid) -> tuple[Image, Image]:
    """Of both images, the moving one's under its start. They do not turn with it, but were trained to match when turned."""
    from osteomorph.found_bones import features_of

    fixed, moving = spread(features_of, (case.fixed, case.moving))
    return fixed, Image(moving.data, moving.grid.moved(start.inverse().matrix))


def _known(prepared: Case, grid: Grid) -> Image:
    """The moving mask, or 1 where there is none, on the moving grid or on where the start takes it."""
    mask = prepared.moving_mask
    return Image(torch.ones_like(prepared.moving.data[:1]) if mask is None else mask.data, grid)


def _at(image: Image, spacing_mm: float) -> Image:
    return regrid(image, image.grid.resampled(np.maximum(spacing_mm, image.grid.spacing_mm)))
