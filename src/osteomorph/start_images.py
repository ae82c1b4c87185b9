"""A rigid start on images alone: mutual information over six degrees of freedom, coarse to fine, from several poses."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from osteomorph.case import Case
from osteomorph.errors import StartError
from osteomorph.foreground import foreground
from osteomorph.geometry import Grid, overlap_mm3, sample
from osteomorph.image import Image
from osteomorph.plan import InitialisePlan
from osteomorph.resampling import regrid
from osteomorph.similarity import mutual_information
from osteomorph.transforms import Rigid

TURN_DEG = 18.0
"""Each first guess is also tried turned by this much about each axis."""
SHIFTS_MM = (-80.0, -40.0, 40.0, 80.0)
"""And shifted by this much along the body, where one image is longer than the other by LONGER_MM."""
LONGER_MM = 40.0
KEPT = 3
"""Poses that go on from the coarsest resolution to the next."""
SAMPLES = 40_000
"""Points of the fixed image looked at in a step; the finer resolutions are read on lattices that shift."""
STEPS = 30
"""Of Adam at each resolution."""
LEVELS = 128
"""Nodes of the fine histogram."""
LEAST_OVERLAP = 0.3
"""Share of the smaller body that has to lie in the other."""
CHANCE_POSES = 24
"""Poses drawn 30-60 mm or 30-60 degrees away, that say what mutual information chance gives."""
LEAST_GAIN = 1.5
"""How many times the mutual information of chance the start has to reach."""
RIVAL = 0.93
"""A second pose that reaches this much of the best one's mutual information makes the start ambiguous ..."""
APART_MM = 10.0
"""... when it carries the corners of the body this far from it."""

Found = tuple[Rigid, str, float, tuple[str, ...]]


@final
@dataclass(frozen=True, eq=False)
class Level:
    """Both images and their bodies (0 to 1) at one resolution."""

    fixed: Image
    moving: Image
    fixed_body: Image
    moving_body: Image
    fixed_weight: Image | None
    moving_weight: Image | None


def start_on_images(case: Case, plan: InitialisePlan, seed: int, from_centres: bool) -> Found:
    """Rigid, method, mutual information in nats, warnings. Raises StartError when the start cannot be trusted."""
    if not from_centres and overlap_mm3(case.fixed.grid, case.moving.grid) == 0:
        raise StartError(
            "The fields of view do not overlap: the images are in different frames. Give labels of both images, or begin at "
            "their centres (--initial centres), or give a transform (--initial TRANSFORM)."
        )
    levels = [_level(case, spacing) for spacing in plan.spacings_mm]
    centre = _body_centre(levels[0].fixed_body)
    poses = _first_poses(levels[0], centre, from_centres)
    scores = np.zeros(len(poses))
    for rank, level in enumerate(levels):
        coarse = rank == 0
        poses, scores = _climb(level, poses, centre, plan.bins, step_mm=float(level.fixed.grid.spacing_mm[0]) / 2, coarse=coarse)
        if rank < 2:
            poses, scores = _distinct(poses, scores, centre, level)
