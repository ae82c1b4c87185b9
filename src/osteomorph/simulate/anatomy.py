"""A lumbar spine and what lies around it, as signed distances: negative inside, in mm.

Anatomy frame: x right, y anterior, z superior (RAS), origin near the middle of L4. A vertebra's own frame has its origin at
the middle of its body and z along its axis. Every function takes points (3, n) and gives (n,).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial import Polynomial
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation
from torch import Tensor

Points = Float[Tensor, "3 n"]
Distance = Float[Tensor, " n"]
Real = int | float

NAMES = {22: "L3", 23: "L4", 24: "L5"}
"""Whole vertebrae, by the ids of the convention that counts L1 as 20."""

BONES = (25, 24, 23, 22, 21)
"""From the sacrum up; 25 (S1) and 21 (L2) are cut by the field of view and carry no label."""

CHUNK = 30_000
"""Points taken at a time: small enough for the cache, and for torch to keep such short steps in one thread."""

FAR_MM = 60.0
"""Distance reported for points beyond a bone's reach; nothing reads a distance that large."""

JOINT_MM = 3.4
"""Least distance of two bones as they lie in the anatomy frame."""

LOOPS = (
    (34, 50, 22, 15),
    (-30, 56, 8, 17),
    (8, 60, -22, 14),
    (44, 44, -28, 17),
    (-46, 42, -36, 15),
    (-50, 46, 34, 13),
    (4, 57, 40, 15),
)
"""Middle and radius of every loop of bowel, mm in the anatomy frame."""


# -- shapes ---------------------------------------------------------------------------------------------------------------
def _column(points: Tensor, *values: Real) -> Tensor:
    return points.new_tensor(values)[:, None]


def _length(*parts: Tensor) -> Tensor:
    return sum((part * part for part in parts), start=torch.zeros_like(parts[0])).sqrt()


def ellipse(u: Tensor, v: Tensor, a: Tensor | Real, b: Tensor | Real) -> Tensor:
    """About the distance to an ellipse with half axes a and b, exact to first order at its border."""
    radius = _length(u / a, v / b)
    return radius * (radius - 1) / _length(u / a**2, v / b**2).clamp(min=1e-6)


def ellipsoid(points: Points, centre: Sequence[Real], half: Sequence[Real]) -> Distance:
    """About the distance to an ellipsoid, exact to first order at its surface."""
    q = (points - _column(points, *centre)) / _column(points, *half)
    radius = _length(*q)
    return radius * (radius - 1) / _length(*(q / _column(points, *half))).clamp(min=1e-6)


def strut(
    points: Points,
    start: Sequence[Real],
    end: Sequence[Real],
    radius: tuple[Real, Real],
    half_height: tuple[Real, Real] = (0, 0),
) -> Distance:
    """A bar from start to end, rounded, drawn out along z by half_height to a plate; both may taper."""
    a, axis = _column(points, *start), _column(points, *end) - _column(points, *start)
    along = (((points - a)[:2] * axis[:2]).sum(0) if half_height[0] else ((points - a) * axis).sum(0)) / (
        (axis[:2] if half_height[0] else axis).square().sum()
    )
    t = along.clamp(0, 1)
    x, y, z = points - a - t * axis
    height = half_height[0] + t * (half_height[1] - half_height[0])
    z = torch.sign(z) * (z.abs() - height).clamp(min=0)
    return _length(x, y, z) - (radius[0] + t * (radius[1] - radius[0]))


def join(first: Distance, second: Distance, blend_mm: float) -> Distance:
    """Union with a fillet."""
    overlap = (blend_mm - (first - second).abs()).clamp(min=0) / blend_mm
    return torch.minimum(first, second) - overlap.square() * blend_mm / 4


def meet(first: Distance, second: Distance, blend_mm: float) -> Distance:
    """Intersection with a rounded edge."""
    return -join(-first, -second, blend_mm)


# -- sizes ----------------------------------------------------------------------------------------------------------------
@final
@dataclass(frozen=True)
class Build:
    """What differs between patients; mm and degrees."""

    half_width: float
    half_depth: float
    half_height: float
    disc: float
    lordosis_deg: float
    process: float
    fat: float


@final
@dataclass(frozen=True, eq=False)
class Vertebra:
    """One bone in its own frame.

    place: (4, 4) own frame -> anatomy frame.
    """

    build: Build
    label: int
    place: np.ndarray

    def local(self, points: Points) -> Points:
        place = torch.as_tensor(self.place.copy()).to(points.dtype)
        return place[:3, :3].T @ (points - place[:3, 3, None])

    def at(self, *local_mm: Real) -> np.ndarray:
        """A point of the own frame, in the anatomy frame."""
        return self.place[:3, :3] @ np.array(local_mm) + self.place[:3, 3]

    def distance(self, points: Points) -> Distance:
        """Of anatomy-frame points, before the joints are carved."""
        p = self.local(points)
        return self._sacrum(p) if self.label == 25 else join(self._body(p), self._arch(p), 4.0)

    def _body(self, p: Points) -> Distance:
        """Kidney-shaped, waisted, with concave end plates."""
        b = self.build
        x, y, z = p
        rise = (z / b.half_height).square().clamp(max=1.0)
        waist = 0.88 + 0.12 * rise
        y = y + 3.5 * (x / b.half_width).square() - 1.2
        rim = ellipse(x, y, b.half_width * waist, b.half_depth * waist)
        inward = (1 - (x / b.half_width).square() - (y / b.half_depth).square()).clamp(min=0)
        plate = z.abs() - b.half_height + 2.2 * inward.sqrt() * inward.clamp(max=1)
        return meet(rim, plate, 3.0)

    def _arch(self, p: Points) -> Distance:
        """Pedicles, laminae, transverse, articular and spinous processes; left and right alike."""
        b, s = self.build, self.build.process
        side = torch.stack([p[0].abs(), p[1], p[2]])
        back = -b.half_depth  # rear wall of the body
        bone = strut(side, (14.5, back + 3, 5), (16.5, back - 11, 4.5), (4.2, 4.4), (2.8, 3.2))
        lamina = strut(side, (16, back - 14, -1), (2, back - 25, -6), (3.2, 3.4), (6.5, 7))
        transverse = strut(side, (17, back - 11, 4), (25 + 17 * s, back - 16, 6), (3.6, 2.6), (2, 3.2))
        upper = strut(side, (17.5, back - 13, 3), (20, back - 14.5, 17), (4.6, 4.2))
        lower = strut(side, (13, back - 20, -8), (12.5, back - 21, -23), (4.2, 4.0))
        bone = join(bone, lamina, 4.0)
        for process in (transverse, upper, lower):
            bone = join(bone, process, 3.0)
        crest = strut(p, (0, back - 27, -7), (0, back - 32 - 24 * s, -12), (2.6, 2.2), (5.5, 7))
        tip = strut(p, (0, back - 32 - 23 * s, -11), (0, back - 33 - 24 * s, -12), (3.2, 3.2), (5.5, 5.5))
        return join(bone, join(crest, tip, 3.0), 4.0)

    def _sacrum(self, p: Points) -> Distance:
        b = self.build
        x, y, z = p
        plate = meet(ellipse(x, y + 3.5 * (x / b.half_width).square(), b.half_width + 1, b.half_depth), z - b.half_height, 3.0)
        side = torch.stack([x.abs(), y, z])
        wings = ellipsoid(side, (27, -9, -8), (25, 15, 19))
        back = strut(side, (13, -b.half_depth - 16, 0), (2, -b.half_depth - 22, -6), (3.6, 3.6), (9, 9))
        pillar = strut(side, (20, -b.half_depth - 2, -2), (15, -b.half_depth - 15, 0), (5.0, 4.2), (6, 6))
        facet = strut(side, (19, -b.half_depth - 13, 3), (21, -b.half_depth - 14.5, 16), (4.4, 4.0))
        bone = join(meet(plate, -z - 60, 3.0), wings, 8.0)
        return join(join(bone, join(back, pillar, 4.0), 4.0), facet, 3.0)


# -- the whole --------------------------------------------------------------------------------------------------------------
@final
@dataclass(frozen=True, eq=False)
class Anatomy:
    """Bones and soft tissue of one patient."""

    build: Build

    @cached_property
    def bones(self) -> dict[int, Vertebra]:
        """Stacked from the sacrum up, each tilted against the one below."""
        b = self.build
        tilts = dict(zip(BONES, b.lordosis_deg * np.array([1.0, 0.52, 0.2, 0.0, -0.08]), strict=True))
        centres: dict[int, np.ndarray] = {25: np.zeros(3)}
        axis = {k: np.array([0, np.sin(np.radians(t)), np.cos(np.radians(t))]) for k, t in tilts.items()}
        for below, above in pairwise(BONES):
            half = b.half_height + b.disc / 2
            centres[above] = centres[below] + half * (axis[below] + axis[above])
        middle = centres[23].copy()
        out = {}
        for label in BONES:
            place = np.eye(4)
            place[:3, :3] = Rotation.from_euler("x", -tilts[label], degrees=True).as_matrix()
            place[:3, 3] = centres[label] - middle
            out[label] = Vertebra(b, label, place)
        return out

    def bone(self, label: int, points: Points, reach_mm: float) -> Distance:
        """Distance to a bone, its joint to the bone above carved out; FAR_MM where it is above about ``reach_mm``."""
        return torch.cat([self._bone(label, part, reach_mm) for part in points.split(CHUNK, dim=1)])

    def _bone(self, label: int, points: Tensor, reach_mm: float) -> Tensor:
        vertebra = self.bones[label]
        p = vertebra.local(points)
        low, high = (_column(points, *corner) for corner in _reach(self.build, label))
        near = ((p > low - reach_mm) & (p < high + reach_mm)).all(0).nonzero()[:, 0]
        out = torch.full_like(points[0], FAR_MM)
        inside = points[:, near]
        distance = vertebra.distance(inside)
        if label - 1 in self.bones:
            distance = torch.maximum(distance, JOINT_MM - self.bones[label - 1].distance(inside))
        out[near] = distance
        return out

    def joint_mm(self, upper: int) -> np.ndarray:
        """Where a vertebra turns against the one below: the rear third of the disc."""
        return self.bones[upper].at(0, -self.build.half_depth / 3, -self.build.half_height - self.build.disc / 2)

    def _line(self, *local_mm: Real) -> Callable[[Tensor], Tensor]:
        """y(z) of the smooth line through one local point of every bone."""
        nodes = np.array([bone.at(*local_mm)[1:] for bone in self.bones.values()])
        ends = CubicSpline(nodes[:, 1], nodes[:, 0])
        z = np.linspace(nodes[0, 1] - 12, nodes[-1, 1] + 12, 60)
        series = Polynomial.fit(z, ends(z), 6).convert().coef
        return lambda height: _horner(series, height.clamp(float(z[0]), float(z[-1])))

    @cached_property
    def _canal(self) -> Callable[[Tensor], Tensor]:
        return self._line(0.0, -self.build.half_depth - 8.5, 0.0)

    @cached_property
    def _spine(self) -> Callable[[Tensor], Tensor]:
        return self._line(0.0, 0.0, 0.0)

    def body(self, points: Points) -> Distance:
        """Inside of the skin."""
        x, y, _ = points
        rear = self._rear_mm
        furrow = 4.0 * torch.exp(-(x / 9).square()) * torch.exp(-((y - rear) / 25).square())
        depth = 104.0
        return ellipse(x, y - rear - depth, 112.0, depth) + furrow

    @property
    def _rear_mm(self) -> float:
        tips = [self.bones[k].at(0, -self.build.half_depth - 35 - 24 * self.build.process, -12)[1] for k in (24, 23, 22, 21)]
        return float(min(tips)) - self.build.fat - 4

    def tissues(self, points: Points) -> list[tuple[str, Distance]]:
        """(name, distance) in the order in which they are painted, later ones over earlier ones."""
        x, y, z = points
        side = x.abs()
        skin = self.body(points)
        out: list[tuple[str, Distance]] = [("skin", skin), ("fat", skin + 2.0)]
        spine, canal = self._spine(z), self._canal(z)
        rear = canal - 14 - (0.10 * side)

        # the muscle of the back lies in the groove between spinous and transverse processes
        erector = ellipse(side - 27, y - rear + 13, 21.0, 17.0)
        multifidus = ellipse(side - 11, y - rear + 8, 8.0, 18.0)
        quadratus = ellipse(side - 55, y - spine + 26, 11.0, 9.0)
        psoas_half = 15.0 + 5.0 * torch.sigmoid(-(z + 5) / 20)
        psoas = ellipse(side - 37, y - spine + 5, psoas_half, psoas_half * 1.12)
        wall = (ellipse(x, y - self._rear_mm - 104, 101.0, 92.0)).abs() - 5.0
        wall = torch.maximum(wall, -(y - spine + 18))
        muscle_skin = skin + 2.0 + self.build.fat * 0.8
        for muscle in (erector, multifidus, quadratus, wall, psoas):
            out.append(("muscle", torch.maximum(muscle, muscle_skin)))

        out += self._abdomen(points, spine)
        out.append(("ligament", _length(x, (y - spine - self.build.half_depth - 1) / 1.2) - 4.0))
        out += self._discs(points)
        out.append(("fat", ellipse(x, y - canal, 12.5, 10.0)))
        out.append(("csf", ellipse(x, y - canal - 0.6, 9.5, 7.6)))
        out += self._nerves(x, y - canal, z)
        for label in BONES:
            bone = self.bone(label, points, 6.0)
            plates = 0.9 if label == 25 else 1.2
            out += [("cartilage", bone - 1.0), ("cortex", bone), ("marrow", bone + plates)]
        return out

    def _discs(self, points: Points) -> list[tuple[str, Distance]]:
        b = self.build
        out = []
        for below, above in pairwise(BONES):
            lower, upper = self.bones[below], self.bones[above]
            centre = (lower.at(0, 0, b.half_height) + upper.at(0, 0, -b.half_height)) / 2
            place = np.eye(4)
            place[:3, :3] = (
                Rotation.concatenate([Rotation.from_matrix(v.place[:3, :3]) for v in (lower, upper)]).mean().as_matrix()
            )
            place[:3, 3] = centre
            x, y, z = Vertebra(b, 0, place).local(points)
            y = y + 3.5 * (x / b.half_width).square() - 1.2
            annulus = meet(ellipse(x, y, b.half_width + 0.5, b.half_depth + 0.5), z.abs() - b.disc / 2 - 4, 2.0)
            nucleus = meet(ellipse(x, y + 1.5, b.half_width * 0.62, b.half_depth * 0.6), z.abs() - b.disc / 2 - 0.2, 3.0)
            out += [("annulus", annulus), ("nucleus", nucleus)]
        return out

    def _nerves(self, x: Tensor, y: Tensor, z: Tensor) -> list[tuple[str, Distance]]:
        """The cord tapers off at the height of L2; roots run on in the sac."""
        cord = _length(x, y) - 4.6 * torch.sigmoid((z - 28) / 6)
        out = [("cord", cord)]
        spread = 1.0 + 0.6 * torch.sigmoid(-(z - 10) / 20)
        for angle in np.linspace(200, 340, 6):
            u, v = 4.2 * np.cos(np.radians(angle)), 3.4 * np.sin(np.radians(angle))
            out.append(("cord", _length(x - u * spread, y - v) - 0.9))
        return out

    def _abdomen(self, points: Points, spine: Tensor) -> list[tuple[str, Distance]]:
        x, y, z = points
        front = spine + self.build.half_depth
        fork = 9.0 * torch.sigmoid(-(z + 22) / 6)
        out = [
            ("vessel", ellipse((x + 8).abs() - fork, y - front - 12, 7.8, 7.8)),
            ("vein", ellipse((x - 13).abs() - fork, y - front - 10, 10.0, 7.6)),
        ]
        for sign, height in ((1.0, 42.0), (-1.0, 48.0)):
            kidney = ellipsoid(points, (sign * 62, 6, height), (20, 23, 40))
            pelvis = ellipsoid(points, (sign * 54, 10, height), (10, 9, 20))
            out += [("kidney", kidney), ("fat", pelvis)]
        for u, v, w, r in LOOPS:
            loop = ellipsoid(points, (u, v, w), (r * 1.25, r, r * 1.1))
            out += [("muscle", loop), ("bowel", loop + 2.5)]
            level = y - v - r * 0.35
            out.append(("gas", torch.maximum(loop + 3.0, -level)))
        return out


def _horner(series: np.ndarray, at: Tensor) -> Tensor:
    out = torch.zeros_like(at)
    for coefficient in series[::-1]:
        out = out * at + float(coefficient)
    return out


def _reach(build: Build, label: int) -> tuple[tuple[Real, ...], tuple[Real, ...]]:
    """Corners of a box around a bone in its own frame."""
    if label == 25:
        return (-56, -60, -70), (56, build.half_depth + 2, 26)
    wide = max(build.half_width, 29 + 17 * build.process) + 2
    return (-wide, -build.half_depth - 38 - 24 * build.process, -32), (wide, build.half_depth + 3, 26)
