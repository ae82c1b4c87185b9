"""Bones that move against each other: how near they come on the way, and what of each can stay rigid."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from osteomorph.distances import DistanceMap, box_gap_mm
from osteomorph.geometry import Grid
from osteomorph.rigid_paths import PATH_KINDS, PathKind, rigid_path
from osteomorph.threads import spread

SHARE = 0.35
"""Part of the gap to another bone that a bone's margin may take at most."""

WATCHED_MM = 10.0
"""Bones further apart than this are no joint."""


Gaps = Mapping[tuple[int, int], float]
"""Labels of two bones, the lower one first -> width left between their rigid regions in mm."""

OPEN_MM = 0.05
"""By which a joint may close on the way before another kind of path is looked at."""

STEP_MM = 0.5
"""Of two bones against each other, from one look at a path to the next."""

NEAREST = 200
"""Points of a bone, nearest to another one at either end of the path, where it is looked how steep the motion is."""

SLIGHT = 1.0
"""Steepness that asks for nothing."""


@final
@dataclass(frozen=True, eq=False)
class Joints:
    """Bones, where they end, and how near each pair is on the way."""

    bones: list[DistanceMap]
    ends: np.ndarray
    centroids_mm: np.ndarray
    gaps_mm: np.ndarray
    samples: int

    @classmethod
    def of(cls, bones: list[DistanceMap], ends: np.ndarray) -> "Joints":
        centroids = np.stack([bone.grid.world(bone.inside.nonzero().T.double()).mean(1).numpy() for bone in bones])
        still = np.tile(np.eye(4), (1, len(bones), 1, 1))
        samples = int(np.clip(np.ceil(_travel(bones, ends) / STEP_MM), 5, 33))
        return cls(bones, ends, centroids, pair_gaps(bones, still)[0], samples)

    def path(self, kind: PathKind, times: int) -> np.ndarray:
        return rigid_path(kind, self.ends, np.linspace(0, 1, times), self.centroids_mm, self.gaps_mm)

    def relative(self, kind: PathKind) -> np.ndarray:
        """(m, j, k, 4, 4): from bone k's place at time 0 to where bone j's map of time 0 must be asked at time m."""
        path = self.path(kind, self.samples)
        return np.linalg.inv(path)[:, :, None] @ path[:, None]

    def widest_path(self) -> PathKind:
        """The kind along which no joint closes more than it is closed at either end, or the one that closes least."""
        if len(self.bones) == 1:
            return "screw"
        closing: dict[PathKind, float] = {}
        for kind in PATH_KINDS:
            gaps = np.minimum(pair_gaps(self.bones, self.path(kind, min(self.samples, 9))), WATCHED_MM)
            closing[kind] = float((np.minimum(gaps[0], gaps[-1]) - gaps.min(0)).max())
            if closing[kind] <= OPEN_MM:
                return kind
        return min(closing, key=lambda kind: closing[kind])


def _travel(bones: list[DistanceMap], ends: np.ndarray) -> float:
    """Largest displacement, in mm, of a corner of the box around a bone."""
    moves = [(end - np.eye(4)) @ bone.corners_mm for bone, end in zip(bones, ends, strict=True)]
    return max(float(np.linalg.norm(move[:3], axis=0).max()) for move in moves)


def _shift(bone: DistanceMap, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(*m) largest distance between where two (*m, 4, 4) matrices take a point of the bone's crop."""
    return np.asarray(np.sqrt(np.square(((first - second) @ bone.crop_corners_mm)[..., :3, :]).sum(-2).max(-1)))


def _at(matrix: np.ndarray, points: Tensor) -> Tensor:
    m = torch.as_tensor(np.ascontiguousarray(matrix), dtype=points.dtype)
    return m[:3, :3] @ points + m[:3, 3, None]


def _apart(matrices: np.ndarray, bone: DistanceMap) -> Iterator[np.ndarray]:
    """Of the matrices along a path those that move a bone's crop by `STEP_MM` or more since the last one, and the ends."""
    last = matrices[0]
    yield last
    for number, matrix in enumerate(matrices[1:], 2):
        if number == len(matrices) or _shift(bone, matrix, last) >= STEP_MM:
            yield matrix
            last = matrix


def _along(matrices: np.ndarray, points: Tensor) -> Tensor:
    """(m, 3, n): points under each of m matrices."""
    m = torch.as_tensor(np.ascontiguousarray(matrices), dtype=points.dtype)
    return m[:, :3, :3] @ points + m[:, :3, 3:]


def pair_gaps(bones: list[DistanceMap], path: np.ndarray) -> np.ndarray:
    """(m, k, k) gap in mm between every two bones at every time of a path, infinite on the diagonal.

    Below 0 bones overlap. Where bones are further apart than `WATCHED_MM` it may be less than their gap, never less than that.
    """
    out = np.full((*path.shape[:2], path.shape[1]), np.inf)

    def of(first: int) -> None:
        points, depth = bones[first].surface
        for second in range(first):
            relative = np.linalg.inv(path[:, second]) @ path[:, first]
            boxes = box_gap_mm(bones[first], bones[second], relative)
            if boxes.min() > WATCHED_MM:
                out[:, first, second] = out[:, second, first] = boxes
                continue
            bound = torch.full_like(depth, -torch.inf)
            shifts = _shift(bones[first], relative, np.concatenate([relative[:1], relative[:-1]])).tolist()
            for time, (matrix, shift) in enumerate(zip(relative, shifts, strict=True)):
                bound = bound - shift
                near = (bound <= 1.5 * WATCHED_MM).nonzero()[:, 0]
                if len(near):
                    bound[near] = bones[second](_at(matrix, points.index_select(1, near)))
                out[time, first, second] = out[time, second, first] = float((depth + bound).min())

    for _ in spread(of, reversed(range(len(bones)))):
        pass
    return out


def rigid_region(
    own: int, bones: list[DistanceMap], relative: np.ndarray, margin: float, gap: float, wider: Mapping[int, float]
) -> DistanceMap:
    """Distance to what moves rigidly with a bone: d <= margin, d <= SHARE (d + d') and d' >= gap / 2 for any other bone at
    distance d', at every sampled time; where the two overlap, d' - d >= gap instead of the last.

    So regions of bones that touch are ``gap`` apart, and those of bones with a space between leave (1 - 2 SHARE) of it.
    wider: other bone -> d' - d there at least, besides.
    """
    bone = bones[own]
    distance = bone.values[0].flatten()
    region = distance - margin
    reach = max(margin / SHARE, 2 * margin + max(gap, *wider.values(), 0.0))
    band = (distance <= reach).nonzero()[:, 0]
    shape = bone.grid.shape
    index = torch.as_tensor(np.stack(np.unravel_index(band.numpy(), shape))).int()  # torch's own imports sympy
    for other in range(len(bones)):
        matrices = relative[:, other, own]
        if other == own or _shift(bone, matrices, np.eye(4)).max() < 1e-6:
            continue
        if box_gap_mm(bone, bones[other], matrices).min() > reach:
            continue
        low, high = _where(bones[other], np.linalg.inv(matrices), bone.grid, reach)
        some = ((index >= low) & (index <= high)).all(0).nonzero()[:, 0]
        voxels = band.index_select(0, some)
        here, points = distance.index_select(0, voxels), bone.grid.world(index.index_select(1, some).double()).float()
        least = torch.full_like(here, torch.inf)
        bound, last = torch.full_like(here, -torch.inf), matrices[0]
        for matrix in _apart(matrices, bone):
            bound = bound - float(_shift(bone, matrix, last))
            near = (bound <= reach - here.clamp(min=0)).nonzero()[:, 0]
            if len(near):
                there = bones[other](_at(matrix, points.index_select(1, near)))
                bound[near], least[near] = there, torch.minimum(least.index_select(0, near), there)
            last = matrix
        shared = torch.maximum((1 - SHARE) * here - SHARE * least, (gap - least + torch.minimum(here, -least)) / 2)
        if other in wider:
            shared = torch.maximum(shared, (wider[other] - least + here) / 2)
        region[voxels] = torch.maximum(region[voxels], shared)
    return DistanceMap(region.unflatten(0, shape)[None], bone.grid)


def _where(bone: DistanceMap, matrices: np.ndarray, grid: Grid, reach_mm: float) -> tuple[Tensor, Tensor]:
    """(3, 1) each: the first and last index along a grid's axes of what comes within ``reach_mm`` of the box around a bone that
    is moved by any of some matrices."""
    corners = (np.linalg.inv(grid.affine) @ matrices @ bone.corners_mm)[..., :3, :]
    wide = reach_mm / grid.spacing_mm
    low, high = corners.min((0, 2)) - wide, corners.max((0, 2)) + wide
    return torch.as_tensor(np.floor(low)).int()[:, None], torch.as_tensor(np.ceil(high)).int()[:, None]


def steepness(
    bones: list[DistanceMap], regions: list[DistanceMap], relative: np.ndarray, margin: float
) -> dict[tuple[int, int], float]:
    """Of every two bones that come near each other, the lower place first: a bound on the velocity's derivative between them,
    1.5 x relative speed / gap between the regions, at bones' surfaces. Left out where boxes tell that it is below `SLIGHT`.

    margin: by which a region reaches beyond its bone at most.
    """
    found: dict[tuple[int, int], float] = {}
    for own, others in enumerate(spread(lambda own: _steepest(own, bones, regions, relative, margin), range(len(bones)))):
        for other, value in others.items():
            pair = (min(own, other), max(own, other))
            found[pair] = max(value, found.get(pair, 0.0))
    return found


def _steepest(
    own: int, bones: list[DistanceMap], regions: list[DistanceMap], relative: np.ndarray, margin: float
) -> dict[int, float]:
    """Of one bone's surface against the others."""
    surface = bones[own].surface[0]
    surface = surface[:, :: max(1, surface.shape[1] // 3000)]
    around = regions[own](surface).clamp(min=0)
    last, steepest = len(relative) - 1, dict[int, float]()
    for other in range(len(bones)):
        matrices = relative[:, other, own]
        gap = float(box_gap_mm(bones[own], bones[other], matrices).min())
        fastest = float(_shift(bones[own], matrices[1:], matrices[:-1]).max()) * last
        if other == own or gap > 3 * WATCHED_MM or 1.5 * fastest < SLIGHT * (gap - 2 * margin):
            continue
        near = [regions[other](_at(matrices[end], surface)).argsort()[:NEAREST] for end in (0, last)]
        some = torch.arange(0, surface.shape[1], 10)  # what is near on the way need not be near at its ends
        chosen = torch.cat([*near, some]).unique()
        points, distance = surface[:, chosen], around[chosen]
        there = _along(matrices, points)
        speed = (there[1:] - there[:-1]).norm(dim=1) * last
        beyond = regions[other](there.transpose(0, 1).flatten(1)).unflatten(0, (last + 1, -1)).clamp(min=0)
        steepest[other] = float((1.5 * torch.cat([speed, speed[-1:]]) / (distance + beyond).clamp(min=1e-3)).max())
    return steepest
