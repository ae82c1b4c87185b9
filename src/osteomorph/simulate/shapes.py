"""Shapes as signed distances: negative inside, in mm. Points (3, n) give (n,)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator
from torch import Tensor

Points = Float[Tensor, "3 n"]
Distance = Float[Tensor, " n"]
Real = int | float


def column(points: Tensor, *values: Real) -> Tensor:
    return points.new_tensor(values)[:, None]


def length(*parts: Tensor) -> Tensor:
    total = parts[0] * parts[0]
    for part in parts[1:]:
        total = torch.addcmul(total, part, part)
    return total.sqrt_()


def ellipse(u: Tensor, v: Tensor, a: Tensor | Real, b: Tensor | Real) -> Tensor:
    """About the distance to an ellipse with half axes a and b, exact to first order at its border."""
    p, q = u / a, v / b
    radius = length(p, q)
    least = torch.minimum(torch.as_tensor(a).to(u), torch.as_tensor(b).to(u))
    return _from_radius(radius, length(p / a, q / b), least)


def ellipsoid(points: Points, centre: Sequence[Real], half: Sequence[Real]) -> Distance:
    """About the distance to an ellipsoid, exact to first order at its surface."""
    q = (points - column(points, *centre)) / column(points, *half)
    return _from_radius(length(*q), length(*(q / column(points, *half))), float(min(half)))


def _from_radius(radius: Tensor, slope: Tensor, least: Tensor | float) -> Tensor:
    """(radius - 1) times the length of the half axis there, which passes into the least one towards the middle."""
    axis = radius / slope.clamp(min=1e-6)
    return (radius - 1) * (least + (axis - least) * radius.clamp(max=1).square())


def ball(points: Points, centre: Sequence[Real], radius: Real) -> Distance:
    return length(*(points - column(points, *centre))) - radius


def strut(
    points: Points,
    start: Sequence[Real],
    end: Sequence[Real],
    radius: tuple[Real, Real],
    half_height: tuple[Real, Real] = (0, 0),
) -> Distance:
    """A bar from start to end, rounded, drawn out along z by half_height to a plate; both may taper."""
    axis = np.subtract(end, start).astype(float)
    plate = half_height[0] > 0
    x, y, z = (points[k] - float(start[k]) for k in range(3))
    size = float(axis[:2] @ axis[:2]) if plate else float(axis @ axis)
    along = x * (axis[0] / size) + y * (axis[1] / size)
    t = (along if plate else along + z * (axis[2] / size)).clamp_(0, 1)
    x, y, z = x - t * axis[0], y - t * axis[1], z - t * axis[2]
    if plate:
        z = (z.abs() - (half_height[0] + t * (half_height[1] - half_height[0]))).clamp_(min=0)
    return length(x, y, z) - (radius[0] + t * (radius[1] - radius[0]))


def tube(
    points: Points, nodes: Sequence[Sequence[Real]], radii: Sequence[Real], half_heights: Sequence[Real] | None = None
) -> Distance:
    """Struts from node to node."""
    heights = half_heights or [0] * len(nodes)
    out = None
    for k in range(len(nodes) - 1):
        piece = strut(points, nodes[k], nodes[k + 1], (radii[k], radii[k + 1]), (heights[k], heights[k + 1]))
        out = piece if out is None else torch.minimum(out, piece)
    assert out is not None
    return out


def join(first: Distance, second: Distance, blend_mm: float) -> Distance:
    """Union with a fillet."""
    overlap = (blend_mm - (first - second).abs()).clamp_(min=0)
    return torch.addcmul(torch.minimum(first, second), overlap, overlap, value=-0.25 / blend_mm)


def meet(first: Distance, second: Distance, blend_mm: float) -> Distance:
    """Intersection with a rounded edge."""
    overlap = (blend_mm - (first - second).abs()).clamp_(min=0)
    return torch.addcmul(torch.maximum(first, second), overlap, overlap, value=0.25 / blend_mm)


@final
@dataclass(frozen=True, eq=False)
class Curve:
    """Smooth functions of one coordinate through nodes, constant beyond them.

    start: first coordinate tabulated, in steps of 1 mm.
    table: (m, k) values of m functions.
    """

    start: float
    table: Tensor

    def __call__(self, at: Float[Tensor, " n"]) -> Float[Tensor, "m n"]:
        place = (at - self.start).clamp(0, self.table.shape[1] - 1.001)
        low = place.long()
        part = place - low
        table = self.table.to(at)
        return torch.stack([torch.lerp(row[low], row[low + 1], part) for row in table])


def curve(nodes: Sequence[Sequence[Real]]) -> Curve:
    """Through rows (coordinate, value, value...), without overshoot; piecewise cubic, monotone between nodes."""
    rows = np.array(sorted(tuple(float(v) for v in row) for row in nodes))
    at = np.arange(rows[0, 0], rows[-1, 0] + 2.0)
    values = PchipInterpolator(rows[:, 0], rows[:, 1:], axis=0)(at.clip(max=rows[-1, 0]))
    return Curve(float(rows[0, 0]), torch.as_tensor(values.T.copy()))


def loft(points: Points, sections: Curve) -> Distance:
    """A body along z with elliptic sections: the curve gives (y of the middle, half width, half depth); open at its ends."""
    x, y, z = points
    middle, wide, deep = sections(z)
    _, wide_on, deep_on = sections(z + 2.0)
    slope = 0.25 * ((wide_on - wide).abs() + (deep_on - deep).abs())
    return ellipse(x, y - middle, wide, deep) / (1 + slope * slope).sqrt()
