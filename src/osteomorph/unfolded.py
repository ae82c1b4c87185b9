"""Bones that move so much against each other that samples of the tissue between them fold are given more space between."""

from collections.abc import Callable, Mapping
from itertools import combinations

from osteomorph import fields
from osteomorph.joints import Gaps
from osteomorph.polyrigid import Polyrigid
from osteomorph.transforms import Displacement

GENTLE_STEPS = 2
"""Through time, up to which joints are taken to be too gentle to fold in samples; what is written is checked anyhow."""

LEAST_DETERMINANT = 0.05
"""Of the bones' motion as it is sampled."""

BESIDE_MM = 6.0
"""Distance from two regions up to which what folds is theirs."""

FIRST_MM = 2.5
WIDER = 1.6
"""Width between the rigid regions of two bones where their samples folded, and how much more where they still do."""

MOST_MM = 16.0


def unfolded(
    build: Callable[[Gaps], Polyrigid], sampled: Callable[[Polyrigid], Displacement]
) -> tuple[Polyrigid, Gaps, Displacement | None]:
    """The bones' transform, gaps widened in steps until its samples fold between no two bones; these gaps; and the samples,
    None where joints are gentle.

    build: (label, label) -> mm, the gaps that are not as usual -> the transform. sampled: it, or it before a rigid motion, on
    a grid. A transform without folds in truth (`Polyrigid`) folds in its samples where they are further apart than what they
    sample is wide. Gaps stop at `MOST_MM`; whoever writes samples looks for folds himself.
    """
    gaps: dict[tuple[int, int], float] = {}
    while True:
        base = build(gaps)
        if base.steps <= GENTLE_STEPS:
            return base, gaps, None
        motion = sampled(base)
        found = [pair for pair in folding(base, motion) if gaps.get(pair, 0.0) < MOST_MM]
        if not found:
            return base, gaps, motion
        for pair in found:
            gaps[pair] = min(MOST_MM, WIDER * gaps[pair] if pair in gaps else FIRST_MM)


def folding(base: Polyrigid, motion: Displacement) -> list[tuple[int, int]]:
    """Labels of the bones between which its samples fold, the lower one first."""
    folds = (fields.jacobian_determinant(motion.vectors, motion.grid) < LEAST_DETERMINANT).nonzero()
    if len(folds) == 0:
        return []
    points = motion.grid.world(folds.T.double())
    beside = {body.label: body.region(points) < BESIDE_MM for body in base.bodies}
    return [pair for pair in combinations(sorted(beside), 2) if bool((beside[pair[0]] & beside[pair[1]]).any())]


def widened_warnings(gaps: Mapping[tuple[int, int], float], names: Mapping[int, str]) -> list[str]:
    """One sentence for every two bones."""
    return [
        f"Bones {names.get(one, str(one))} and {names.get(other, str(other))} move so much against each other that a gap of "
        f"{mm:.2g} mm is left between them, or tissue would fold: what lies in it is not held rigid. Check their poses."
        for (one, other), mm in gaps.items()
    ]
