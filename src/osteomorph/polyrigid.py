"""One rigid motion per bone, exact inside it, and a flow without folds between the bones.

Polyrigid flows go back to Arsigny et al. (2005, 2009). Here the weights move along with the bones, so that a bone never
leaves the region where its weight is 1, and each step is a product of rigid motions, so that it is exact there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from osteomorph.distances import DistanceMap, distance_maps
from osteomorph.errors import InputError
from osteomorph.image import Labels
from osteomorph.joints import Gaps, Joints, rigid_region, steepness
from osteomorph.measure import fit_rigid
from osteomorph.rigid_paths import PathKind, largest_angle_deg, log
from osteomorph.threads import spread
from osteomorph.transforms import Rigid, Transform

STEPS = (4, 64)
"""Fewest and most steps through time, where nothing else is said."""

TOLERANCE_MM = {torch.float64: 1e-5, torch.float32: 5e-4}
"""What the implicit half step is solved to."""

CHUNK = 1 << 16
"""Most points moved at a time, to stay in the cache."""

LEAST_CHUNK = 1 << 13
"""Points that are worth a thread of their own."""

LARGEST_ANGLE_DEG = 170.0
"""Beyond this, which way round a bone turned cannot be told."""


@final
@dataclass(frozen=True, eq=False)
class Body:
    """One bone where it lies in the fixed image.

    bone: distance to its surface. region: distance to the part that moves rigidly, on the same grid: the bone and a margin,
    less the rim where another bone is too near. given_mm3: what a found bone gave away there (`held_bones`), None for a bone
    that is as it was given; margin_mm: its margin before that.
    """

    label: int
    name: str
    pose: Rigid
    bone: DistanceMap
    region: DistanceMap
    given_mm3: float | None = None
    margin_mm: float = 0.0

    @cached_property
    def rim(self) -> Bool[Tensor, "i j k"]:
        """Voxels of the bone that do not move exactly rigidly."""
        return self.bone.inside & (self.region.values[0] > 1e-4)

    @property
    def rim_mm3(self) -> float:
        return float(self.rim.sum()) * float(np.prod(self.bone.grid.spacing_mm))

    @property
    def given_share(self) -> float:
        """Part of the bone as it was found that it gave away."""
        given, left = self.given_mm3 or 0.0, float(self.bone.inside.sum()) * float(np.prod(self.bone.grid.spacing_mm))
        return given / (given + left)


@final
@dataclass(frozen=True, eq=False)
class Polyrigid(Transform):
    """T = background . flow: dx/dt = sum_k w_k(x, t) (velocity of bone k at x), from t = 0 to 1.

    w_k is 1 in bone k's region where it lies at time t and falls off with the inverse 1.5th power of the distance to it. The
    flow is integrated by a time-symmetric midpoint rule of rigid motions, so that the inverse (the same from t = 1 to 0)
    undoes it to what its half steps are solved to. Points in a region take its bone's pose itself.

    path: (2 n + 1, k, 4, 4) float64, where bone k is at each half step, before the background motion; the identity first.
    background: rigid motion that all bones share, and where nothing else is said that of everything.
    reach_mm: distance from the regions at which the motion has faded to the background's; where no region comes nearer at
    any time, nothing but the background is left. None blends the bones' motions everywhere.
    steepness: labels of two bones, the lower one first -> how fast the velocity may change between them; empty where the steps
    were given.
    """

    bodies: tuple[Body, ...]
    path: np.ndarray = field(repr=False)
    background: Rigid
    path_kind: PathKind = "screw"
    reach_mm: float | None = None
    backward: bool = False
    steepness: Mapping[tuple[int, int], float] = field(default_factory=dict, repr=False)

    @property
    def steps(self) -> int:
        return len(self.path) // 2

    @property
    def regions(self) -> list[DistanceMap]:
        """Each bone's region where the transform starts: in fixed space, or in moving space for an inverse."""
        if not self.backward:
            return [body.region for body in self.bodies]
        return [body.region.moved(body.pose.matrix) for body in self.bodies]

    def inverse(self) -> "Polyrigid":
        return replace(self, backward=not self.backward)

    def __call__(self, points_mm: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        return self.moved(points_mm.double(), points_mm.dtype).to(points_mm.dtype)

    def moved(self, points_mm: Float64[Tensor, "3 n"], working: torch.dtype = torch.float32) -> Float64[Tensor, "3 n"]:
        """Where points go, exact to rounding in the regions; elsewhere the flow in another precision (float32: 1e-3 mm)."""
        count = points_mm.shape[1]
        shared = -(-count // torch.get_num_threads())
        size = min(CHUNK, max(LEAST_CHUNK, shared))
        return torch.cat(list(spread(partial(self._moved, working=working), points_mm.split(size, 1))), 1)

    def _moved(self, points: Tensor, working: torch.dtype) -> Tensor:
        centre = torch.as_tensor(self._centre)[:, None]
        start = self.background.inverse()(points) if self.backward else points
        at = (start - centre).to(working)
        distance = self._distances(at, -1 if self.backward else 0)
        least = distance.amin(0)
        free = (least > 0).nonzero()[:, 0]
        out = torch.empty_like(points)
        if len(free):
            end = self._flow(at.index_select(1, free), distance.index_select(1, free)).double() + centre
            out[:, free] = end if self.backward else self.background(end)
        inside = (least <= 0).nonzero()[:, 0]
        owner = distance.index_select(1, inside).argmin(0)
        for k, body in enumerate(self.bodies):
            held = inside[owner == k]
            pose = body.pose.inverse() if self.backward else body.pose
            out[:, held] = pose(points[:, held])
        return out

    # -- the flow, in coordinates about the bones' centre, which keeps float32 exact -----------------------------------------
    @cached_property
    def _centre(self) -> np.ndarray:
        return np.mean([body.bone.grid.centre_mm for body in self.bodies], axis=0)

    @cached_property
    def _to_unit(self) -> Tensor:
        """(2 n + 1, 3 k, 4): where in each bone's crop a point lies at a half step, as `Grid.to_unit` tells it."""
        from_centre = np.eye(4)
        from_centre[:3, 3] = self._centre
        crops = np.stack([body.region.grid.to_unit for body in self.bodies])
        return torch.as_tensor((crops @ np.linalg.inv(self.path) @ from_centre).reshape(len(self.path), -1, 4))

    @cached_property
    def _twists(self) -> np.ndarray:
        """(2 n, 6, k): log of each bone's motion from one half step to the next."""
        to_centre, back = np.eye(4), np.eye(4)
        to_centre[:3, 3], back[:3, 3] = -self._centre, self._centre
        moves = to_centre @ self.path[1:] @ np.linalg.inv(self.path[:-1]) @ back
        return np.swapaxes(log(moves), 1, 2).copy()

    def _distances(self, points: Tensor, time: int) -> Tensor:
        """(k, n) to each bone's region at a half step, 0 in it; beyond the crops as `DistanceMap` has it."""
        matrix = self._to_unit[time].to(points.dtype)
        unit = (matrix[:, :3] @ points + matrix[:, 3:]).float().unflatten(0, (-1, 3))
        found = [body.region.at(here) for body, here in zip(self.bodies, unit, strict=True)]
        return torch.stack(found).clamp_(min=0).to(points.dtype)

    def _weights(self, distance: Tensor) -> Tensor:
        """Shepard's inverse distance weights; of bounded reach as Franke and Little's, the rest to 1 being the background's."""
        distance = distance.clamp(min=1e-12)
        least = distance.amin(0)
        if self.reach_mm is None:
            share = _power(least / distance)
            return share / share.sum(0)
        share = _power(least / distance * (1 - distance / self.reach_mm).clamp_(min=0))
        return share / (share.sum(0) + _power(least / self.reach_mm))

    def _flow(self, points: Tensor, distance: Tensor) -> Tensor:
        twists = torch.as_tensor(self._twists).to(points.dtype)
        times = range(2 * self.steps - 1, 0, -2) if self.backward else range(1, 2 * self.steps, 2)
        weights, before_that = self._weights(distance), None
        for n, middle in enumerate(times):
            before, after = (-twists[middle], -twists[middle - 1]) if self.backward else (twists[middle - 1], twists[middle])
            guess = weights if before_that is None else torch.lerp(before_that, weights, 3.0 if n == 1 else 2.0)
            before_that, weights = weights, self._middle(points, before, middle, guess)
            both = torch.cat([before, after]) @ weights
            points = _apply(both[6:], _apply(both[:6], points))
        return points

    def _middle(self, points: Tensor, twists: Tensor, time: int, weights: Tensor) -> Tensor:
        """Weights w at the half step with w = weights(exp(twists w) points), from a guess: fixed-point steps where they still
        move. Since weights move along, those of the last two half steps make a good guess."""
        weights = weights.clone()
        open_ = torch.arange(points.shape[1])
        here, guess = points, weights
        at = _apply(twists @ guess, here)
        for _ in range(30):
            guess = self._weights(self._distances(at, time))
            new = _apply(twists @ guess, here)
            moving = ((new - at).abs().amax(0) > TOLERANCE_MM[points.dtype]).nonzero()[:, 0]
            weights[:, open_] = guess
            if len(moving) == 0:
                break
            open_, here, at = open_[moving], here.index_select(1, moving), new.index_select(1, moving)
        return weights


def _power(share: Tensor) -> Tensor:
    """To the power 1.5: 2 or 3 squeeze tissue more, 1 is not smooth at a region's edge."""
    return share * share.sqrt()


def _apply(twists: Tensor, points: Tensor) -> Tensor:
    """exp(twist) point, one twist (6) each: x + y + A w x y + C w x (w x y), y = w x x + v; series, for angles below 0.5."""
    turn, velocity = twists[:3], twists[3:]
    square = (turn * turn).sum(0)
    first = 0.5 - square / 24 * (1 - square / 30 * (1 - square / 56))
    second = 1 / 6 - square / 120 * (1 - square / 42 * (1 - square / 72))
    y = _cross(turn, points).add_(velocity)
    around = _cross(turn, y)
    return y.add_(points).add_(first * around).add_(_cross(turn, around).mul_(second))


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


# -- building ------------------------------------------------------------------------------------------------------------
def from_labels(
    poses: Mapping[int, Rigid],
    fixed: Labels | None = None,
    moving: Labels | None = None,
    *,
    margin_mm: float | None = None,
    gap_mm: float | None = None,
    gaps: Gaps | None = None,
    reach_mm: float | None = None,
    background: Rigid | None = None,
    path: PathKind | None = None,
    steps: int | None = None,
    least_steps: int = STEPS[0],
) -> Polyrigid:
    """The transform that moves each labelled bone by its pose (fixed -> moving, RAS mm).

    fixed, moving: where the bones are, in the fixed image, in the moving image (then carried back by the pose), or both
    (then a bone is what either says).
    margin_mm: tissue around a bone that moves with it, 2 voxels by default; at most 0.35 of the gap to the next bone.
    gap_mm: width left between the rigid regions of two bones that touch anywhere along the path, 1.5 voxels by default. What
    lies nearer to another bone than half of that is its rim, which `Body.rim` reports.
    gaps: between certain bones' regions at least, whether they touch or not.
    background: motion far from bones; the best rigid fit to all bones by default.
    path, steps: by default the path that keeps gaps widest, and as many steps as the steepest gap needs, from ``least_steps``
    on.

    A voxel is the geometric mean of the spacing. Raises InputError: no labels, a bone without voxels, or one that turns by
    more than 170 degrees against the others.
    """
    if not poses or (fixed is None and moving is None):
        raise InputError("A polyrigid transform needs at least one pose, and labels of the fixed or of the moving image.")
    maps = _in_fixed(poses, fixed, moving)
    labels = sorted(poses)
    names = {label: source.name(label) for source in (moving, fixed) if source is not None for label in labels}
    bones = [maps[label] for label in labels]
    voxel = max(float(np.prod(bone.grid.spacing_mm)) ** (1 / 3) for bone in bones)
    margin = 2 * voxel if margin_mm is None else margin_mm
    gap = 1.5 * voxel if gap_mm is None else gap_mm
    if margin < 0 or gap <= 0 or (reach_mm is not None and reach_mm <= 0):
        raise ValueError("A margin is at least 0 mm, a gap and a reach are above 0 mm.")

    shared = _shared_motion(bones, [poses[label] for label in labels]) if background is None else background
    ends = np.stack([shared.inverse().matrix @ poses[label].matrix for label in labels])
    if largest_angle_deg(ends) > LARGEST_ANGLE_DEG:
        raise InputError("A bone turns by more than 170 degrees against the others. Check its pose, or give a background.")
    joints = Joints.of(bones, ends)
    kind = joints.widest_path() if path is None else path
    relative = joints.relative(kind)
    wider: list[dict[int, float]] = [{} for _ in labels]
    for pair, width in ({} if gaps is None else gaps).items():
        one, other = (labels.index(label) for label in pair)
        wider[one][other] = wider[other][one] = width
    regions = list(spread(lambda k: rigid_region(k, bones, relative, margin, gap, wider[k]), range(len(bones))))
    steep = steepness(bones, regions, relative, margin) if steps is None else {}
    wanted = int(np.clip(np.ceil(max(steep.values(), default=0.0) / 2), least_steps, STEPS[1])) if steps is None else steps
    bodies = tuple(
        Body(label, names[label], poses[label], bone, region)
        for label, bone, region in zip(labels, bones, regions, strict=True)
    )
    named = {(labels[one], labels[other]): value for (one, other), value in steep.items()}
    return Polyrigid(bodies, joints.path(kind, 2 * wanted + 1), shared, kind, reach_mm, steepness=named)


def _in_fixed(poses: Mapping[int, Rigid], fixed: Labels | None, moving: Labels | None) -> dict[int, DistanceMap]:
    """A map of the moving frame is one of the fixed frame on a grid carried back by the pose."""
    maps = {} if fixed is None else distance_maps(fixed, sorted(poses.keys() & fixed.ids()))
    found = {} if moving is None else distance_maps(moving, sorted(poses.keys() & moving.ids()))
    for label, there in found.items():
        back = there.moved(poses[label].inverse().matrix)
        maps[label] = maps[label].joined(back) if label in maps else back
    missing = sorted(poses.keys() - maps.keys())
    if missing:
        raise InputError(f"No label map has a voxel of bone {missing[0]}. Leave its pose out, or give the labels that hold it.")
    return maps


def _shared_motion(bones: list[DistanceMap], poses: list[Rigid], points: int = 4000) -> Rigid:
    every = max(1, sum(int(bone.inside.sum()) for bone in bones) // points)
    here = [bone.grid.world(bone.inside.nonzero().T.double()[:, ::every]) for bone in bones]
    there = [pose(part) for pose, part in zip(poses, here, strict=True)]
    if len(bones) == 1 or all(np.array_equal(pose.matrix, poses[0].matrix) for pose in poses):
        return poses[0]
    return Rigid(fit_rigid(torch.cat(here, 1), torch.cat(there, 1))[0])
