"""Bones of a label map drawn apart where they touch: two bones that move need a joint space between them."""

from collections.abc import Mapping
from itertools import combinations

import torch

from osteomorph.distances import DistanceMap
from osteomorph.geometry import Grid

Corner = tuple[int, int, int]


def separated(
    maps: Mapping[int, DistanceMap], grid: Grid, names: Mapping[int, str], gap_mm: float
) -> tuple[dict[int, DistanceMap], tuple[str, ...]]:
    """Maps whose pairwise sum is at least ``gap_mm`` everywhere, and a sentence on each pair that was nearer.

    Both bones of a pair give alike: a becomes max(a, (a - b + gap) / 2), and b likewise. The sum of the two is then at least
    the gap, also between voxels, and a distance that changes by 1 mm per mm still does.

    maps: on crops of the lattice of ``grid``.
    """
    corners = {label: corner(part.grid, grid) for label, part in maps.items()}
    out = {label: part.values[0].clone() for label, part in maps.items()}
    notes = []
    for one, other in combinations(sorted(maps), 2):
        boxes = shared(corners[one], maps[one], corners[other], maps[other])
        if boxes is None:
            continue
        a, b = maps[one].values[0][boxes[0]], maps[other].values[0][boxes[1]]
        near = float((a + b).min())
        if near >= gap_mm:
            continue
        lost = 0
        for label, box, own, others in ((one, boxes[0], a, b), (other, boxes[1], b, a)):
            moved = torch.maximum(own, (own - others + gap_mm) / 2)
            lost += int(((own < 0) & (moved >= 0)).sum())
            out[label][box] = torch.maximum(out[label][box], moved)
        how = "touch" if near < 0.1 else f"are {near:.1f} mm apart"
        many = "voxel was" if lost == 1 else "voxels were"
        taken = f"{lost} {many} taken from their rims" if lost else "their surfaces were drawn in"
        notes.append(f"{names[one]} and {names[other]} {how}: {taken} to leave {gap_mm:g} mm.")
    return {label: DistanceMap(values[None], maps[label].grid) for label, values in out.items()}, tuple(notes)


def corner(crop: Grid, grid: Grid) -> Corner:
    i, j, k = grid.index(torch.as_tensor(crop.affine[:3, 3:].copy())).round().int()[:, 0].tolist()
    return i, j, k


def shared(
    one: Corner, first: DistanceMap, other: Corner, second: DistanceMap
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """The voxels that two crops share, as slices into each."""
    mine, yours = [], []
    for p, n, q, m in zip(one, first.grid.shape, other, second.grid.shape, strict=True):
        low, high = max(p, q), min(p + n, q + m)
        if low >= high:
            return None
        mine.append(slice(low - p, high - p))
        yours.append(slice(low - q, high - q))
    return tuple(mine), tuple(yours)
