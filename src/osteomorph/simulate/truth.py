"""The true transform of a simulated pair: rigid in every bone, exactly invertible, checked for folds and collisions."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from osteomorph.simulate.anatomy import CHUNK, FAR_MM, Anatomy, Points
from osteomorph.simulate.motion import apply
from osteomorph.transforms import Transform


def in_parts(function: Callable[[Tensor], Tensor], points: Float[Tensor, "a n"]) -> Float[Tensor, "b n"]:
    """A function of points on ``CHUNK`` of them at a time, on every core."""
    parts = points.split(CHUNK, dim=1)
    if len(parts) == 1:
        return function(points)
    with ThreadPoolExecutor(cpu_count()) as pool:
        return torch.cat(list(pool.map(function, parts)), 1)


class Truth(Transform):
    """fixed -> moving: bones by their poses, soft tissue as a generator of its own has it, then the scanners' offset."""

    anatomy: Anatomy
    """What is moved."""

    poses: Mapping[int, np.ndarray]
    """Bone -> (4, 4) fixed -> anatomy."""

    offset: np.ndarray
    """(4, 4) anatomy -> moving."""

    @abstractmethod
    def part_to_anatomy(self, points: Points) -> Points:
        """Fixed -> anatomy of a few points, float64."""

    @abstractmethod
    def guess_fixed(self, points: Points) -> Points:
        """Fixed points that go near anatomy points: exact in bones."""

    @final
    def to_anatomy(self, points: Points) -> Points:
        """The transform before the offset."""
        return in_parts(self.part_to_anatomy, points)

    @final
    def __call__(self, points_mm: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        return apply(self.offset, self.to_anatomy(points_mm.double())).to(points_mm.dtype)

    @final
    def inverse(self) -> "TruthInverse":
        return TruthInverse(self)

    @final
    def bone_pose(self, label: int) -> np.ndarray:
        """(4, 4) fixed -> moving of one bone."""
        return self.offset @ self.poses[label]

    @final
    def distance(self, label: int, points: Points, reach_mm: float = 10.0) -> Float[Tensor, " n"]:
        """To a bone where it lies in the fixed image; FAR_MM beyond reach."""
        return self.anatomy.bone(label, apply(self.poses[label], points), reach_mm)


@final
@dataclass(frozen=True, eq=False)
class TruthInverse(Transform):
    """The inverse, to about ``tolerance_mm``: fixed-point steps, then damped Newton steps where those do not settle."""

    forward: Truth
    tolerance_mm: float = 1e-5

    def __call__(self, points_mm: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        goal = apply(np.linalg.inv(self.forward.offset), points_mm.double())
        return in_parts(self._part, goal).to(points_mm.dtype)

    def inverse(self) -> Truth:
        return self.forward

    def _part(self, goal: Tensor) -> Tensor:
        forward = self.forward.part_to_anatomy
        guess = self.forward.guess_fixed(goal)
        error = goal - forward(guess)
        for step in range(60):
            active = (error.norm(dim=0) > self.tolerance_mm).nonzero()[:, 0]
            if active.numel() == 0:
                break
            here, off = guess[:, active], error[:, active]
            move = off if step < 6 else torch.linalg.solve(jacobian(forward, here, 1e-4), off.T[..., None])[..., 0].T
            for damping in (1.0, 0.5, 0.2, 0.05):  # a step past a bone's surface can overshoot
                trial = here + damping * move
                left = goal[:, active] - forward(trial)
                better = left.norm(dim=0) < off.norm(dim=0)
                guess[:, active[better]], error[:, active[better]] = trial[:, better], left[:, better]
                active, here, off, move = active[~better], here[:, ~better], off[:, ~better], move[:, ~better]
                if active.numel() == 0:
                    break
        return guess


def jacobian(function: Callable[[Tensor], Tensor], points: Points, step_mm: float) -> Float[Tensor, "n 3 3"]:
    """Of a function of points, by forward differences over ``step_mm``."""
    here = function(points)
    columns = []
    for axis in range(3):
        shift = torch.zeros(3, 1, dtype=points.dtype)
        shift[axis] = step_mm
        columns.append((function(points + shift) - here) / step_mm)
    return torch.stack(columns).permute(2, 1, 0)


def least_determinant(truth: Truth, points: Points) -> float:
    """Smallest Jacobian determinant over fixed points."""
    return float(torch.linalg.det(jacobian(truth.to_anatomy, points, 0.02)).min())


def near_joints(anatomy: Anatomy, poses: Mapping[int, np.ndarray], points: Points) -> Float[Tensor, "3 m"]:
    """Of fixed points some 3 mm apart, those within 6 mm of two bones, each as 27 points 1 mm apart."""
    second = _two_least(anatomy, poses, points)[1]
    steps = torch.linspace(-1.0, 1.0, 3, dtype=torch.float64)
    return (points[:, second < 6.0, None] + torch.cartesian_prod(steps, steps, steps).T[:, None]).flatten(1)


def joint_gap_mm(anatomy: Anatomy, poses: Mapping[int, np.ndarray], points: Points) -> float:
    """Least sum of distances to two bones over ``points``: about the gap between the bones in the fixed image."""
    least, second = _two_least(anatomy, poses, points)
    return float((least + second).min()) if points.shape[1] else FAR_MM


def _two_least(anatomy: Anatomy, poses: Mapping[int, np.ndarray], points: Tensor) -> tuple[Tensor, Tensor]:
    def part(here: Tensor) -> Tensor:
        least, second = (torch.full_like(here[0], FAR_MM) for _ in range(2))
        for label, pose in poses.items():
            distance = anatomy.bone(label, apply(pose, here), 6.0)
            second = torch.minimum(second, torch.maximum(least, distance))
            least = torch.minimum(least, distance)
        return torch.stack([least, second])

    least, second = in_parts(part, points)
    return least, second
