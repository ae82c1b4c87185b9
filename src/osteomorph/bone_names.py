"""Names of found bones: their kind where that is sure, sides, and levels of vertebrae counted up from the sacrum."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from osteomorph.bone_kinds import Kind

SURE = 0.9
"""Least chance of a kind that a bone is named by."""

SACRUM = 0.6
"""The same of the sacrum, of which an MR often shows but the upper end: it is the only one of its kind."""

NEXT_MM = 12.0
"""Widest gap between two vertebrae that follow one another, or the last one and the sacrum: a disc, where arches are missed."""

RIB_MM = 6.0
"""A rib that comes that near to a vertebra belongs to it, or to one of its neighbours."""

LARGER = 4.0
"""Times that a hip or a femur is larger than what else on its side is taken for one, a piece that came off it."""

LEVELS = (*(f"L{n}" for n in range(5, 0, -1)), *(f"T{n}" for n in range(12, 0, -1)), *(f"C{n}" for n in range(7, 0, -1)))
"""From the sacrum up."""

Boxes = Mapping[int, tuple[slice, slice, slice]]
"""Of every number that occurs."""


def bone_names(numbers: Int[np.ndarray, "i j k"], kinds: Mapping[int, Kind], spacing_mm: float) -> dict[int, str]:
    """Number -> name, of those that can be told. numbers: on a lattice whose axes run to the right, anterior and superior.

    Levels are counted from the sacrum, so that five lumbar vertebrae are taken for granted. They are told where one bone is
    most likely a sacrum, up to the first vertebra that is not sure or does not follow closely, and not at all where a rib
    lies at one that would be lumbar. Hips and femurs have sides, seen from the sacrum or from each other. Without a level or
    a side a bone is called by kind and number; one of another kind, or of which no kind is sure, has no name.
    """
    sure = {number: kind.name for number, kind in kinds.items() if kind.chance >= SURE and kind.name != "other"}
    out = {number: f"{kind} {number}" for number, kind in sure.items()}
    boxes = {k: box for k, box in enumerate(ndimage.find_objects(numbers), 1) if box is not None}
    kinds = {k: kind for k, kind in kinds.items() if k in boxes}
    centres = {
        k: spacing_mm * (np.array([s.start for s in boxes[k]]) + ndimage.center_of_mass(numbers[boxes[k]] == k)) for k in kinds
    }
    sizes = np.bincount(numbers.ravel())
    likely = {number: kind.chance for number, kind in kinds.items() if kind.name == "sacrum" and kind.chance >= SACRUM}
    sacra = [number for number, chance in likely.items() if chance >= SURE] or list(likely)
    if len(sacra) == 1:
        out[sacra[0]] = "sacrum"
        out |= _levels(numbers, boxes, sacra[0], kinds, centres, spacing_mm)
    for kind in ("hip", "femur"):
        out |= _sides(kind, [number for number, name in sure.items() if name == kind], centres, sizes, sacra)
    return out


def _levels(
    numbers: Int[np.ndarray, "i j k"],
    boxes: Boxes,
    sacrum: int,
    kinds: Mapping[int, Kind],
    centres: Mapping[int, Float[np.ndarray, "3"]],
    spacing_mm: float,
) -> dict[int, str]:
    vertebrae = {number for number, kind in kinds.items() if kind.name == "vertebra"}
    out: dict[int, str] = {}
    last = sacrum
    for level in LEVELS:
        above = {k for k in vertebrae - out.keys() if centres[k][2] > centres[last][2]}
        gaps = {k: gap for k, gap in _gaps(numbers, boxes, last, spacing_mm, NEXT_MM).items() if k in above}
        if not gaps:
            break
        last = min(gaps, key=lambda k: (centres[k][2], gaps[k]))  # the lowest that is near: spinous processes reach far down
        if kinds[last].chance < SURE:
            break
        out[last] = level
    ribs = [number for number, kind in kinds.items() if kind.name == "rib" and kind.chance >= SURE]
    lumbar = {number for number, level in out.items() if level[0] == "L"}
    for rib in ribs:
        gaps = _gaps(numbers, boxes, rib, spacing_mm, RIB_MM)
        near = [k for k in gaps if k in vertebrae]
        if near and min(near, key=lambda k: gaps[k]) in lumbar:
            return {}
    return out


def _gaps(
    numbers: Int[np.ndarray, "i j k"], boxes: Boxes, number: int, spacing_mm: float, within_mm: float
) -> dict[int, float]:
    """Of the other bones within a distance from a bone, that distance in mm."""
    box = boxes[number]
    wide = int(np.ceil(within_mm / spacing_mm)) + 1
    around = tuple(slice(max(0, s.start - wide), s.stop + wide) for s in box)
    here = numbers[around]
    distance = spacing_mm * ndimage.distance_transform_edt(here != number)
    others = [int(k) for k in np.unique(here[distance <= within_mm]) if k not in (0, number)]
    return {k: float(distance[here == k].min()) for k in others}


def _sides(
    kind: str,
    ids: list[int],
    centres: Mapping[int, Float[np.ndarray, "3"]],
    sizes: Int[np.ndarray, " n"],
    sacra: list[int],
) -> dict[int, str]:
    """Left and right of the sacrum, or of each other."""
    if len(sacra) == 1:
        middle = centres[sacra[0]][0]
    elif len(ids) == 2:
        middle = float(np.mean([centres[k][0] for k in ids]))
    else:
        return {}
    out = {}
    for side, there in (
        ("left", [k for k in ids if centres[k][0] < middle]),
        ("right", [k for k in ids if centres[k][0] >= middle]),
    ):
        largest = sorted(there, key=lambda k: -sizes[k])
        if largest and (len(largest) == 1 or sizes[largest[0]] >= LARGER * sizes[largest[1]]):
            out[largest[0]] = f"{kind}_{side}"
    return out
