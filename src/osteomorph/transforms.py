"""Transforms: functions on world points, fixed mm -> moving mm, always."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from osteomorph import fields
from osteomorph.geometry import Grid, sample


class Transform(ABC):
    """y = T(x), x in fixed world mm, y in moving world mm (RAS+)."""

    @abstractmethod
    def __call__(self, points_mm: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        """Where points go."""

    @abstractmethod
    def inverse(self) -> "Transform":
        """The transform from moving to fixed world mm."""

    @final
    def after(self, first: "Transform") -> "Transform":
        """x -> self(first(x))."""
        steps = [*_steps(first), *_steps(self)]
        merged: list[Transform] = []
        for step in steps:
            if merged and isinstance(step, Rigid) and isinstance(merged[-1], Rigid):
                merged[-1] = Rigid(step.matrix @ merged[-1].matrix)
            else:
                merged.append(step)
        return merged[0] if len(merged) == 1 else Chain(tuple(merged))

    @final
    def displacement(self, grid: Grid, dtype: torch.dtype = torch.float32) -> Float[Tensor, "3 i j k"]:
        """T(x) - x in mm at every voxel centre of ``grid``."""
        out = torch.empty(3, *grid.shape, dtype=dtype)
        for planes, part in grid.slabs():  # 512^3 voxels need no second copy
            moved = self.carried(part).sub_(part.points(torch.float64).flatten(1))
            out[:, planes] = moved.to(dtype).unflatten(-1, part.shape)
        return out

    def carried(self, grid: Grid) -> Float64[Tensor, "3 n"]:
        """Where every voxel centre of a grid goes."""
        return self(grid.points(torch.float64).flatten(1))


def _steps(transform: Transform) -> tuple[Transform, ...]:
    return transform.steps if isinstance(transform, Chain) else (transform,)


@final
@dataclass(frozen=True, eq=False)
class Rigid(Transform):
    """Rotation and translation: y = R x + t.

    matrix: (4, 4) float64 in RAS mm, read-only; R orthonormal to 1e-6 with determinant 1.
    """

    matrix: np.ndarray

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise ValueError("A rigid transform is a finite 4x4 matrix.")
        rotation = matrix[:3, :3]
        if np.abs(rotation.T @ rotation - np.eye(3)).max() > 1e-6 or np.linalg.det(rotation) < 0:
            raise ValueError("Not a rigid matrix: its rotation part is not orthonormal with determinant 1.")
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def identity(cls) -> "Rigid":
        return cls(np.eye(4))

    @classmethod
    def nearest(cls, matrix: np.ndarray) -> "Rigid":
        """Of a matrix that is rigid but for the rounding that products of rotations gather."""
        u, _, vt = np.linalg.svd(matrix[:3, :3])
        out = np.array(matrix, dtype=np.float64)
        out[:3, :3] = u @ vt
        return cls(out)

    def __call__(self, points_mm: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        matrix = torch.as_tensor(self.matrix.copy(), device=points_mm.device)
        return (matrix[:3, :3] @ points_mm.double() + matrix[:3, 3, None]).to(points_mm.dtype)

    def inverse(self) -> "Rigid":
        rotation = self.matrix[:3, :3].T
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ self.matrix[:3, 3]
        return Rigid(matrix)

    @property
    def angle_deg(self) -> float:
        """Rotation angle about the transform's own axis."""
        rotation = self.matrix[:3, :3]
        sine = (
            np.linalg.norm([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
            / 2
        )
        return float(np.degrees(np.arctan2(sine, (np.trace(rotation) - 1) / 2)))


@final
@dataclass(frozen=True, eq=False)
class Displacement(Transform):
    """y = x + u(x), u linear between voxel centres and that of the border beyond them.

    vectors: (3, i, j, k) mm along RAS axes, on ``grid`` (in fixed space).
    """

    vectors: Float[Tensor, "3 i j k"] = field(repr=False)
    grid: Grid

    def __post_init__(self) -> None:
        if tuple(self.vectors.shape) != (3, *self.grid.shape):
            raise ValueError(
                f"Vectors {tuple(self.vectors.shape)} do not fit the grid {self.grid.shape}: expected (3, i, j, k)."
            )

    def __call__(self, points_mm: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        return points_mm + sample(self.vectors, self.grid, points_mm).to(points_mm.dtype)

    def carried(self, grid: Grid) -> Float64[Tensor, "3 n"]:
        part = self.grid.part(grid)
        if part is None:
            return self(grid.points(torch.float64).flatten(1))
        return grid.points(torch.float64).add_(self.vectors[:, part[0], part[1], part[2]]).flatten(1)

    def inverse(self) -> "Displacement":
        """By Newton steps, on this grid padded by the largest displacement."""
        onto = self.grid.padded(fields.margin_voxels(self.vectors, self.grid))
        return Displacement(fields.inverse(self.vectors, self.grid, onto), onto)


@final
@dataclass(frozen=True, eq=False)
class Velocity(Transform):
    """Flow at time 1 of a stationary velocity field: invertible, and its inverse is the flow of the opposite velocity.

    vectors: (3, i, j, k) mm per unit of time along RAS axes, on ``grid`` (in fixed space).
    squarings: steps of scaling and squaring.
    """

    vectors: Float[Tensor, "3 i j k"] = field(repr=False)
    grid: Grid
    squarings: int = 6

    @cached_property
    def flow(self) -> Displacement:
        """The displacement it integrates to."""
        return Displacement(fields.exponential(self.vectors, self.grid, self.squarings), self.grid)

    def __call__(self, points_mm: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        return self.flow(points_mm)

    def carried(self, grid: Grid) -> Float64[Tensor, "3 n"]:
        return self.flow.carried(grid)

    def inverse(self) -> "Velocity":
        return Velocity(-self.vectors, self.grid, self.squarings)


@final
@dataclass(frozen=True, eq=False)
class Chain(Transform):
    """Transforms applied one after the other, ``steps[0]`` first."""

    steps: tuple[Transform, ...]

    def __call__(self, points_mm: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        for step in self.steps:
            points_mm = step(points_mm)
        return points_mm

    def carried(self, grid: Grid) -> Float64[Tensor, "3 n"]:
        points_mm = self.steps[0].carried(grid)
        for step in self.steps[1:]:
            points_mm = step(points_mm)
        return points_mm

    def inverse(self) -> "Chain":
        return Chain(tuple(step.inverse() for step in reversed(self.steps)))
