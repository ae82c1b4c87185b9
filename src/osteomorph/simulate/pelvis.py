"""Hip bones and femurs. Pelvis frame: origin midway between the femoral heads, axes as the anatomy frame's, mm.

Shapes are drawn for the right side; the left is its mirror image.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from osteomorph.simulate.anatomy import Distance, Points
from osteomorph.simulate.build import Build
from osteomorph.simulate.procedural import Bone
from osteomorph.simulate.shapes import ball, column, ellipse, ellipsoid, join, meet, strut, tube

HEAD_MM = 88.0
"""From the midline to the centre of a femoral head."""

HEAD_RADIUS_MM = 23.5

SACRUM_MM = 112.0
"""From the middle between the femoral heads to the middle of the sacral end plate."""

TILT_DEG = 17.0
"""Pelvic tilt at which the hip bones lie as drawn here."""

SHAFT_END_MM = -120.0
"""Where femurs are cut, below the head."""


def wing(p: Points) -> tuple[Tensor, Tensor]:
    """Of the iliac wing: distance beyond its middle surface, to the side; distance to its outline as seen from the side."""
    x, y, z = p
    bend = torch.sigmoid(-y / 12)
    surface = 90 + 0.28 * y - 0.46 * softplus(-y / 12) * 12 + 0.32 * (z - 15)
    away = (x - surface) / (1 + (0.28 + 0.46 * bend).square() + 0.32**2).sqrt()
    outline = ellipse(y + 28, z - 42, 74.0, 84.0)
    notch = (15 - 0.6 * (y + 25) - z) / 1.166
    front = (y - 26 - 0.4 * (z - 25)) / 1.077
    outline = meet(meet(outline, torch.maximum(notch, 4 - z), 8.0), front, 8.0)
    return away, outline


def hip(p: Points) -> Distance:
    """Ilium, ischium and pubis of the right side, before the femoral head makes room for itself."""
    _, y, z = p
    away, outline = wing(p)
    thick = 3.3 + 3.6 * torch.exp(-(outline / 7).square()) * torch.sigmoid((z - 45) / 8)
    thick = thick + 4.5 * torch.exp(-((y + 68).square() + (z - 86).square()) / 24**2) + 7 * torch.sigmoid((28 - z) / 8)
    bone = meet(away.abs() - thick, outline, 4.0) / 1.05

    head = (HEAD_MM, 0.0, 0.0)
    normal = np.array([0.72, 0.28, -0.63])
    normal /= np.linalg.norm(normal)
    opening = ((p - column(p, *head)) * column(p, *normal)).sum(0)
    socket = meet(ball(p, (HEAD_MM - 1.5, -1, 1.5), HEAD_RADIUS_MM + 9.5), opening - 5, 3.0)
    bone = join(bone, socket, 8.0)

    ischium = strut(p, (78, -26, -14), (64, -33, -66), (14, 15))
    ramus = tube(p, [(62, -28, -74), (44, -4, -70), (13, 34, -46)], [10, 6.5, 6.5])
    upper = tube(p, [(78, 16, 8), (52, 40, 8), (13, 50, -10)], [12, 8, 9])
    body = strut(p, (10, 47, -12), (9, 38, -42), (8.5, 7.5))
    for part in (ischium, ramus, upper, body):
        bone = join(bone, part, 6.0)
    bone = torch.minimum(bone, strut(p, (60, -49, 8), (66, -42, -6), (4.0, 5.0)))  # ischial spine
    return meet(bone, 2.2 - p[0], 1.5)


def femur(p: Points, neck_deg: float) -> Distance:
    """Upper end of a right femur; the origin is the centre of its head."""
    angle = np.radians(neck_deg - 90)
    reach = np.array([np.cos(angle), -0.12, -np.sin(angle)]) * 52
    x, y, z = (float(v) for v in reach)
    head = ball(p, (0, 0, 0), HEAD_RADIUS_MM)
    neck = strut(p, (0, 0, 0), (x, y, z), (14.5, 15.5))
    trochanter = ellipsoid(p, (x + 9, y - 6, z + 6), (13.5, 17, 22))
    shaft = tube(p, [(x + 2, y, z - 6), (x - 3, y + 2, z - 50), (x - 10, y + 8, z - 120)], [18, 15, 14])
    lesser = ellipsoid(p, (x - 15, y - 13, z - 30), (9, 9, 13))
    bone = join(head, neck, 5.0)
    for part in (trochanter, shaft, lesser):
        bone = join(bone, part, 9.0)
    return torch.maximum(bone, SHAFT_END_MM - p[2])


def bones(build: Build, place: np.ndarray) -> dict[int, Bone]:
    """Hip bones and femurs. place: (4, 4) pelvis frame -> anatomy frame."""
    out = {}
    for side, hip_label, femur_label in ((-1.0, 31, 33), (1.0, 32, 34)):
        head = np.eye(4)
        head[:3, 3] = place[:3, :3] @ (side * HEAD_MM * build.hip_width, 0, 0) + place[:3, 3]
        stretch = (side / build.hip_width, 1.0, 1.0)
        out[femur_label] = Bone(
            head, _sided(lambda p: femur(p, build.neck_deg), (side, 1.0, 1.0)), _femoral_cortex, _mirrored(_FEMUR_BOX, side)
        )
        out[hip_label] = Bone(place, _sided(hip, stretch), lambda p: torch.full_like(p[0], 1.3), _mirrored(_HIP_BOX, side))
    return out


_HIP_BOX = ((0.0, -112.0, -100.0), (155.0, 65.0, 140.0))
_FEMUR_BOX = ((-35.0, -50.0, -135.0), (85.0, 45.0, 35.0))


def _sided(shape: Callable[[Points], Distance], factors: tuple[float, float, float]) -> Callable[[Points], Distance]:
    return lambda p: shape(p * column(p, *factors))


def _mirrored(box: tuple, side: float) -> tuple:
    if side > 0:
        return box
    (a, b, c), (d, e, f) = box
    return (-d, b, c), (-a, e, f)


def _femoral_cortex(p: Points) -> Distance:
    """Thin over the head, thick in the shaft."""
    return 1.3 + 3.4 * torch.sigmoid(-(p[2] + 68) / 8)
