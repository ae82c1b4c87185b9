"""The trunk from T10 to the upper thighs.

Anatomy frame: x right, y anterior, z superior (RAS), mm, origin in the middle of the body of L4 (of L3 when L5 is missing).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import final

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from osteomorph.simulate import pelvis, ribs, vertebra
from osteomorph.simulate.abdomen import Soft, root
from osteomorph.simulate.anatomy import Distance, Joint, Points, Triple, View
from osteomorph.simulate.build import LEVELS, Build
from osteomorph.simulate.outline import Landmarks, Outline
from osteomorph.simulate.procedural import Bone, Layers, Procedural, hull, triple
from osteomorph.simulate.shapes import Curve, curve

NAMES = (
    {label: f"T{label - 7}" for label in (17, 18, 19)}
    | {label: f"L{label - 19}" for label in range(20, 26)}
    | {26: "sacrum", 31: "hip_left", 32: "hip_right", 33: "femur_left", 34: "femur_right"}
    | {40 + k: f"rib_left_{k}" for k in (10, 11, 12)}
    | {60 + k: f"rib_right_{k}" for k in (10, 11, 12)}
)

TILT = (1.0, 0.55, 0.19, -0.08, -0.26, -0.38, -0.42, -0.38, -0.32, -0.26)
"""How far every bone, from the sacrum up, leans forward, relative to the sacrum."""

STILL = (0.0, 0.0, 0.0)


@final
@dataclass(frozen=True, eq=False)
class Trunk(Procedural):
    """Spine from T10, pelvis, upper femurs, the last ribs, and what lies around them."""

    build: Build

    @property
    def scale(self) -> float:
        return self.build.scale

    @property
    def names(self) -> Mapping[int, str]:
        return {label: NAMES[label] for label in sorted(self.bones)}

    @cached_property
    def bones(self) -> dict[int, Bone]:
        out = pelvis.bones(self.build, self._pelvis)
        femurs = {label: out.pop(label) for label in (33, 34)}
        spine = {label: self._vertebra(label) for label in reversed(self.build.column)}
        cage: dict[int, Bone] = {}
        for label in (19, 18, 17):
            cage |= ribs.bones(label - 7, self._sizes[label], self._places[label])
        return femurs | spine | out | cage

    @cached_property
    def joints(self) -> tuple[Joint, ...]:
        column = self.build.column
        out = [Joint(26, None, self._scaled(self.bones[26].at(0, 0, 0)), (1.5, 1.0, 1.0), (1.0, 1.0, 1.0))]
        for below, above in pairwise(column):
            turn, shift = ((3.0, 2.1, 2.1), (1.0, 1.0, 1.0)) if above >= 20 else ((1.6, 1.4, 1.2), (0.5, 0.5, 0.5))
            if above == self.build.fused:
                turn = shift = STILL
            out.append(Joint(above, below, self._scaled(self._turning_point(above)), turn, shift))
        for side, hip, femur in ((-1.0, 31, 33), (1.0, 32, 34)):
            joint = self.bones[hip].at(side * 58 * self.build.hip_width, -66, 88)
            out.append(Joint(hip, 26, self._scaled(joint), (0.6, 0.6, 0.6), (0.3, 0.3, 0.3)))
            out.append(Joint(femur, hip, self._scaled(self.bones[femur].at(0, 0, 0)), (12.0, 8.0, 10.0), (0.3, 0.3, 0.3)))
        for label in (19, 18, 17):
            for side, first in ((-1.0, 33), (1.0, 53)):
                joint = self.bones[label].at(*ribs.head_mm(side, self._sizes[label]))
                out.append(Joint(first + label, label, self._scaled(joint), (4.0, 2.0, 3.0), (0.3, 0.3, 0.3)))
        return tuple(out)

    @cached_property
    def views(self) -> Mapping[str, View]:
        middle = self.build.middle
        canal = self.bones[middle].at(0, -self._sizes[middle].half_depth - 4, 0)
        lumbar = tuple(range(middle - 1, middle + 2))
        thorax = (18, 19, *(first + k for first in (40, 60) for k in (11, 12)))
        hips = (self.build.column[1], 26, 31, 32, 33, 34)
        return {
            "lumbar": self._view(lumbar, (144.0, 136.0, 140.0), canal),
            "thorax": self._view(thorax, (0.0, 150.0, 0.0)),
            "pelvis": self._view(hips, (0.0, 0.0, 0.0)),
        }

    @cached_property
    def soft(self) -> Sequence[Callable[[Points], Layers]]:
        soft = self._soft
        out = list(soft.layers)
        for below, above in pairwise(self.build.column):
            out.append(self._disc(below, above))
        out.append(soft.canal)
        for above in self.build.column[1:]:
            start = self.bones[above].at(0, -self._sizes[above].half_depth - 8.5, -self._sizes[above].half_height + 2)
            out += [lambda p, start=start, side=side: root(p, start, side) for side in (-1.0, 1.0)]  # type: ignore[misc]
        return out

    def skin(self, points: Points) -> Distance:
        return self._soft.outline.skin(points)

    def gap_mm(self, first: int, second: int) -> float:
        return 2.9 if {first, second} & {31, 32} and 26 in {first, second} else 3.4

    # -- where the bones lie --------------------------------------------------------------------------------------------------
    @cached_property
    def _sizes(self) -> dict[int, vertebra.Vertebra]:
        return vertebra.column(self.build)

    @cached_property
    def _places(self) -> dict[int, np.ndarray]:
        """Own frame -> anatomy frame; stacked from the sacrum up, each tilted against the one below."""
        b, column = self.build, self.build.column
        out: dict[int, np.ndarray] = {}
        centre = np.zeros(3)
        for k, label in enumerate(column):
            sideways = b.scoliosis_deg * np.sin(2 * np.pi * k / (LEVELS - 1) + b.scoliosis_phase) * min(1.0, k / 2)
            turns = (-TILT[k] * b.slope_deg, sideways, b.twist * sideways)
            place = np.eye(4)
            place[:3, :3] = Rotation.from_euler("xyz", turns, degrees=True).as_matrix()
            if k:
                half = self._sizes[label].half_height, self._sizes[column[k - 1]].half_height
                disc = vertebra.disc_mm(b, label) / 2
                centre = centre + (half[1] + disc) * out[column[k - 1]][:3, 2] + (half[0] + disc) * place[:3, 2]
            place[:3, 3] = centre
            out[label] = place
        middle = out[b.middle][:3, 3].copy()
        for place in out.values():
            place[:3, 3] -= middle
        return out

    @cached_property
    def _pelvis(self) -> np.ndarray:
        """(4, 4) pelvis frame -> anatomy frame."""
        tilt = self.build.incidence_deg - self.build.slope_deg
        sacrum = self._places[26]
        plate = sacrum[:3, 3] + sacrum[:3, 2] * self._sizes[26].half_height
        place = np.eye(4)
        place[:3, :3] = Rotation.from_euler("x", tilt - pelvis.TILT_DEG, degrees=True).as_matrix()
        angle = np.radians(tilt)
        place[:3, 3] = plate + pelvis.SACRUM_MM * np.array([0, np.sin(angle), -np.cos(angle)])
        return place

    def _vertebra(self, label: int) -> Bone:
        sizes = self._sizes[label]
        return Bone(self._places[label], sizes.shape, sizes.cortex_mm, sizes.within, sizes.extra)

    def _turning_point(self, upper: int) -> np.ndarray:
        """Where a vertebra turns against the one below: the rear third of the disc."""
        sizes = self._sizes[upper]
        return self.bones[upper].at(0, -sizes.half_depth / 3, -sizes.half_height - vertebra.disc_mm(self.build, upper) / 2)

    def _scaled(self, point: np.ndarray) -> Triple:
        return triple(point * self.scale)

    def _view(self, labels: tuple[int, ...], least_mm: Triple, centre: np.ndarray | None = None) -> View:
        """About a centre, or the middle of the bones; as large as asked, or as holds them with a margin."""
        low, high = hull([self.bones[label].extent for label in labels])
        middle = (low + high) / 2 if centre is None else centre
        size = 2 * np.maximum(high - middle, middle - low) * self.scale + 2
        return View(self._scaled(middle), triple(np.maximum(size, least_mm)), labels)

    # -- what lies around them ------------------------------------------------------------------------------------------------
    @cached_property
    def _soft(self) -> Soft:
        low, high = self._places[26], self._places[17]

        def through(back: float, above: float) -> np.ndarray:
            """A local point of every vertebra, drawn on beyond both ends; ``back`` is behind the rear wall."""
            points = [
                place[:3, 3] + place[:3, :3] @ (0, -self._sizes[label].half_depth - back * self._sizes[label].arch, above)
                for label, place in self._places.items()
            ]
            return np.array([*points, points[-1] + 60 * high[:3, 2]])

        behind = through(8.5, 0.0)
        sacral = [low[:3, 3] + low[:3, :3] @ (0, y, z) for y, z in ((-27, -25), (-28, -50), (-20, -80))]
        behind = np.concatenate([sacral[::-1], behind])
        bodies = np.array([*(place[:3, 3] for place in self._places.values()), high[:3, 3] + 60 * high[:3, 2]])
        bodies = np.concatenate([[low[:3, 3] + low[:3, :3] @ (0, -12, -50)], bodies])
        tips = through(33 + 24 * self.build.process, -12.0)[1:]
        sacral = [low[:3, 3] + low[:3, :3] @ (0, y, z) for y, z in ((-49, -25), (-45, -55), (-26, -85))]
        tips = np.concatenate([sacral[::-1], tips])
        marks = Landmarks(
            spine=_along_z(bodies, (0, 1)),
            canal=_along_z(behind, (0, 1)),
            tips=_along_z(tips, (1,)),
            height={label: float(place[2, 3]) for label, place in self._places.items()},
            pelvis=self._pelvis,
            half_depth=self.build.half_depth,
        )
        return Soft(self.build, marks, Outline(self.build, marks))

    def _disc(self, below: int, above: int) -> Callable[[Points], Layers]:
        lower, upper = self._sizes[below], self._sizes[above]
        ends = self.bones[below].at(0, 0, lower.half_height), self.bones[above].at(0, 0, -upper.half_height)
        height = float(np.linalg.norm(ends[1] - ends[0]))
        turns = Rotation.from_matrix(np.stack([self._places[below][:3, :3], self._places[above][:3, :3]])).mean().as_matrix()
        middle = (ends[0] + ends[1]) / 2
        wear = self.build.wear[self.build.column.index(below)]

        def layers(points: Points) -> Layers:
            frame = torch.as_tensor(turns.T.copy()).to(points)
            return vertebra.disc(frame @ (points - points.new_tensor(middle)[:, None]), upper, lower, height, wear)

        return layers


def _along_z(nodes: np.ndarray, axes: tuple[int, ...]) -> Curve:
    """Coordinates of a line as functions of its z."""
    return curve([(row[2], *(row[a] for a in axes)) for row in nodes])
