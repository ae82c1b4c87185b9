"""Soft tissue between moving bones by one of three generators, on a coarse lattice, exact in every bone.

``harmonic`` and ``elastic`` solve for a field whose value is prescribed in bones and free at the outer border, under smooth
random forces: Laplace's equation, or linear elasticity (trilinear hexahedra, hardly compressible, Young's modulus by tissue).
``flow`` follows a smooth random velocity, then a polyrigid flow. A method is best tested on one that it does not use itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from osteomorph import polyrigid
from osteomorph.geometry import Grid
from osteomorph.image import Labels
from osteomorph.simulate.anatomy import Anatomy, Points
from osteomorph.simulate.motion import apply
from osteomorph.simulate.truth import Truth, in_parts
from osteomorph.transforms import Rigid, Velocity

MARGIN_MM = 0.4
"""Tissue around a bone that moves exactly as the bone does."""

REACH_MM = 9.0
"""Distance at which a bone's own motion has given way to the soft field."""

LATTICE_MM = 7.0
"""Spacing of the soft field, where the field of view has no more nodes than MOST_NODES."""

MOST_NODES = 40_000

RAMP_MM = 20.0
"""Distance from bone at which the velocity of the flow is whole."""

FLOW_MM = 2.0
"""Voxels of the bones between which the polyrigid flow runs."""

POISSON = 0.42
"""Ratio of the elastic tissue: soft tissue changes its volume little."""

AIR_MODULUS = 0.05
"""Of what lies outside the body, relative to muscle; only there to carry the field on."""


@final
@dataclass(frozen=True, eq=False)
class Blend(Truth):
    """T(x) = offset(x + u(x) + sum_k w_k(x) (P_k x - x - u(x))): the weight w_k is 1 in bone k and MARGIN_MM around it.

    The weights are Franke and Little's (inverse distance to the bone, of bounded support), of bones where they lie in the
    fixed image.

    coefficients: (3, i, j, k) of the cubic B-spline of the soft field u in mm, on ``lattice``.
    """

    anatomy: Anatomy
    poses: Mapping[int, np.ndarray]
    offset: np.ndarray
    coefficients: np.ndarray = field(repr=False)
    lattice: Grid

    def part_to_anatomy(self, points: Points) -> Points:
        distances = {k: self.distance(k, points, REACH_MM + MARGIN_MM) for k in self.poses}
        return blend(points, distances, points + self.soft(points), dict(self.poses))

    def guess_fixed(self, points: Points) -> Points:
        distances = {k: self.anatomy.bone(k, points, REACH_MM + MARGIN_MM) for k in self.poses}
        back = {k: np.linalg.inv(pose) for k, pose in self.poses.items()}
        return blend(points, distances, points - self.soft(points), back)

    def soft(self, points: Points) -> Points:
        """u in mm; beyond the lattice that of its border."""
        index = self.lattice.index(points).numpy()
        values = [ndimage.map_coordinates(c, index, order=3, mode="nearest", prefilter=False) for c in self.coefficients]
        return torch.as_tensor(np.stack(values))


def blend(points: Points, distances: Mapping[int, Tensor], base: Points, poses: Mapping[int, np.ndarray]) -> Points:
    """``base`` far from bones, a bone's pose at distances up to MARGIN_MM, and both between."""
    total = torch.ones_like(points[0])
    change = torch.zeros_like(points)
    for label, distance in distances.items():
        near = (distance < REACH_MM + MARGIN_MM).nonzero()[:, 0]
        gap = (distance[near] - MARGIN_MM).clamp(min=1e-10)
        weight = (1 - gap / REACH_MM).clamp(min=0).square() * (REACH_MM / gap) ** 1.1
        change[:, near] += weight * (apply(poses[label], points[:, near]) - base[:, near])
        total[near] += weight
    return base + change / total


@final
class Operator(NamedTuple):
    """A symmetric linear map of fields (3, i, j, k), and its diagonal."""

    times: Callable[[np.ndarray], np.ndarray]
    diagonal: np.ndarray


def lattice_over(grid: Grid) -> Grid:
    """Nodes over a field of view and three beyond it, whatever its voxel size."""
    spacing = LATTICE_MM
    while np.prod(np.ceil(grid.size_mm / spacing) + 6) > MOST_NODES:
        spacing *= 1.05
    return grid.resampled(spacing).padded((3, 3, 3))


def random_force(lattice: Grid, smooth_mm: float, seed: int) -> Float[np.ndarray, "3 i j k"]:
    """Smooth noise, one component after the other."""
    noise = np.random.default_rng(seed).standard_normal((3, *lattice.shape))
    return np.stack([ndimage.gaussian_filter(n, smooth_mm / float(lattice.spacing_mm.mean())) for n in noise])


def soft_field(
    kind: str, anatomy: Anatomy, poses: Mapping[int, np.ndarray], lattice: Grid, force: np.ndarray, skin_mm: float
) -> tuple[np.ndarray, Grid]:
    """Displacement (3, i, j, k) in mm and the nodes it is given at: what bones carry along, and as much of ``force`` as moves
    the skin by ``skin_mm`` (95th percentile), where the bones alone do not move it further.

    kind: ``"harmonic"``, ``"elastic"`` or ``"flow"``.
    """
    skin = _skin(anatomy, lattice)
    if kind == "flow":
        bones = polyrigid.from_labels({k: Rigid(pose) for k, pose in poses.items()}, _labels(anatomy, poses, lattice))
        carried = bones.displacement(lattice).numpy()
        force = force * _away_from_bone(anatomy, poses, lattice)
        velocity = torch.as_tensor(force * _size_for(carried[:, skin], force[:, skin], skin_mm)).float()
        finer = lattice.resampled(lattice.spacing_mm / 2)  # it is steep in joints
        points = finer.points(torch.float64).flatten(1)
        moved = in_parts(lambda part: bones(Velocity(velocity, lattice)(part)), points)
        return (moved - points).numpy().reshape(3, *finer.shape), finer
    prescribed, held = _prescribed(anatomy, poses, lattice)
    if kind == "harmonic":
        operator = Operator(_laplace, np.full((3, *lattice.shape), 6.0))
    else:
        operator = _elastic(_moduli(anatomy, lattice), lattice.direction)
    carried = prescribed + _relax(operator, ~held, -operator.times(prescribed))
    driven = _relax(operator, ~held, force)
    return carried + driven * _size_for(carried[:, skin], driven[:, skin], skin_mm), lattice


def _skin(anatomy: Anatomy, lattice: Grid) -> np.ndarray:
    """Nodes near the skin; all inside the body where hardly any is near it."""
    points = lattice.points(torch.float64).flatten(1)
    distance = in_parts(lambda part: anatomy.body(part)[None], points)[0].reshape(lattice.shape).numpy()
    near = np.abs(distance) < 8
    return near if near.sum() > 50 else distance < 0


def _size_for(rest: np.ndarray, driven: np.ndarray, goal_mm: float) -> float:
    """s with a 95th percentile of |rest + s driven| of ``goal_mm``; 0 where the rest alone is larger."""
    low, high = 0.0, 2 * goal_mm / max(float(np.percentile(np.linalg.norm(driven, axis=0), 95)), 1e-12)
    for _ in range(30):
        middle = (low + high) / 2
        far = np.percentile(np.linalg.norm(rest + middle * driven, axis=0), 95) > goal_mm
        low, high = (low, middle) if far else (middle, high)
    return low


def _prescribed(anatomy: Anatomy, poses: Mapping[int, np.ndarray], lattice: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Displacement of the nodes in bones, and which nodes those are."""
    points = lattice.points(torch.float64).flatten(1)
    displacement = np.zeros((3, lattice.voxels))
    held = np.zeros(lattice.voxels, dtype=bool)
    for label, pose in poses.items():
        there = apply(pose, points)
        inside = (anatomy.bone(label, there, 3.0) < 0.25 * LATTICE_MM).numpy()
        displacement[:, inside] = (there - points).numpy()[:, inside]
        held |= inside
    return displacement.reshape(3, *lattice.shape), held.reshape(lattice.shape)


def _away_from_bone(anatomy: Anatomy, poses: Mapping[int, np.ndarray], lattice: Grid) -> np.ndarray:
    """0 in bone, 1 from RAMP_MM on, smooth between."""
    points = lattice.points(torch.float64).flatten(1)
    least = torch.full_like(points[0], RAMP_MM)
    for label, pose in poses.items():
        least = torch.minimum(least, anatomy.bone(label, apply(pose, points), RAMP_MM))
    part = (least / RAMP_MM).clamp(0, 1)
    return (part * part * (3 - 2 * part)).reshape(lattice.shape).numpy()


def _labels(anatomy: Anatomy, poses: Mapping[int, np.ndarray], lattice: Grid) -> Labels:
    """Bones where they lie in the fixed image, in voxels fine enough for their gaps."""
    grid = lattice.resampled(FLOW_MM)
    points = grid.points(torch.float64).flatten(1)
    data = torch.zeros(grid.voxels, dtype=torch.int16)
    for label, pose in poses.items():
        data[anatomy.bone(label, apply(pose, points), 2.0) < 0] = label
    return Labels(data.unflatten(0, grid.shape)[None], grid)


def coefficients(displacement: Float[np.ndarray, "3 i j k"]) -> Float[np.ndarray, "3 i j k"]:
    """Of the cubic B-spline through values at the nodes."""
    return np.stack([ndimage.spline_filter(u, order=3, mode="nearest") for u in displacement])


def _relax(operator: Operator, free: np.ndarray, side: np.ndarray) -> np.ndarray:
    """u, zero where held, with operator(u) = side where free, by conjugate gradients scaled by the diagonal."""
    shape, size = side.shape, side.size

    def inner(x: np.ndarray) -> np.ndarray:
        return (operator.times(x.reshape(shape)) * free).ravel()

    def scale(x: np.ndarray) -> np.ndarray:
        return (x.reshape(shape) / operator.diagonal).ravel()

    linear, scaling = (LinearOperator((size, size), matvec=f, dtype=np.float64) for f in (inner, scale))
    found, failed = cg(linear, (side * free).ravel(), rtol=1e-4, maxiter=3000, M=scaling)
    if failed:
        raise ArithmeticError("The soft field did not converge.")
    return found.reshape(shape) * free


def _laplace(u: np.ndarray) -> np.ndarray:
    """Seven-point, positive semi-definite, no flux through the border."""
    total = np.zeros_like(u)
    for axis in (1, 2, 3):
        step = np.diff(u, axis=axis)
        low, high = [slice(None)] * 4, [slice(None)] * 4
        low[axis], high[axis] = slice(0, -1), slice(1, None)
        total[tuple(low)] -= step
        total[tuple(high)] += step
    return total


def _moduli(anatomy: Anatomy, lattice: Grid) -> np.ndarray:
    """Young's modulus of every cell, (i-1, j-1, k-1)."""
    cells = lattice.padded((0, 0, 0), (-1, -1, -1))
    centres = cells.points(torch.float64).flatten(1) + torch.as_tensor(lattice.affine[:3, :3].sum(1) / 2)[:, None]
    inside = anatomy.body(centres) < 0
    modulus = torch.where(inside, anatomy.stiffness(centres), torch.as_tensor(AIR_MODULUS, dtype=centres.dtype))
    return modulus.reshape(cells.shape).numpy()


CORNERS = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]


def _element() -> np.ndarray:
    """Stiffness (24, 24) of a unit cube of unit modulus, corner by corner, three components each; 2 x 2 x 2 Gauss points."""
    lame = POISSON / ((1 + POISSON) * (1 - 2 * POISSON))
    shear = 1 / (2 * (1 + POISSON))
    law = np.zeros((6, 6))
    law[:3, :3] = lame
    law[range(6), range(6)] += [2 * shear] * 3 + [shear] * 3
    nodes = np.array(CORNERS)
    total = np.zeros((24, 24))
    for point in np.array(CORNERS) * (1 / np.sqrt(3)) + (0.5 - 0.5 / np.sqrt(3)):
        shape = np.where(nodes == 1, point, 1 - point)
        others = [shape[:, pair].prod(1) for pair in ([1, 2], [0, 2], [0, 1])]
        slope = np.where(nodes == 1, 1.0, -1.0) * np.stack(others, 1)
        strain = np.zeros((6, 8, 3))
        for axis in range(3):
            strain[axis, :, axis] = slope[:, axis]
        for row, (a, b) in enumerate(((0, 1), (1, 2), (2, 0)), start=3):
            strain[row, :, a], strain[row, :, b] = slope[:, b], slope[:, a]
        flat = strain.reshape(6, 24)
        total += flat.T @ law @ flat / 8
    return total


def _elastic(moduli: np.ndarray, direction: np.ndarray) -> Operator:
    """Stiffness times displacement (RAS) on a lattice, cell by cell, without a matrix."""
    turn = np.kron(np.eye(8), direction)
    element = turn @ _element() @ turn.T
    flat = moduli.ravel()
    shape = moduli.shape

    def windows(u: np.ndarray) -> list[np.ndarray]:
        return [u[:, a : a + shape[0], b : b + shape[1], c : c + shape[2]] for a, b, c in CORNERS]

    def gathered(parts: np.ndarray, onto: np.ndarray) -> np.ndarray:
        for window, part in zip(windows(onto), parts.reshape(8, 3, *shape), strict=True):
            window += part
        return onto

    def times(u: np.ndarray) -> np.ndarray:
        corners = np.concatenate([window.reshape(3, -1) for window in windows(u)])
        return gathered(element @ corners * flat, np.zeros_like(u))

    diagonal = gathered(element.diagonal()[:, None] * flat, np.zeros((3, *(n + 1 for n in shape))))
    return Operator(times, diagonal)
