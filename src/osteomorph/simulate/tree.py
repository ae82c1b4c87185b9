"""Which bone hangs on which, about what point, and how far it turns: joints from names and geometry."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy.spatial import cKDTree

from osteomorph.distances import DistanceMap
from osteomorph.geometry import Grid
from osteomorph.simulate.anatomy import Joint, Triple
from osteomorph.simulate.naming import VERTEBRAE
from osteomorph.simulate.touching import corner, shared

Pair = tuple[int, int]

HEAD_MM = 6.0
"""Distance to the hip within which a femur's surface is its head's."""

FREEDOM: dict[str, tuple[Triple, float]] = {
    "root": ((1.5, 1.0, 1.0), 1.0),
    "lumbar": ((3.0, 2.1, 2.1), 1.0),
    "sacroiliac": ((0.6, 0.6, 0.6), 0.3),
    "hip": ((12.0, 8.0, 10.0), 0.3),
    "rib": ((4.0, 2.0, 3.0), 0.5),
    "other": ((2.0, 2.0, 2.0), 0.5),
}
"""Kind of joint -> usual largest turn in degrees about x, y, z and shift in mm."""


def joints(
    names: Mapping[int, str], maps: Mapping[int, DistanceMap], grid: Grid, discs: Mapping[Pair, np.ndarray]
) -> tuple[Joint, ...]:
    """One for every bone, parents first: the tree hangs on the sacrum, else on the largest bone.

    maps: on crops of the lattice of ``grid``. discs: (upper, lower) vertebra -> (3,) mm about which the upper turns.
    """
    by_name = {name: label for label, name in names.items()}
    root = by_name.get("sacrum", max(maps, key=lambda label: _volume(maps[label])))
    surfaces = {label: surface_points(part) for label, part in maps.items()}
    out = [Joint(root, None, _triple(surfaces[root].mean(0)), FREEDOM["root"][0], (FREEDOM["root"][1],) * 3)]
    for parent, bone in _edges(by_name, surfaces, root):
        kind = _kind(names[parent], names[bone])
        disc = discs.get((bone, parent), discs.get((parent, bone)))
        if disc is not None:
            centre = disc
        elif kind == "hip":
            femur, hip = (bone, parent) if "femur" in names[bone] else (parent, bone)
            centre = head_centre(maps[femur], maps[hip])
        else:
            centre = meeting_point(maps[bone], maps[parent], grid, surfaces[bone], surfaces[parent])
        turn, shift = FREEDOM[kind]
        out.append(Joint(bone, parent, _triple(centre), turn, (shift,) * 3))
    return tuple(out)


def spine_order(by_name: Mapping[str, int]) -> list[int]:
    """Vertebrae from the skull down, then the sacrum."""
    return [by_name[name] for name in (*VERTEBRAE, "sacrum") if name in by_name]


def _edges(by_name: Mapping[str, int], surfaces: Mapping[int, np.ndarray], root: int) -> list[Pair]:
    """(parent, bone), parents first: known joints, then each part that is left on the bone nearest to it."""
    known = list(pairwise(spine_order(by_name)))
    for name, label in by_name.items():
        on = None
        if name.startswith(("hip_", "pelvis")):
            on = by_name.get("sacrum")
        elif name.startswith("femur_"):
            on = by_name.get(name.replace("femur", "hip"), by_name.get("pelvis"))
        elif name.startswith("rib_"):
            on = by_name.get(f"T{name.rsplit('_', 1)[1]}")
        if on is not None:
            known.append((on, label))
    trees = {label: cKDTree(points) for label, points in surfaces.items()}
    near: dict[Pair, float] = {}
    out: list[Pair] = []
    reached = [root]
    while True:
        for parent in reached:  # grows while it is walked: breadth first
            for pair in known:
                bone = pair[1] if pair[0] == parent else pair[0] if pair[1] == parent else None
                if bone is not None and bone not in reached:
                    reached.append(bone)
                    out.append((parent, bone))
        left = [label for label in surfaces if label not in reached]
        if not left:
            return out
        for pair in ((parent, bone) for parent in reached for bone in left):
            if pair not in near:
                near[pair] = float(trees[pair[0]].query(surfaces[pair[1]])[0].min())
        parent, bone = min(((p, b) for p in reached for b in left), key=lambda pair: near[pair])
        reached.append(bone)
        out.append((parent, bone))


def _kind(parent: str, bone: str) -> str:
    both = {parent, bone}
    if any(name.startswith("rib") for name in both):
        return "rib"
    if any(name.startswith("femur") for name in both) and any(name.startswith(("hip", "pelvis")) for name in both):
        return "hip"
    if "sacrum" in both and any(name.startswith(("hip", "pelvis")) for name in both):
        return "sacroiliac"
    if both <= {*VERTEBRAE, "sacrum"} and any(name[0] == "L" for name in both):
        return "lumbar"
    return "other"


def surface_points(part: DistanceMap, most: int = 4000) -> np.ndarray:
    """(n, 3) world mm on the surface, between voxel centres where the distance changes sign; ``most`` of them."""
    found = []
    values = part.values[0]
    for axis in range(3):
        one, other = values.narrow(axis, 0, values.shape[axis] - 1), values.narrow(axis, 1, values.shape[axis] - 1)
        at = ((one < 0) != (other < 0)).nonzero()
        before = one[tuple(at.T)].double()
        index = at.double()
        index[:, axis] += before / (before - other[tuple(at.T)].double())
        found.append(index)
    index = torch.cat(found)
    return part.grid.world(index[:: max(1, len(index) // most)].T).T.numpy()


def meeting_point(bone: DistanceMap, parent: DistanceMap, grid: Grid, points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(3,) mm: the middle of where two bones are nearest, by the sum of the distances to them.

    points, others: (n, 3) on the two surfaces, for bones whose crops share nothing.
    """
    boxes = shared(corner(bone.grid, grid), bone, corner(parent.grid, grid), parent)
    if boxes is None:
        gaps, index = cKDTree(others).query(points)
        nearest = int(np.argmin(gaps))
        return (points[nearest] + others[index[nearest]]) / 2
    both = bone.values[0][boxes[0]] + parent.values[0][boxes[1]]
    index = (both < both.min() + 1.0).nonzero().double() + torch.tensor([box.start for box in boxes[0]]).double()
    return bone.grid.world(index.T).mean(1).numpy()


def head_centre(femur: DistanceMap, hip: DistanceMap) -> np.ndarray:
    """(3,) mm: centre of the sphere through the femur's surface near the hip; points off the sphere are left out."""
    points = surface_points(femur, 40_000)
    gap = hip(torch.as_tensor(points.T.copy())).numpy()
    points = points[gap < max(HEAD_MM, float(gap.min()) + 3.0)]
    middle = points.mean(0)
    points = points - middle  # for the sake of the equations' condition
    kept = np.ones(len(points), dtype=bool)
    centre = np.zeros(3)
    for _ in range(8):
        matrix = np.hstack([2 * points[kept], np.ones((int(kept.sum()), 1))])
        solution = np.linalg.lstsq(matrix, (points[kept] ** 2).sum(1), rcond=None)[0]
        centre = solution[:3]
        radius = np.sqrt(max(float(solution[3] + centre @ centre), 0.0))
        off = np.abs(np.linalg.norm(points - centre, axis=1) - radius)
        fits = off <= max(0.5, 2.5 * float(np.median(off)))
        if np.array_equal(fits, kept):
            break
        kept = fits
    return middle + (centre if np.linalg.norm(centre) < 60 else 0.0)


def _volume(part: DistanceMap) -> float:
    return float(part.inside.sum()) * float(np.prod(part.grid.spacing_mm))


def _triple(point: Sequence[float] | np.ndarray) -> Triple:
    x, y, z = (float(value) for value in point)
    return x, y, z
