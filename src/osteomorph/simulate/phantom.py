"""The pair of the demonstration and of the tests: a lumbar spine of middling difficulty, from a seed."""

from dataclasses import replace

import numpy as np

from osteomorph.simulate.build import draw_build
from osteomorph.simulate.motion import Motion
from osteomorph.simulate.pair import Settings, SimulatedPair, simulate
from osteomorph.simulate.trunk import Trunk

SETTINGS = Settings(
    view="lumbar",
    size_mm=(144.0, 136.0, 140.0),
    fixed_mm=(0.9, 0.9, 1.25),
    moving_mm=(0.85, 0.85, 1.3),
    motion=Motion(bone_mm=(2.0, 5.0), skin_mm=(6.0, 9.0), turn=1.5, offset_deg=(4.0, 4.0), offset_mm=(6.0, 6.0)),
    contrast="t2",
    extras=False,
)


def phantom(seed: int = 0, spacing_mm: float = 1.5) -> SimulatedPair:
    """Fixed sagittal oblique MR, moving LPS CT on another grid; five vertebrae and the sacrum move.

    spacing_mm: of a voxel with the same volume as the fixed image's; the grids themselves are anisotropic.
    """
    patient = Trunk(draw_build(np.random.default_rng((seed, 0))))
    return simulate(patient, SETTINGS.coarser(spacing_mm), seed)


def tiny(seed: int = 0) -> SimulatedPair:
    """The phantom at 3 mm, for tests."""
    return phantom(seed, spacing_mm=3.0)


def without_offset() -> Settings:
    """The phantom's settings for scanners that share one frame."""
    return replace(SETTINGS, motion=replace(SETTINGS.motion, offset_deg=(0.0, 0.0), offset_mm=(0.0, 0.0)))
