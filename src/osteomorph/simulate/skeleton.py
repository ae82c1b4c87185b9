"""Bones of a label map as bodies that touch no other, and the fields of view that suit them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import ndimage

from osteomorph.distances import DistanceMap, distance_maps
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.simulate import tree
from osteomorph.simulate.anatomy import View
from osteomorph.simulate.levels import cord_end_mm, spine
from osteomorph.simulate.naming import VERTEBRAE, Structure, bone_labels
from osteomorph.simulate.tissues import Bones
from osteomorph.simulate.touching import separated

REACH_MM = 14.0
"""To which distances to bones are known."""

LEAST_BONE_VOXELS = 30
BORDER_MM = 10.0
"""By which a view is smaller than the scan at every side."""


def dense_labels(ct: Image, labels: Labels) -> list[int]:
    """Labels that are bone by density: a median above 100 HU, and a rim with the densest part in it."""
    hu, data = ct.data[0].numpy(), labels.data[0].numpy()
    out = []
    for label, part in distance_maps(labels, reach_mm=2.0).items():
        values = hu[data == label]
        depth = -part.values[0][part.inside].numpy()  # in the same order
        rim = depth < max(3.0, float(np.median(depth)))
        core = float(np.median(values[~rim])) if not rim.all() else 0.0
        if np.median(values) > 100 and np.percentile(values[rim], 90) > max(250.0, core + 60):
            out.append(label)
    return out


def skeleton(labels: Labels, known: Mapping[int, Structure], gap_mm: float) -> tuple[Bones, dict[int, str], tuple[str, ...]]:
    """Bones under ids of their own, drawn apart by ``gap_mm``, their names, and what the user should know.

    Raises InputError: no label is a bone, or one alone is.
    """
    count = torch.bincount(labels.data.flatten().int().clamp(max=max([0, *known]) + 1))
    parts: dict[str, list[int]] = {}
    for label, what in sorted(known.items()):
        if what.kind == "bone" and label < len(count) and count[label] > 0:
            parts.setdefault(what.name, []).append(label)
    notes = []
    for name, ids in list(parts.items()):
        voxels = int(sum(count[label] for label in ids))
        if voxels < LEAST_BONE_VOXELS:
            del parts[name]
            notes.append(f"{name} has {voxels} voxels alone, too few to move as a bone: it is left where it is.")
    if not parts:
        some = ", ".join(f"{label} {labels.names.get(label, '')}".strip() for label in labels.ids()[:12])
        raise InputError(
            f"The label map holds no label that is a bone (it holds {some}); name them in JSON, "
            'such as {"1": "vertebrae_L5", "8": "sacrum"}.'
        )
    if len(parts) == 1:
        raise InputError(
            f"The label map holds one bone alone ({next(iter(parts))}), and one bone alone cannot move against another; "
            "give labels of at least two."
        )
    own = bone_labels(list(parts))
    if all(name.startswith("bone_") for name in parts):
        own = {name: ids[0] for name, ids in parts.items()}
    names = {own[name]: name for name in sorted(parts, key=lambda name: own[name])}
    sources = {label: tuple(parts[name]) for label, name in names.items()}
    last = max(known)
    table = np.zeros(last + 2, dtype=np.int32)
    for label, parents in sources.items():
        table[list(parents)] = label
    renamed = torch.from_numpy(table[np.minimum(labels.data.numpy(), last + 1)])
    _fill(renamed[0].numpy(), list(names))
    maps = distance_maps(Labels(renamed, labels.grid), list(names), reach_mm=REACH_MM + float(labels.grid.spacing_mm.max()))
    maps, warnings = separated(maps, labels.grid, names, gap_mm)
    maps = {label: part for label, part in maps.items() if bool(part.inside.any())}
    by_name = {name: label for label, name in names.items() if label in maps}
    shape = spine(tree.spine_order(by_name), maps, by_name.get("sacrum"))
    names = {label: name for label, name in names.items() if label in maps}
    return Bones(maps, sources, shape, cord_end_mm(shape, by_name)), names, (*notes, *warnings)


def _fill(data: np.ndarray, ids: Sequence[int]) -> None:
    """Hollows of bones become bone: segmentations leave marrow out."""
    for label, box in zip(range(1, max(ids) + 1), ndimage.find_objects(data, max_label=max(ids)), strict=True):
        if box is not None:
            part = data[box]
            part[ndimage.binary_fill_holes(part == label) & (part == 0)] = label


def views_of(grid: Grid, names: Mapping[int, str], maps: Mapping[int, DistanceMap]) -> dict[str, View]:
    """The scan but for its border; with two vertebrae or more, the spine with what is around it."""
    half = _inner_half(grid)
    whole = [label for label, part in maps.items() if _is_whole(part, grid)] or list(maps)
    out = {"whole": _view(grid.centre_mm - half, grid.centre_mm + half, whole)}
    ends = {label: _bounds(maps[label]) for label, name in names.items() if name in VERTEBRAE}
    if len(ends) < 2:
        return out
    low = np.min([end[0] for end in ends.values()], axis=0) - np.array([25.0, 15.0, 5.0])
    high = np.max([end[1] for end in ends.values()], axis=0) + np.array([25.0, 35.0, 5.0])
    low, high = np.maximum(low, grid.centre_mm - half), np.minimum(high, grid.centre_mm + half)
    inside = [label for label in whole if label in ends and (ends[label][0] > low).all() and (ends[label][1] < high).all()]
    inside = inside or [label for label in ends if label in whole] or list(ends)
    return {**out, "spine": _view(low, high, inside)}


def _view(low: np.ndarray, high: np.ndarray, labelled: Sequence[int]) -> View:
    x, y, z = (float(v) for v in (low + high) / 2)
    a, b, c = (float(v) for v in high - low)
    return View((x, y, z), (a, b, c), tuple(sorted(labelled)))


def _inner_half(grid: Grid) -> np.ndarray:
    """(3,) half the box along x, y, z that lies in a field of view, BORDER_MM from its faces."""
    room = np.maximum(grid.size_mm / 2 - BORDER_MM, grid.size_mm / 4)
    turn = np.abs(grid.direction)
    half = room[turn.argmax(1)]
    return half * (room / (turn.T @ half)).min()


def _bounds(part: DistanceMap) -> tuple[np.ndarray, np.ndarray]:
    points = part.grid.world(part.inside.nonzero().T.double()).numpy()
    return points.min(1), points.max(1)


def _is_whole(part: DistanceMap, grid: Grid) -> bool:
    """Whether a bone stays off the scan's border."""
    index = grid.index(part.grid.world(part.inside.nonzero().T.double())).round().numpy()
    return bool((index.min(1) >= 1).all() and (index.max(1) <= np.array(grid.shape) - 2).all())
