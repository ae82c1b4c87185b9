"""How bones move against each other: drawn per joint, handed on along the chain, scaled to the difficulty that is asked for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from osteomorph.simulate.anatomy import Anatomy, Joint, Points, View

LARGEST_TURN_DEG = 30.0
"""Of one joint about one axis, whatever the difficulty."""

TRIES = 25
"""Draws of one joint's motion."""

Step = tuple[tuple[float, ...], tuple[float, ...]]
"""A joint's rotation vector in degrees and its shift in mm."""


@final
@dataclass(frozen=True)
class Motion:
    """How far things move; pairs are ranges from which a value is drawn.

    bone_mm: largest displacement of any bone in view, once the view's lowest labelled bone is aligned.
    skin_mm: displacement near the skin (95th percentile), measured likewise.
    turn: largest motion of a joint in units of its usual range.
    offset_deg, offset_mm: between the two scanners, about and along a random axis.
    """

    bone_mm: tuple[float, float]
    skin_mm: tuple[float, float]
    turn: float
    offset_deg: tuple[float, float]
    offset_mm: tuple[float, float]


DIFFICULTIES = {
    "thesis": Motion((1.5, 4.0), (8.0, 14.0), 1.5, (0.0, 6.0), (0.0, 12.0)),
    "hard": Motion((8.0, 30.0), (12.0, 22.0), 3.0, (5.0, 20.0), (5.0, 25.0)),
}
"""``thesis``: the misalignment that the 2022 thesis reports after its rigid start. ``hard``: up to 30 mm and 30 degrees."""


@final
class Room:
    """Whether a joint can move without its two bones colliding; what it asks of the anatomy is asked once."""

    def __init__(self, anatomy: Anatomy, least_mm: float, device: torch.device | str = "cpu") -> None:
        self.anatomy, self.least_mm, self.device = anatomy, least_mm, device
        self._around: dict[int, Points] = {}

    def fits(self, joint: Joint, step: Step) -> bool:
        """Whether the gap to the parent stays above ``least_mm`` in the moved joint."""
        if joint.parent is None:
            return True
        if joint.bone not in self._around:
            self._around[joint.bone] = self._points(joint, joint.parent)
        points = self._around[joint.bone]
        back = np.linalg.inv(rigid_about(joint.centre_mm, *step))
        both = self.anatomy.bone(joint.parent, points, 8.0) + self.anatomy.bone(joint.bone, apply(back, points), 8.0)
        return points.shape[1] == 0 or float(both.min()) > self.least_mm

    def _points(self, joint: Joint, parent: int) -> Points:
        """Those near both bones as they lie, 2.5 mm apart."""
        axis = torch.arange(-50.0, 50.1, 2.5, dtype=torch.float64, device=self.device)
        centre = torch.tensor(joint.centre_mm, dtype=torch.float64, device=self.device)
        points = torch.cartesian_prod(axis, axis, axis).T + centre[:, None]
        near = self.anatomy.bone(parent, points, 10.0) < 10.0
        points = points[:, near]
        return points[:, self.anatomy.bone(joint.bone, points, 10.0) < 10.0]


def draw_steps(joints: Sequence[Joint], turn: float, generator: np.random.Generator, room: Room) -> dict[int, Step]:
    """Every joint's motion within ``turn`` times its usual range; one that collides is drawn again, a little smaller."""
    steps = {}
    for joint in joints:
        limit = np.minimum(turn * np.array(joint.turn_deg), LARGEST_TURN_DEG)
        for attempt in range(TRIES):
            less = 0.9**attempt
            rotation = generator.uniform(-less, less, 3) * limit
            shift = generator.uniform(-less, less, 3) * turn * np.array(joint.shift_mm)
            steps[joint.bone] = (tuple(rotation.tolist()), tuple(shift.tolist()))
            if room.fits(joint, steps[joint.bone]):
                break
    return steps


def scaled(steps: Mapping[int, Step], factor: float) -> dict[int, Step]:
    return {
        bone: (tuple(factor * r for r in rotation), tuple(factor * s for s in shift))
        for bone, (rotation, shift) in steps.items()
    }


def rigid_about(centre_mm: Sequence[float], rotation_deg: Sequence[float], shift_mm: Sequence[float]) -> np.ndarray:
    """(4, 4) that turns by a rotation vector about a point, then shifts."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(rotation_deg)).as_matrix()
    matrix[:3, 3] = np.asarray(centre_mm) - matrix[:3, :3] @ np.asarray(centre_mm) + np.asarray(shift_mm)
    return matrix


def chain(joints: Sequence[Joint], steps: Mapping[int, Step]) -> dict[int, np.ndarray]:
    """(4, 4) anatomy -> moved anatomy of every bone; each takes along those that hang on it."""
    poses: dict[int, np.ndarray] = {}
    for joint in joints:
        step = rigid_about(joint.centre_mm, *steps[joint.bone])
        poses[joint.bone] = step if joint.parent is None else poses[joint.parent] @ step
    return poses


def apply(matrix: np.ndarray, points: Tensor) -> Tensor:
    """A (4, 4) on points (3, n), in their precision."""
    m = torch.as_tensor(np.array(matrix), dtype=points.dtype, device=points.device)
    return m[:3, :3] @ points + m[:3, 3, None]


def reference(anatomy: Anatomy, view: View) -> int:
    """The view's lowest labelled bone: the first along the chain, on which pairs are thought of as aligned."""
    return next(joint.bone for joint in anatomy.joints if joint.bone in view.labelled)


def samples(anatomy: Anatomy, view: View, spacing_mm: float = 6.0, device: torch.device | str = "cpu") -> dict[int, Points]:
    """Points in and close around every bone in the view's box; bones outside it are left out."""
    half = np.array(view.size_mm) / 2 + 6.0  # the fixed grid may be tilted
    axes = [torch.arange(-h, h + 1e-6, spacing_mm, dtype=torch.float64, device=device) for h in half]
    centre = torch.tensor(view.centre_mm, dtype=torch.float64, device=device)
    points = torch.cartesian_prod(*axes).T + centre[:, None]
    out = {}
    for label in anatomy.names:
        inside = points[:, anatomy.bone(label, points, 4.0) < 3.0]
        if inside.shape[1] > 0:
            out[label] = inside
    return out


def poses(anatomy: Anatomy, view: View, steps: Mapping[int, Step], bones: Iterable[int]) -> dict[int, np.ndarray]:
    """(4, 4) fixed -> anatomy of some bones; the fixed frame is the one in which the reference bone has not moved."""
    moved = chain(anatomy.joints, steps)
    aligned_on = moved[reference(anatomy, view)]
    return {label: np.linalg.inv(moved[label]) @ aligned_on for label in bones}


def largest_displacement(poses: Mapping[int, np.ndarray], bones: Mapping[int, Points], aligned_on: int) -> float:
    """Of any bone's points against one bone, mm."""
    back = np.linalg.inv(poses[aligned_on])
    return max(float((apply(back @ poses[k], points) - points).norm(dim=0).max()) for k, points in bones.items())


def scale_to(
    joints: Sequence[Joint], steps: Mapping[int, Step], bones: Mapping[int, Points], aligned_on: int, goal_mm: float
) -> dict[int, Step]:
    """Steps made smaller until no bone moves further than ``goal_mm``; never larger."""
    low, high = 0.0, 1.0
    if largest_displacement(chain(joints, steps), bones, aligned_on) <= goal_mm:
        return dict(steps)
    for _ in range(14):
        middle = (low + high) / 2
        far = largest_displacement(chain(joints, scaled(steps, middle)), bones, aligned_on) > goal_mm
        low, high = (low, middle) if far else (middle, high)
    return scaled(steps, low)
