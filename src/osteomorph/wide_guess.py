"""From a rigid start to a smooth field that may be far from it: the discrete search, MIND-SSC described anew at every level."""

import numpy as np
import torch

from osteomorph.case import Case
from osteomorph.descent import Progress
from osteomorph.discrete import discrete_step, followed, rigid_part
from osteomorph.foreground import foreground
from osteomorph.image import Image
from osteomorph.plan import DiscretePlan
from osteomorph.resampling import regrid, resample
from osteomorph.similarity import mind_ssc
from osteomorph.transforms import Displacement, Rigid

DESCRIBED = 3
"""Voxels that a description looks around itself: dilation and radius of MIND-SSC."""


def wide_field(prepared: Case, start: Rigid, plan: DiscretePlan, progress: Progress | None = None) -> Displacement:
    """u in mm, fixed mm -> fixed mm: x + u(x), then the start, leads to what the fixed image shows at x.

    prepared: intensities about [0, 1]. plan: at least one level. Reaches the sum of the levels' reaches. Air has no say,
    nor has what either mask leaves out.
    """
    weight = foreground(prepared.fixed) if prepared.fixed_mask is None else prepared.fixed_mask
    moving = prepared.moving
    known = Image(torch.ones_like(moving.data[:1]), moving.grid) if prepared.moving_mask is None else prepared.moving_mask
    there = moving.grid.moved(start.inverse().matrix)
    found: Displacement | None = None
    for n, level in enumerate(plan.levels):
        if progress is not None:
            progress("guess", n, len(plan.levels))
        fixed = _at(prepared.fixed, level.spacing_mm)
        width = np.ceil(level.reach_mm / fixed.grid.spacing_mm).astype(int) + DESCRIBED
        onto = fixed.grid.padded((int(width[0]), int(width[1]), int(width[2])))
        through = start if found is None else start.after(found)
        moved = resample(_at(moving, level.spacing_mm), through, onto, outside="border")
        field = discrete_step(
            fixed.with_data(mind_ssc(fixed.data[:1])),
            moved.with_data(mind_ssc(moved.data[:1])),
            level,
            plan,
            weight,
            resample(known, through, onto, outside=0.0),
        )
        found = field if found is None else followed(field, found)
        if level.rigid:
            found = rigid_part(found, there, weight)
    if progress is not None:
        progress("guess", len(plan.levels), len(plan.levels))
    if found is None:
        raise ValueError("A wide search needs at least one level.")
    return found


def _at(image: Image, spacing_mm: float) -> Image:
    return regrid(image, image.grid.resampled(np.maximum(spacing_mm, image.grid.spacing_mm)))
