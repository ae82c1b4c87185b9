"""From a rigid start to a smooth field that may be far from it: the discrete search, MIND-SSC described anew at every level."""

from functools import partial

import numpy as np

from osteomorph.body_part import about, body_corners_mm
from osteomorph.bone_network import BoneNetwork
from osteomorph.case import Case
from osteomorph.descent import Progress
from osteomorph.discrete import discrete_step, followed, rigid_part
from osteomorph.foreground import foreground
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image
from osteomorph.plan import DiscreteLevel, DiscretePlan
from osteomorph.resampling import coarser
from osteomorph.similarity import mind_ssc
from osteomorph.threads import spread
from osteomorph.transforms import Displacement, Rigid

DESCRIBED = 3
"""Voxels that a description looks around itself: dilation and radius of MIND-SSC."""


def wide_field(
    case: Case,
    prepared: Case,
    start: Rigid,
    plan: DiscretePlan,
    progress: Progress | None = None,
    network: BoneNetwork | None = None,
) -> Displacement:
    """u in mm, fixed mm -> fixed mm: x + u(x), then the start, leads to what the fixed image shows at x.

    case: as given, for the network, which wants the intensities of the files. prepared: from it, about [0, 1].
    plan: at least one level. network: of the features, the shipped one by default. Reaches the sum of the levels' reaches. Air
    has no say, nor has what either mask leaves out; far from the body there are no nodes.
    """
    body = body_corners_mm(prepared.fixed, prepared.fixed_mask)
    weight = foreground(prepared.fixed) if prepared.fixed_mask is None else prepared.fixed_mask
    there = prepared.moving.grid.moved(start.inverse().matrix)
    learned = any(level.features == "network" for level in plan.levels)
    shown = body_corners_mm(prepared.moving)
    features = _network_features(about(case.fixed, body), about(case.moving, shown), start, network) if learned else None
    found: Displacement | None = None
    here: dict[float, Image] = {}
    for n, level in enumerate(plan.levels):
        if progress is not None:
            progress("guess", n, len(plan.levels))
        if level.features == "network" and features is not None:
            found = discrete_step(*features, level, plan, weight, _known(prepared, there), found)
        else:
            if level.spacing_mm not in here:
                here[level.spacing_mm] = _mind(about(coarser(prepared.fixed, level.spacing_mm), body))
            field = _described(here[level.spacing_mm], prepared, start, level, plan, weight, found)
            found = field if found is None else followed(field, found)
        if level.rigid:
            found = rigid_part(found, there, weight)
    if progress is not None:
        progress("guess", len(plan.levels), len(plan.levels))
    if found is None:
        raise ValueError("A wide search needs at least one level.")
    return found


def _described(
    here: Image,
    prepared: Case,
    start: Rigid,
    level: DiscreteLevel,
    plan: DiscretePlan,
    weight: Image,
    found: Displacement | None,
) -> Displacement:
    """What is left after a field, by MIND-SSC of the fixed image (here) and of the moving one as that field has it."""
    width = np.ceil(level.reach_mm / here.grid.spacing_mm).astype(int) + DESCRIBED
    onto = here.grid.padded((int(width[0]), int(width[1]), int(width[2])))
    through = start if found is None else start.after(found)
    there = through.carried(onto)
    moving = coarser(prepared.moving, level.spacing_mm)
    moved = Image(sample(moving.data[:1], moving.grid, there.float()).unflatten(1, onto.shape), onto)
    known = prepared.moving.grid.contains(there).float()
    if prepared.moving_mask is not None:
        known *= sample(prepared.moving_mask.data, prepared.moving_mask.grid, there, outside=0.0)[0]
    return discrete_step(here, _mind(moved), level, plan, weight, Image(known.unflatten(0, onto.shape)[None], onto))


def _mind(image: Image) -> Image:
    return image.with_data(mind_ssc(image.data[:1], by_voxel=False))


def _network_features(fixed: Image, moving: Image, start: Rigid, network: BoneNetwork | None) -> tuple[Image, Image]:
    """Of both images, the moving one's under its start. They do not turn with it, but were trained to match when turned."""
    from osteomorph.found_bones import features_of

    here, there = spread(partial(features_of, network=network), (fixed, moving))
    return here, Image(there.data, there.grid.moved(start.inverse().matrix))


def _known(prepared: Case, grid: Grid) -> Image | None:
    """The moving mask, where there is one, on the moving grid or on where the start takes it."""
    mask = prepared.moving_mask
    return None if mask is None else Image(mask.data, grid)
