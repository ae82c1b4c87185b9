"""The spine between its bones: vertebral bodies, discs and the canal, from distances to the vertebrae alone.

Patients are taken to lie as RAS says: y to the front. A level's frame is u (right), w (front), n (up the spine).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, final

import numpy as np
from scipy import ndimage
from scipy.interpolate import PchipInterpolator
from scipy.spatial import cKDTree

from osteomorph.distances import DistanceMap
from osteomorph.geometry import Grid, sample

STEP_MM = 1.0
"""Spacing of the lattices on which levels are measured."""

WIDEST_DISC_MM = 18.0
THINNEST_CANAL_MM2 = 60.0
DRY = 0.15
"""Height of a disc over its depth below which it counts as degenerate."""


@final
class Level(NamedTuple):
    """One vertebra, mm in the world.

    body: middle of the vertebral body. canal: middle of the canal at that height. half: its half axes, side and front.
    frame: (3, 3), columns u, w, n.
    """

    body: np.ndarray
    canal: np.ndarray
    half: tuple[float, float]
    frame: np.ndarray


@final
@dataclass(frozen=True, eq=False)
class Disc:
    """codes: on ``grid``, 0 outside, 1 annulus, 2 nucleus; drawn a little into the bones. turning: (3,) mm, rear third."""

    codes: np.ndarray
    grid: Grid
    turning: np.ndarray
    dry: bool


@final
@dataclass(frozen=True, eq=False)
class Canal:
    """A smooth tube.

    line: (n, 3) mm along its middle, from below. half: (n, 2) half axes to the side and to the front. u, w: (n, 3).
    """

    line: np.ndarray
    half: np.ndarray
    u: np.ndarray
    w: np.ndarray

    def coordinates(self, points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of (n, 3) points: offset to the side and to the front over the half axes, and whether beside the tube's ends."""
        _, nearest = cKDTree(self.line).query(points_mm)
        offset = points_mm - self.line[nearest]
        side = (offset * self.u[nearest]).sum(1) / self.half[nearest, 0]
        front = (offset * self.w[nearest]).sum(1) / self.half[nearest, 1]
        along = offset - (offset * self.u[nearest]).sum(1)[:, None] * self.u[nearest]
        along -= (along * self.w[nearest]).sum(1)[:, None] * self.w[nearest]
        return side, front, np.linalg.norm(along, axis=1) < 1.5


@final
@dataclass(frozen=True, eq=False)
class Spine:
    """discs: (upper, lower) -> disc."""

    levels: Mapping[int, Level]
    discs: Mapping[tuple[int, int], Disc]
    canal: Canal | None


def spine(order: Sequence[int], maps: Mapping[int, DistanceMap], sacrum: int | None) -> Spine:
    """Levels, discs and canal of vertebrae given from the skull down; ``sacrum`` may be the last of them."""
    volumes = {label: int(maps[label].inside.sum()) for label in order if label != sacrum}
    if not volumes:
        return Spine({}, {}, None)
    typical = float(np.median(list(volumes.values())))
    vertebrae = [label for label, volume in volumes.items() if volume > 0.4 * typical]  # the rest is cut by the scan's border
    centres = np.array([_mean(maps[label]) for label in vertebrae])
    levels: dict[int, Level] = {}
    for _ in range(2):  # the second time along the bodies, which lie straighter than the whole vertebrae
        axes = _axes(centres)
        levels = {label: _level(maps[label], axis) for label, axis in zip(vertebrae, axes, strict=True)}
        centres = np.array([level.body for level in levels.values()])
    levels = dict(zip(levels, _even(list(levels.values())), strict=True))
    discs: dict[tuple[int, int], Disc] = {}
    for upper, lower in pairwise([label for label in order if label in levels or label == sacrum]):
        found = _disc(maps[upper], maps[lower], levels[upper], levels.get(lower))
        if found is None:
            continue
        discs[upper, lower] = found[0]
        if lower == sacrum:
            levels[lower] = _sacral(maps[lower], levels[upper], *found[1:])
    return Spine(levels, discs, _canal([levels[label] for label in order if label in levels]))


# -- levels -------------------------------------------------------------------------------------------------------------------
def _mean(part: DistanceMap) -> np.ndarray:
    return part.grid.world(part.inside.nonzero().T.double()).mean(1).numpy()


def _axes(centres: np.ndarray) -> np.ndarray:
    """(n, 3) unit directions up the line through centres given from above."""
    if len(centres) == 1:
        return np.array([[0.0, 0.0, 1.0]])
    along = -np.gradient(centres, axis=0)
    return along / np.linalg.norm(along, axis=1, keepdims=True)


def _frame(axis: np.ndarray) -> np.ndarray:
    """(3, 3) columns u, w, n with w as far to the front as can be."""
    n = axis / np.linalg.norm(axis)
    w = np.array([0.0, 1.0, 0.0]) - n[1] * n
    w /= np.linalg.norm(w)
    return np.stack([np.cross(w, n), w, n], axis=1)


def _lattice(centre: np.ndarray, frame: np.ndarray, low: tuple[int, int, int], high: tuple[int, int, int]) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = frame * STEP_MM
    affine[:3, 3] = centre + frame @ (np.array(low) * STEP_MM)
    return Grid((high[0] - low[0] + 1, high[1] - low[1] + 1, high[2] - low[2] + 1), affine)


def _inside(part: DistanceMap, lattice: Grid) -> np.ndarray:
    values = sample(part.values, part.grid, lattice.points().flatten(1), outside=60.0)[0]
    return (values < 0).unflatten(0, lattice.shape).numpy()


def _level(part: DistanceMap, axis: np.ndarray) -> Level:
    """The canal is the hole seen through the vertebra along its axis, the body what lies in front of it."""
    frame, middle = _frame(axis), _mean(part)
    low, high = (-45, -60, -36), (45, 60, 36)
    bone = _inside(part, _lattice(middle, frame, low, high))
    hole = _hole(np.any(bone, axis=2))
    depth = np.flatnonzero(bone.any((0, 2)))
    if hole is None:  # a body without an arch, or part of a vertebra: the canal is behind its thick front part
        rear = _rear_wall(bone)
        centre, half = np.array([float(np.argwhere(bone)[:, 0].mean()), rear - 8.5]), (11.0, 8.0)
    else:
        centre, half = hole
    front = bone[:, max(0, int(centre[1] + half[1])) :]
    if not front.any():
        front = bone[:, int(depth[0]) :]
    at = np.argwhere(front).astype(float)
    at[:, 1] += bone.shape[1] - front.shape[1]
    at = at[np.abs(at[:, 0] - centre[0]) < 26]
    body = at.mean(0) if len(at) else np.argwhere(bone).mean(0)
    canal = np.array([centre[0], centre[1], body[2]])
    return Level(middle + frame @ (body + low), middle + frame @ (canal + low), half, frame)


def _hole(seen: np.ndarray) -> tuple[np.ndarray, tuple[float, float]] | None:
    """Middle and half axes, in steps, of the largest hole in a projection."""
    closed = ndimage.binary_closing(np.pad(seen, 2), iterations=1)[2:-2, 2:-2] | seen
    parts, count = ndimage.label(ndimage.binary_fill_holes(closed) & ~closed)
    if count == 0:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    if sizes.max() * STEP_MM**2 < THINNEST_CANAL_MM2:
        return None
    at = np.argwhere(parts == 1 + int(sizes.argmax())).astype(float)
    side, front = 2 * at.std(0) + 0.5
    return at.mean(0), (float(np.clip(side, 7, 14)), float(np.clip(front, 5, 11)))


def _rear_wall(bone: np.ndarray) -> float:
    """Where the area of a vertebra, going back from its front, falls to half of the body's."""
    area = bone.sum((0, 2)).astype(float)
    front = int(np.flatnonzero(area)[-1])
    typical = float(np.percentile(area[max(0, front - 25) : front + 1], 75))
    behind = np.flatnonzero(area[: max(front - 10, 1)] < typical / 2)
    return float(behind[-1]) if len(behind) else float(np.flatnonzero(area)[0])


def _even(levels: list[Level]) -> list[Level]:
    """Half axes that differ no more than a canal's do between neighbours."""
    half = np.median([level.half for level in levels], axis=0)
    return [level._replace(half=tuple(np.clip(level.half, 0.8 * half, 1.2 * half).tolist())) for level in levels]


def _sacral(part: DistanceMap, above: Level, plate: np.ndarray, normal: np.ndarray) -> Level:
    """Where the canal enters the sacrum, from the hole in its first segment."""
    frame = _frame(normal)
    middle = plate - 14 * frame[:, 2] - 12 * frame[:, 1]
    low, high = (-40, -45, -9), (40, 40, 9)
    hole = _hole(np.any(_inside(part, _lattice(middle, frame, low, high)), axis=2))
    if hole is None:
        canal = plate - 14 * frame[:, 2] + frame[:, 1] * float((above.canal - above.body) @ above.frame[:, 1])
        return Level(plate - 14 * frame[:, 2], canal, above.half, frame)
    at = np.array([hole[0][0] + low[0], hole[0][1] + low[1], 0.0])
    half = tuple(np.clip(hole[1], 0.7 * np.array(above.half), 1.2 * np.array(above.half)).tolist())
    return Level(plate - 14 * frame[:, 2], middle + frame @ at, half, frame)


# -- discs --------------------------------------------------------------------------------------------------------------------
def _disc(
    upper: DistanceMap, lower: DistanceMap, above: Level, below: Level | None
) -> tuple[Disc, np.ndarray, np.ndarray] | None:
    """The disc, the middle of the lower end plate and the normal there; None where no two end plates face each other.

    Columns along the disc's axis run from the lowest bone of the upper body to the highest of the lower; the axis is turned
    until it is normal to the plane midway.
    """
    if below is None:
        frame, middle = above.frame, above.body - 19 * above.frame[:, 2]
    else:
        frame, middle = _frame(above.body - below.body), (above.body + below.body) / 2
    low, high = (-34, -30, -26), (34, 30, 26)
    foot = np.zeros(0)
    for _ in range(4):
        lattice = _lattice(middle, frame, low, high)
        shape = lattice.shape
        local = (above.canal - middle) @ frame
        fence = local[1] + above.half[1] + (0.0 if below is None else (((below.canal - above.canal) @ frame)[1] / 2))
        before = (np.arange(shape[1]) + low[1])[None, :, None] > fence - 1
        beside = np.abs(np.arange(shape[0]) + low[0] - (above.body - middle) @ frame[:, 0])[:, None, None] < 28
        top, bottom = (_inside(part, lattice) & before & beside for part in (upper, lower))
        start, end, foot = _facing(top, bottom)
        if foot.sum() * STEP_MM**2 < 150:
            return None
        height = (start + end) / 2.0
        at = np.argwhere(foot).astype(float)
        matrix = np.column_stack([at - at.mean(0), np.ones(len(at))])
        slope = _plane(matrix, height[foot])
        offset = np.array([*(at.mean(0) + low[:2]), slope[2] + low[2]])
        middle = middle + frame @ offset
        frame = _frame(frame @ np.array([-slope[0], -slope[1], 1.0]))
    levels = np.arange(shape[2])[None, None]
    foot = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(foot, 3), iterations=2)[3:-3, 3:-3])
    known = start >= 0
    start, end = (_filled(edge, known) for edge in (start, end))
    between = foot[..., None] & (levels > start[..., None] - 2) & (levels < end[..., None] + 2)
    rim = ndimage.distance_transform_edt(np.pad(foot, 1))[1:-1, 1:-1] * STEP_MM
    rim = np.roll(rim, -1, axis=1)  # the nucleus lies a little behind the middle
    core = rim > 0.38 * rim.max()
    codes = np.where(between, np.where(core[..., None], 2, 1), 0).astype(np.uint8)
    across = np.argwhere(foot)
    rear = float(across[:, 1].min() + np.ptp(across[:, 1]) / 3)
    line = np.abs(across[:, 1] - rear) <= 1.5
    turning = np.array([across[line, 0].mean(), rear, float(((start + end) / 2.0)[tuple(across[line].T)].mean())])
    thickness = float(np.median((end - start)[foot])) * STEP_MM
    dry = thickness / max(float(np.ptp(across[:, 1])) * STEP_MM, 1.0) < DRY
    world = lattice.affine[:3, :3] @ turning + lattice.affine[:3, 3]
    plate = middle - frame[:, 2] * thickness / 2
    return Disc(codes, lattice, world, dry), plate, frame[:, 2]


def _facing(top: np.ndarray, bottom: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(i, j) last index of the lower bone, first of the upper (-1 where none), and where the two face each other."""
    n = top.shape[2]
    end = np.where(top.any(2), top.argmax(2), -1)
    start = np.where(bottom.any(2), n - 1 - bottom[..., ::-1].argmax(2), -1)
    gap = end - start - 1
    facing = (end >= 0) & (start >= 0) & (gap >= 1) & (gap * STEP_MM <= WIDEST_DISC_MM)
    if facing.any():  # beside the end plates columns run along the bodies' waists
        facing &= gap <= 1.4 * np.median(gap[facing]) + 3
    facing = ndimage.binary_opening(facing, iterations=2)
    parts, count = ndimage.label(facing)
    if count > 1:
        facing = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    return np.where(facing, start, -1), np.where(facing, end, -1), facing


def _plane(matrix: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Slopes and offset of the plane through heights, far ones left out the second time."""
    slope = np.linalg.lstsq(matrix, height, rcond=None)[0]
    off = np.abs(matrix @ slope - height)
    kept = off <= max(1.0, 2.5 * float(np.median(off)))
    return np.linalg.lstsq(matrix[kept], height[kept], rcond=None)[0]


def _filled(edge: np.ndarray, known: np.ndarray) -> np.ndarray:
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return edge[tuple(nearest)]


# -- canal --------------------------------------------------------------------------------------------------------------------
def _canal(levels: Sequence[Level]) -> Canal | None:
    """Through the levels' canals, drawn on by 40 mm upwards and 18 mm downwards."""
    rising = sorted(levels, key=lambda level: float(level.canal[2]))
    if not rising:
        return None
    nodes = np.array([level.canal for level in rising])
    half = np.array([level.half for level in rising])
    first, last = rising[0].frame[:, 2], rising[-1].frame[:, 2]
    nodes = np.vstack([nodes[0] - 18 * first, nodes, nodes[-1] + 40 * last])
    half = np.vstack([half[0] * (0.8, 0.7), half, half[-1]])
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(nodes, axis=0), axis=1))])
    at = np.arange(0, along[-1], 0.5)
    line = ndimage.gaussian_filter1d(PchipInterpolator(along, nodes)(at), 14, axis=0, mode="nearest")
    tangent = np.gradient(line, axis=0)
    frames = np.array([_frame(axis) for axis in tangent])
    return Canal(line, PchipInterpolator(along, half)(at), frames[:, :, 0], frames[:, :, 1])


def cord_end_mm(spine: Spine, by_name: Mapping[str, int]) -> float:
    """Height at which the cord ends: between L1 and L2, guessed from the levels there are."""
    for name, above in (("L1", -18.0), ("L2", 18.0), ("T12", -50.0), ("L3", 52.0), ("L4", 88.0), ("L5", 122.0)):
        level = spine.levels.get(by_name.get(name, -1))
        if level is not None:
            return float(level.body[2]) + above
    return float("-inf") if any(name[0] in "CT" for name in by_name) else float("inf")
