"""Bones that move so much against each other that samples of the tissue between them fold are given more space between."""

from collections.abc import Callable, Mapping

from osteomorph import fields
from osteomorph.geometry import Grid
from osteomorph.image import Part
from osteomorph.joints import Gaps
from osteomorph.lattice import lattice
from osteomorph.polyrigid import Polyrigid

GENTLE = 4.0
"""Steepness between two bones up to which samples are taken not to fold; what is written is checked anyhow."""

LEAST_DETERMINANT = 0.05
"""Of the bones' motion as it is sampled."""

BESIDE_MM = 6.0
"""Distance from two regions up to which what folds is theirs."""

FIRST_MM = 2.5
WIDER = 1.6
"""Width between the rigid regions of two bones where their samples folded, and how much more where they still do."""

MOST_MM = 16.0

ALIGNED = 8
"""Voxels from which on a part begins, so that a lattice has the same nodes there as on the whole grid."""


def unfolded(build: Callable[[Gaps], Polyrigid], onto: Grid, tolerance_mm: float) -> tuple[Polyrigid, Gaps]:
    """The bones' transform, gaps widened in steps until its samples fold between no two bones; and these gaps.

    build: (label, label) -> mm, the gaps that are not as usual -> the transform. onto, tolerance_mm: of the samples, see
    `lattice`. A transform without folds in truth (`Polyrigid`) folds in its samples where they are further apart than what they
    sample is wide. Gaps stop at `MOST_MM`; whoever writes samples looks for folds himself.
    """
    gaps: dict[tuple[int, int], float] = {}
    while True:
        base = build(gaps)
        steep = [pair for pair, value in base.steepness.items() if value > GENTLE and gaps.get(pair, 0.0) < MOST_MM]
        found = [pair for pair in steep if folds(base, pair, onto, tolerance_mm)]
        if not found:
            return base, gaps
        for pair in found:
            gaps[pair] = min(MOST_MM, WIDER * gaps[pair] if pair in gaps else FIRST_MM)


def folds(base: Polyrigid, pair: tuple[int, int], onto: Grid, tolerance_mm: float) -> bool:
    """Whether its samples fold between two bones."""
    regions = [body.region for body in base.bodies if body.label in pair]
    part = _beside(regions[0].box_on(onto, BESIDE_MM), regions[1].box_on(onto, BESIDE_MM))
    if part is None:
        return False
    motion = lattice(base, onto.cropped(part), tolerance_mm)
    found = (fields.jacobian_determinant(motion.vectors, motion.grid) < LEAST_DETERMINANT).nonzero()
    points = motion.grid.world(found.T.double())
    return len(found) > 0 and bool(((regions[0](points) < BESIDE_MM) & (regions[1](points) < BESIDE_MM)).any())


def _beside(one: Part | None, other: Part | None) -> Part | None:
    """What two parts share, from a voxel on that is `ALIGNED`."""
    if one is None or other is None:
        return None
    low = [max(a.start, b.start) // ALIGNED * ALIGNED for a, b in zip(one, other, strict=True)]
    high = [min(a.stop, b.stop) for a, b in zip(one, other, strict=True)]
    if any(end - start < 2 for start, end in zip(low, high, strict=True)):
        return None
    return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])


def widened_warnings(gaps: Mapping[tuple[int, int], float], names: Mapping[int, str]) -> list[str]:
    """One sentence for every two bones."""
    return [
        f"Bones {names.get(one, str(one))} and {names.get(other, str(other))} move so much against each other that a gap of "
        f"{mm:.2g} mm is left between them, or tissue would fold: what lies in it is not held rigid. Check their poses."
        for (one, other), mm in gaps.items()
    ]
