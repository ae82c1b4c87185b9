"""Bones that move rigidly in soft tissue that gives: the true transform of a simulated pair.

The soft field solves Poisson's equation on a coarse lattice: bones prescribe their own motion, smooth random forces act in
between, nothing is prescribed at the outer border. It belongs to no model that a registration optimises over.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage, sparse
from scipy.sparse.linalg import splu
from scipy.spatial.transform import Rotation
from torch import Tensor

from osteomorph.geometry import Grid
from osteomorph.simulate.anatomy import BONES, CHUNK, FAR_MM, Anatomy
from osteomorph.transforms import Transform

MARGIN_MM = 0.4
"""Tissue around a bone that moves exactly as the bone does."""

REACH_MM = 9.0
"""Distance at which a bone's own motion has given way to the soft field."""

LATTICE_MM = 7.0
"""Spacing of the soft field."""


def rigid_about(centre_mm: np.ndarray, rotation_deg: np.ndarray, shift_mm: np.ndarray) -> np.ndarray:
    """(4, 4) that turns by a rotation vector about a point, then shifts."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(rotation_deg)).as_matrix()
    matrix[:3, 3] = centre_mm - matrix[:3, :3] @ centre_mm + shift_mm
    return matrix


def chain(anatomy: Anatomy, rotations_deg: np.ndarray, shifts_mm: np.ndarray) -> dict[int, np.ndarray]:
    """(4, 4) anatomy -> fixed of every bone, each turned and shifted against the one below; row 0 is the sacrum."""
    poses: dict[int, np.ndarray] = {}
    for row, label in enumerate(BONES):
        centre = anatomy.bones[label].at(0, 0, 0) if row == 0 else anatomy.joint_mm(label)
        step = rigid_about(centre, rotations_deg[row], shifts_mm[row])
        poses[label] = step if row == 0 else poses[BONES[row - 1]] @ step
    return poses


def _apply(matrix: np.ndarray, points: Tensor) -> Tensor:
    m = torch.as_tensor(np.array(matrix))
    return m[:3, :3] @ points + m[:3, 3, None]


@final
@dataclass(frozen=True, eq=False)
class Articulated(Transform):
    """T(x) = offset(x + u(x) + sum_k w_k(x) (P_k x - x - u(x))): the weight w_k is 1 in bone k and MARGIN_MM around it.

    The weights are Franke and Little's (inverse distance to the bone, of bounded support), of bones where they lie in the
    fixed image.

    poses: bone -> (4, 4) fixed -> anatomy.
    offset: (4, 4) anatomy -> moving, between the two scanners.
    coefficients: (3, i, j, k) of the cubic B-spline of the soft field u in mm, on ``lattice``.
    """

    anatomy: Anatomy
    poses: Mapping[int, np.ndarray]
    offset: np.ndarray
    coefficients: np.ndarray = field(repr=False)
    lattice: Grid

    def __call__(self, points_mm: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        return _apply(self.offset, self.to_anatomy(points_mm.double())).to(points_mm.dtype)

    def inverse(self) -> "ArticulatedInverse":
        return ArticulatedInverse(self)

    def bone_pose(self, label: int) -> np.ndarray:
        """(4, 4) fixed -> moving of one bone."""
        return self.offset @ self.poses[label]

    def distance(self, label: int, points: Float[Tensor, "3 n"]) -> Float[Tensor, " n"]:
        """To a bone where it lies in the fixed image; FAR_MM beyond reach."""
        return self.anatomy.bone(label, _apply(self.poses[label], points), REACH_MM + MARGIN_MM)

    def to_anatomy(self, points: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        """The transform before the offset."""
        return torch.cat([self._to_anatomy(part) for part in points.split(CHUNK, dim=1)], 1)

    def _to_anatomy(self, points: Tensor) -> Tensor:
        return self._blend(points, {k: self.distance(k, points) for k in BONES}, points + self.soft(points), dict(self.poses))

    def guess_fixed(self, points: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        """Fixed points that go near anatomy points: exact in bones."""
        distances = {k: self.anatomy.bone(k, points, REACH_MM + MARGIN_MM) for k in BONES}
        back = {k: np.linalg.inv(pose) for k, pose in self.poses.items()}
        return self._blend(points, distances, points - self.soft(points), back)

    def soft(self, points: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        """u in mm; beyond the lattice that of its border."""
        index = self.lattice.index(points).numpy()
        values = [ndimage.map_coordinates(c, index, order=3, mode="nearest", prefilter=False) for c in self.coefficients]
        return torch.as_tensor(np.stack(values))

    @staticmethod
    def _blend(points: Tensor, distances: dict[int, Tensor], base: Tensor, poses: dict[int, np.ndarray]) -> Tensor:
        total = torch.ones_like(points[0])
        change = torch.zeros_like(points)
        for label, distance in distances.items():
            near = (distance < REACH_MM + MARGIN_MM).nonzero()[:, 0]
            gap = (distance[near] - MARGIN_MM).clamp(min=1e-10)
            weight = (1 - gap / REACH_MM).clamp(min=0).square() * (REACH_MM / gap) ** 1.1
            change[:, near] += weight * (_apply(poses[label], points[:, near]) - base[:, near])
            total[near] += weight
        return base + change / total


@final
@dataclass(frozen=True, eq=False)
class ArticulatedInverse(Transform):
    """The inverse, to about ``tolerance_mm``: fixed-point steps, then damped Newton steps where those do not settle."""

    forward: Articulated
    tolerance_mm: float = 1e-5

    def __call__(self, points_mm: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        goal = _apply(np.linalg.inv(self.forward.offset), points_mm.double())
        guess = self.forward.guess_fixed(goal)
        error = goal - self.forward.to_anatomy(guess)
        for step in range(60):
            active = (error.norm(dim=0) > self.tolerance_mm).nonzero()[:, 0]
            if active.numel() == 0:
                break
            here, off = guess[:, active], error[:, active]
            move = off if step < 6 else torch.linalg.solve(self._jacobian(here), off.T[..., None])[..., 0].T
            for damping in (1.0, 0.5, 0.2, 0.05):  # a step past a bone's surface can overshoot
                trial = here + damping * move
                left = goal[:, active] - self.forward.to_anatomy(trial)
                better = left.norm(dim=0) < off.norm(dim=0)
                guess[:, active[better]], error[:, active[better]] = trial[:, better], left[:, better]
                active, here, off, move = active[~better], here[:, ~better], off[:, ~better], move[:, ~better]
                if active.numel() == 0:
                    break
        return guess.to(points_mm.dtype)

    def inverse(self) -> Articulated:
        return self.forward

    def _jacobian(self, points: Tensor) -> Tensor:
        return jacobian(self.forward, points, 1e-4)


def jacobian(transform: Articulated, points: Float[Tensor, "3 n"], step_mm: float) -> Float[Tensor, "n 3 3"]:
    """Of the transform before the offset, by forward differences over ``step_mm``."""
    here = transform.to_anatomy(points)
    columns = []
    for axis in range(3):
        shift = torch.zeros(3, 1, dtype=points.dtype)
        shift[axis] = step_mm
        columns.append((transform.to_anatomy(points + shift) - here) / step_mm)
    return torch.stack(columns).permute(2, 1, 0)


def soft_field(
    anatomy: Anatomy, poses: Mapping[int, np.ndarray], lattice: Grid, force: np.ndarray, soft_mm: float
) -> np.ndarray:
    """B-spline coefficients of u: bones prescribe P_k x - x; what ``force`` adds has ``soft_mm`` as its 99th percentile."""
    points = lattice.points(torch.float64).flatten(1)
    prescribed = np.zeros((3, lattice.voxels))
    held = np.zeros(lattice.voxels, dtype=bool)
    for label in BONES:
        there = _apply(poses[label], points)
        inside = (anatomy.bone(label, there, 3.0) < 0.25 * LATTICE_MM).numpy()
        prescribed[:, inside] = (there - points).numpy()[:, inside]
        held |= inside
    matrix = _laplacian(lattice.shape)
    free = np.flatnonzero(~held)
    sides = np.hstack([-matrix[free] @ prescribed.T, force.reshape(3, -1).T[free]])
    solver = splu(matrix[free][:, free].tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    carried, driven = np.split(solver.solve(sides).T, 2)
    driven *= soft_mm / np.percentile(np.linalg.norm(driven, axis=0), 99)
    prescribed[:, free] = carried + driven
    return np.stack([ndimage.spline_filter(u, order=3, mode="nearest") for u in prescribed.reshape(3, *lattice.shape)])


def _laplacian(shape: tuple[int, int, int]) -> sparse.csr_matrix:
    """Seven-point, positive semi-definite, no flux through the border."""
    total = sparse.csr_matrix((int(np.prod(shape)),) * 2)
    for axis, n in enumerate(shape):
        difference = sparse.diags([-np.ones(n - 1), np.ones(n - 1)], [0, 1], shape=(n - 1, n))
        before, after = (sparse.identity(int(np.prod(part))) for part in (shape[:axis], shape[axis + 1 :]))
        total = total + sparse.kron(sparse.kron(before, difference.T @ difference), after)
    return sparse.csr_matrix(total)


def near_joints(anatomy: Anatomy, poses: Mapping[int, np.ndarray], points: Float[Tensor, "3 n"]) -> Float[Tensor, "3 m"]:
    """Of fixed points some 3 mm apart, those within 6 mm of two bones, each as 27 points 1 mm apart."""
    second = _two_least(anatomy, poses, points)[1]
    steps = torch.linspace(-1.0, 1.0, 3, dtype=torch.float64)
    return (points[:, second < 6.0, None] + torch.cartesian_prod(steps, steps, steps).T[:, None]).flatten(1)


def joint_gap_mm(anatomy: Anatomy, poses: Mapping[int, np.ndarray], points: Float[Tensor, "3 n"]) -> float:
    """Least sum of distances to two bones over ``points``: about the gap between the bones in the fixed image."""
    least, second = _two_least(anatomy, poses, points)
    return float((least + second).min())


def _two_least(anatomy: Anatomy, poses: Mapping[int, np.ndarray], points: Tensor) -> tuple[Tensor, Tensor]:
    least, second = (torch.full_like(points[0], FAR_MM) for _ in range(2))
    for label in BONES:
        distance = anatomy.bone(label, _apply(poses[label], points), 6.0)
        second = torch.minimum(second, torch.maximum(least, distance))
        least = torch.minimum(least, distance)
    return least, second


def least_determinant(transform: Articulated, points: Float[Tensor, "3 n"]) -> float:
    """Smallest Jacobian determinant over ``points``."""
    return float(torch.linalg.det(jacobian(transform, points, 0.02)).min())
