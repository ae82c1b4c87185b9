"""Bones that move so much against each other that samples of the tissue between them fold are given more space between."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch.nn.functional import max_pool3d

from osteomorph import fields
from osteomorph.geometry import Grid
from osteomorph.image import Part
from osteomorph.joints import Gaps
from osteomorph.polyrigid import Polyrigid
from osteomorph.threads import spread

GENTLE = 2.0
"""Steepness s between two bones up to which samples are taken not to fold: the flow shrinks no length by more than exp(s), so
.14 is left. Hips folded at 3.07, in samples 1.9 mm apart. What is written is checked anyhow."""

LEAST_DETERMINANT = 0.05
"""Of the bones' motion as it is sampled."""

BESIDE_MM = 6.0
"""Distance from two regions up to which what folds is theirs."""

FIRST_MM = 2.5
WIDER = 1.6
"""Width between the rigid regions of two bones where their samples folded, and how much more where they still do."""

MOST_MM = 16.0


def unfolded(build: Callable[[Gaps], Polyrigid], onto: Grid) -> tuple[Polyrigid, Gaps]:
    """The bones' transform, gaps widened in steps until its samples fold between no two bones; and these gaps.

    build: (label, label) -> mm, the gaps that are not as usual -> the transform. onto: of the samples. A transform
    without folds in truth (`Polyrigid`) folds in its samples where they are further apart than what they sample is wide. Gaps
    stop at `MOST_MM`; whoever writes samples looks for folds himself.
    """
    gaps: dict[tuple[int, int], float] = {}
    while True:
        base = build(gaps)
        steep = [pair for pair, value in base.steepness.items() if value > GENTLE and gaps.get(pair, 0.0) < MOST_MM]
        checked = spread(partial(folds, base, onto), steep)
        found = [pair for pair, folded in zip(steep, checked, strict=True) if folded]
        if not found:
            return base, gaps
        for pair in found:
            gaps[pair] = min(MOST_MM, WIDER * gaps[pair] if pair in gaps else FIRST_MM)


def folds(base: Polyrigid, onto: Grid, pair: tuple[int, int]) -> bool:
    """Whether its samples fold between two bones. They are computed there alone, and around it by a voxel."""
    regions = [body.region for body in base.bodies if body.label in pair]
    part = _shared(regions[0].box_on(onto, BESIDE_MM), regions[1].box_on(onto, BESIDE_MM), onto)
    if part is None:
        return False
    grid = onto.cropped(part)
    between = (regions[0].on(grid) < BESIDE_MM) & (regions[1].on(grid) < BESIDE_MM)
    wanted = max_pool3d(between.float()[None], 3, 1, 1)[0] > 0
    points = grid.world(wanted.nonzero().T.double())
    motion = torch.zeros(3, *grid.shape)
    motion[:, wanted] = (base.moved(points) - points).float()
    return bool((fields.jacobian_determinant(motion, grid)[between] < LEAST_DETERMINANT).any())


def _shared(one: Part | None, other: Part | None, grid: Grid) -> Part | None:
    """What two parts of a grid share, and a voxel around it."""
    if one is None or other is None:
        return None
    low = [max(0, max(a.start, b.start) - 1) for a, b in zip(one, other, strict=True)]
    high = [min(n, min(a.stop, b.stop) + 1) for a, b, n in zip(one, other, grid.shape, strict=True)]
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
