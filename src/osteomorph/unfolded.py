"""Bones that move so much against each other that samples of the tissue between them fold are given more space between."""

from collections.abc import Callable, Mapping
from itertools import combinations

import torch

from osteomorph import fields
from osteomorph.geometry import Grid
from osteomorph.image import Part
from osteomorph.joints import Gaps
from osteomorph.lattice import lattice
from osteomorph.polyrigid import Polyrigid

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


def unfolded(build: Callable[[Gaps], Polyrigid], grid: Grid, tolerance_mm: float) -> tuple[Polyrigid, Gaps]:
    """The bones' transform, gaps widened in steps until its samples on a grid fold between no two bones, and these gaps.

    build: (label, label) -> mm, the gaps that are not as usual -> the transform. tolerance_mm: of the samples. A transform
    without folds in truth (`Polyrigid`) folds in its samples where they are further apart than what they sample is wide. Gaps
    stop at `MOST_MM`; whoever writes samples looks for folds himself.
    """
    gaps: dict[tuple[int, int], float] = {}
    while True:
        base = build(gaps)
        found = [pair for pair in folding(base, grid, tolerance_mm) if gaps.get(pair, 0.0) < MOST_MM]
        if not found:
            return base, gaps
        for pair in found:
            gaps[pair] = min(MOST_MM, WIDER * gaps[pair] if pair in gaps else FIRST_MM)


def folding(base: Polyrigid, grid: Grid, tolerance_mm: float) -> list[tuple[int, int]]:
    """Labels of the bones between which the transform folds as it is sampled, the lower one first."""
    if base.steps <= GENTLE_STEPS:
        return []
    boxes = {body.label: body.region.box_on(grid, BESIDE_MM) for body in base.bodies}
    out = []
    for one, other in combinations(base.bodies, 2):
        box = _shared(boxes[one.label], boxes[other.label])
        if box is None:
            continue
        part = grid.cropped(box)
        beside = torch.maximum(one.region.on(part), other.region.on(part)) < BESIDE_MM
        if not beside.any():
            continue
        determinant = fields.jacobian_determinant(lattice(base, part, tolerance_mm).vectors, part)
        if float(determinant[beside].min()) < LEAST_DETERMINANT:
            out.append((min(one.label, other.label), max(one.label, other.label)))
    return out


def _shared(one: Part | None, other: Part | None) -> Part | None:
    """Voxels of two boxes, with enough of them along each axis for a derivative; None where there are none."""
    if one is None or other is None:
        return None
    both = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)]
    return None if any(s.stop - s.start < 3 for s in both) else (both[0], both[1], both[2])


def widened_warnings(gaps: Mapping[tuple[int, int], float], names: Mapping[int, str]) -> list[str]:
    """One sentence for every two bones."""
    return [
        f"Bones {names.get(one, str(one))} and {names.get(other, str(other))} move so much against each other that a gap of "
        f"{mm:.2g} mm is left between them, or tissue would fold: what lies in it is not held rigid. Check their poses."
        for (one, other), mm in gaps.items()
    ]
