"""The surfaces that hold everything else in the trunk: skin, what lies under its fat, the cavity of the organs; mm."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch.nn.functional import softplus

from osteomorph.simulate.anatomy import Distance, Points
from osteomorph.simulate.build import Build
from osteomorph.simulate.shapes import Curve, curve, ellipse, join, loft, meet


@final
@dataclass(frozen=True, eq=False)
class Landmarks:
    """Where the bones lie, anatomy frame.

    spine, canal: z -> (x, y) through the middles of bodies and of the spinal canal.
    tips: z -> y of the tips of spinous processes.
    height: label -> z of the middle of a body.
    pelvis: (4, 4) pelvis frame -> anatomy frame.
    """

    spine: Curve
    canal: Curve
    tips: Curve
    height: dict[int, float]
    pelvis: np.ndarray
    half_depth: float

    @property
    def hip(self) -> tuple[float, float]:
        """y and z midway between the femoral heads."""
        return float(self.pelvis[1, 3]), float(self.pelvis[2, 3])


@final
@dataclass(frozen=True, eq=False)
class Outline:
    build: Build
    marks: Landmarks

    @cached_property
    def _outline(self) -> Curve:
        """z -> y of the middle, half width, half depth of the skin of the trunk."""
        b, (y, z), top = self.build, self.marks.hip, self.marks.height[17]
        fat = b.fat
        half = curve(  # z -> half width, y of the front, fat relative to the back's
            [
                (top + 60, 136, 104, 0.6),
                (top, 138, 106, 0.6),
                ((z + 125 + top) / 2, 128, 100 + b.belly, 1.0),
                (z + 120, 132 * b.hip_width, 98 + b.belly, 1.1),
                (z + 60, 147 * b.hip_width, y + 76 + 0.8 * b.belly, 1.2),
                (z, 160 * b.hip_width, y + 76 + 0.3 * b.belly, 1.2),
                (z - 60, 160 * b.hip_width, y + 70, 1.0),
                (z - 160, 150 * b.hip_width, y + 66, 0.8),
            ]
        )
        buttocks = curve([(z + 140, 40), (z + 70, 88), (z, 112), (z - 40, 114), (z - 90, 92)])
        at = torch.arange(z - 160, top + 61, 20, dtype=torch.float64)
        wide, front, thick = half(at)
        rear = torch.minimum(self.marks.tips(at)[0] - 5, y - buttocks(at)[0] - 0.2 * fat) - fat
        front = front + 0.8 * thick * fat
        rows = torch.stack([at, (front + rear) / 2, wide + thick * fat, (front - rear) / 2], 1)
        return curve(rows.tolist())

    @cached_property
    def cavity(self) -> Curve:
        """The same for the cavity of chest, abdomen and pelvis."""
        b, (y, z) = self.build, self.marks.hip
        rows = []
        for at in np.arange(z + 130, self.marks.height[17] + 61, 25.0):
            middle, half, deep = (float(v) for v in self._outline(torch.tensor([at], dtype=torch.float64))[:, 0])
            wall = 13 * b.muscle
            front = middle + deep - 0.8 * b.fat - wall
            rear = float(self.marks.spine(torch.tensor([at], dtype=torch.float64))[1, 0]) - 26
            rows.append((at, (front + rear) / 2, half - b.fat - wall - 4, (front - rear) / 2))
        middle, half, deep = rows[0][1:]
        for at, wide, share in (
            (88, 100, 0.93),
            (50, 77, 0.8),
            (20, 58, 0.72),
            (-5, 50, 0.62),
            (-32, 38, 0.45),
            (-60, 10, 0.12),
        ):
            front = y + 44 if at < 30 else middle + deep * (1 if at > 60 else 0.85)
            half_deep = min(deep * share, (front - y + 92) / 2) if at > 30 else 64 * share
            rows.append((z + at, front - half_deep, wide * b.hip_width, half_deep))
        return curve(rows)

    def skin(self, points: Points) -> Distance:
        """Trunk and thighs."""
        x, y, z = points
        hip_y, hip_z = self.marks.hip
        rear = self.marks.tips(z)[0] - 5 - self.build.fat
        furrow = 5.0 * torch.exp(-(x / 10).square() - ((y - rear) / 25).square())
        cleft = 16.0 * torch.exp(-(x / 7).square()) * torch.sigmoid((hip_y - 60 - y) / 8) * torch.sigmoid((hip_z + 35 - z) / 10)
        trunk = meet(loft(points, self._outline) + furrow + cleft, hip_z - 78 - z, 40.0)
        fat = self.build.fat
        half = 70 + 0.8 * fat
        middle = 88 * self.build.hip_width
        thigh = ellipse(x.abs() - middle - 4, y - hip_y + 4, half, half + 6)
        thigh = (thigh + 6 * softplus((z - hip_z + 85) / 8)) / 1.15
        return join(trunk, meet(thigh, 3.0 - x.abs(), 6.0), 14.0)

    def flesh(self, points: Points) -> Distance:
        """Under the fat below the skin."""
        _, y, z = points
        hip_y, hip_z = self.marks.hip
        rear = torch.sigmoid((hip_y - 40 - y) / 15)
        low = torch.sigmoid((hip_z + 70 - z) / 15)
        extra = 0.1 + 0.5 * rear * low + 0.25 * self.build.belly / 30 * (1 - low) * torch.sigmoid((y - 40) / 20)
        return self.skin(points) + 2.0 + self.build.fat * (0.8 + extra)

    def inner(self, points: Points) -> Distance:
        """Inside of the wall of chest, abdomen and pelvis; open below."""
        return loft(points, self.cavity)
