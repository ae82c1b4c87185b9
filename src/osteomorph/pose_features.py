"""What a bone looks like at one resolution: points of its shell, MIND-SSC there, and how it changes with a motion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from scipy.spatial.transform import Rotation
from torch import Tensor

from osteomorph.distances import DistanceMap, box_gap_mm
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image
from osteomorph.plan import PosePlan
from osteomorph.resampling import coarser, regrid, resample
from osteomorph.similarity import mind_ssc
from osteomorph.transforms import Rigid

REACH = 3
"""Voxels that a description looks around itself: dilation and radius of MIND-SSC."""

SLACK = 2
"""Voxels around the points, for slopes and for steps between two extractions."""

EDGE = 1
"""Voxels at the border of a field of view whose description is left out."""

CHANNELS = 12

FLAT = 1e-4
"""Range of intensities within which an image holds nothing."""

SEARCH_POINTS = 400
"""Of a bone, compared at every shift and rotation that is tried."""

SEARCH_STRIDE = 2
"""Voxels between two shifts that are tried."""

FOUND = 5
"""Best of the poses that were tried, to go on from."""


@final
@dataclass(frozen=True, eq=False)
class Side:
    """An image at one resolution, with its mask on its own grid."""

    image: Image
    mask: Image | None

    def at(self, spacing_mm: float) -> "Side":
        """The image at another isotropic spacing, its own where that is within a tenth."""
        grid = self.image.grid
        if np.abs(grid.spacing_mm / spacing_mm - 1).max() < 0.1:
            return self
        if (grid.spacing_mm < spacing_mm).all():
            return Side(coarser(self.image, spacing_mm), self.mask)
        return Side(regrid(self.image, grid.resampled(spacing_mm)), self.mask)

    def sees(self, points_mm: Float64[Tensor, "3 n"]) -> Bool[Tensor, " n"]:
        """Whether the image shows what is at a point."""
        grid = self.image.grid
        if min(grid.shape) > 2 * EDGE:
            grid = grid.padded((-EDGE,) * 3)
        seen = grid.contains(points_mm)
        if self.mask is not None:
            seen &= sample(self.mask.data[:1], self.mask.grid, points_mm, outside=0.0)[0] > 0.5
        return seen


@final
@dataclass(frozen=True, eq=False)
class Patch:
    """A bone and its shell in the reference image, the one whose labels say where it is.

    lattice: crop of the reference's grid. centre: the bone's centroid. index, points: of the points, on the lattice and in mm.
    features, slope: MIND-SSC of the reference at the points, and its derivative along world axes per mm.
    pad: voxels of the lattice around the points.
    """

    lattice: Grid
    index: Int[Tensor, "3 n"]
    points: Float64[Tensor, "3 n"]
    centre: Float64[Tensor, "3"]
    features: Float[Tensor, "12 n"]
    slope: Float[Tensor, "12 3 n"]
    pad: int

    @property
    def offset(self) -> Float64[Tensor, "3 n"]:
        return self.points - self.centre[:, None]


def described(image: Image, pose: Rigid, lattice: Grid) -> Float[Tensor, "12 i j k"]:
    """MIND-SSC of the image seen through a pose, on a lattice; the same everywhere where there is no contrast but rounding."""
    seen = resample(image, pose, lattice.padded((REACH, REACH, REACH)), outside="border").data[:1].float()
    low, high = seen.aminmax()
    if float(high - low) < FLAT:
        return torch.ones(CHANNELS, *lattice.shape)
    return mind_ssc(seen, with_margin=True)


def patch(
    side: Side,
    bone: DistanceMap,
    others: list[DistanceMap],
    shell_mm: float,
    most: int,
    extra: int = 0,
) -> Patch | None:
    """The bone in an image; None where the image shows too little of it.

    others: bones in the same label map; what is nearer to one of them than to this bone is left out.
    most: points kept, drawn without chance from all of them.
    extra: voxels added around the lattice.
    """
    grid = side.image.grid
    corners = grid.index(torch.as_tensor(bone.corners_mm[:3]))
    grow = shell_mm / grid.spacing_mm
    low = np.floor(corners.amin(1).numpy() - grow).astype(int)
    high = np.ceil(corners.amax(1).numpy() + grow).astype(int)
    low, high = np.maximum(low, EDGE), np.minimum(high, np.array(grid.shape) - 1 - EDGE)
    if (high < low).any():
        return None
    pad = SLACK + extra
    before, after = pad - low, high + pad + 1 - np.array(grid.shape)
    lattice = grid.padded((int(before[0]), int(before[1]), int(before[2])), (int(after[0]), int(after[1]), int(after[2])))
    inner = lattice.padded((-pad, -pad, -pad))
    points = inner.points(torch.float64).flatten(1)
    distance = bone.on(inner).flatten().double()
    near = (distance <= shell_mm).nonzero()[:, 0]
    for other in others:
        if box_gap_mm(bone, other, np.eye(4)) <= 2 * shell_mm:
            near = near[other(points.index_select(1, near)) >= distance[near]]
    near = near[side.sees(points.index_select(1, near))]
    if len(near) > most:
        near = near[torch.as_tensor(np.sort(np.random.default_rng(0).permutation(len(near))[:most]))]
    if len(near) < 2 * CHANNELS:
        return None
    index = torch.stack(torch.unravel_index(near, inner.shape)) + pad
    features = described(side.image, Rigid.identity(), lattice)
    return Patch(
        lattice,
        index,
        points.index_select(1, near),
        centroid(bone),
        taken(features, index),
        slopes(features, lattice, index),
        pad,
    )


def taken(features: Float[Tensor, "c i j k"], index: Int[Tensor, "3 n"]) -> Float[Tensor, "c n"]:
    rows = features.permute(1, 2, 3, 0).reshape(-1, len(features))  # a voxel's channels lie side by side
    return rows.index_select(0, _flat(index, features.shape[1:])).T


def slopes(features: Float[Tensor, "c i j k"], lattice: Grid, index: Int[Tensor, "3 n"]) -> Float[Tensor, "c 3 n"]:
    """Central differences along world axes per mm."""
    steps = torch.eye(3, dtype=torch.long)[:, :, None]
    along = torch.stack([taken(features, index + s) - taken(features, index - s) for s in steps], 1)
    turn = torch.as_tensor(lattice.direction / (2 * lattice.spacing_mm), dtype=features.dtype)
    return torch.einsum("wd,cdn->cwn", turn, along)


def jacobian(slope: Float[Tensor, "c 3 n"], offset: Float[Tensor, "3 n"]) -> Float[Tensor, "c 6 n"]:
    """Derivative by a motion x -> c + R(w)(x - c) + v of features at x: gradient . [-(x - c)^ | I]; rotation vector first."""
    x, y, z = offset.to(slope.dtype)
    a, b, c = slope.unbind(1)
    return torch.cat([torch.stack([y * c - z * b, z * a - x * c, x * b - y * a], 1), slope], 1)


def centroid(bone: DistanceMap) -> Float64[Tensor, "3"]:
    return bone.grid.world(bone.inside.nonzero().T.double()).mean(1)


def about(centre: Float64[Tensor, "3"], step: np.ndarray) -> np.ndarray:
    """(4, 4) of a rotation vector in rad about a point, then a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(step[:3]).as_matrix()
    middle = centre.numpy()
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle + step[3:]
    return matrix


# -- far from the start ---------------------------------------------------------------------------------------------------
def search(
    reference: Side,
    other: Side,
    bone: DistanceMap,
    others: list[DistanceMap],
    shell_mm: float,
    start: Rigid,
    plan: PosePlan,
    scale: float,
) -> list[Rigid]:
    """The best poses on a lattice of shifts and rotations around a start, reference -> other; apart from each other.

    For every rotation the other image is described once; a shift then is a step along the lattice.
    """
    step_mm = float(reference.image.grid.spacing_mm.mean()) * SEARCH_STRIDE
    reach = int(np.ceil(plan.search_mm / step_mm))
    here = patch(reference, bone, others, shell_mm, SEARCH_POINTS, extra=reach * SEARCH_STRIDE)
    if here is None:
        return []
    shape = here.lattice.shape
    count = torch.arange(-reach, reach + 1) * SEARCH_STRIDE
    shifts = torch.cartesian_prod(count, count, count).T
    at = _flat(here.index, shape) + _flat(shifts, shape)[:, None]
    shifts_mm = torch.as_tensor(here.lattice.affine[:3, :3].copy()) @ shifts.double()
    lattice_points = here.lattice.points(torch.float64).flatten(1)
    costs, seen_shares, motions = [], [], []
    for turn in _turns(plan.search_deg):
        matrix = about(here.centre, np.concatenate([turn, np.zeros(3)]))
        pose = Rigid(start.matrix @ matrix)
        features = described(other.image, pose, here.lattice).flatten(1).T.contiguous()
        seen = other.sees(pose(lattice_points))[at]
        square = (features[at.flatten()].unflatten(0, at.shape) - here.features.T).square().mean(-1)
        loss = torch.where(seen, square / (square + scale), 0.0).sum(1)
        costs.append(loss / seen.sum(1).clamp(min=1))
        seen_shares.append(seen.float().mean(1))
        motions.append(matrix)
    cost, share = torch.stack(costs), torch.stack(seen_shares)
    cost[share < 0.75 * share.max()] = torch.inf
    centre = here.centre.numpy()
    found: list[np.ndarray] = []
    for flat in cost.flatten().argsort(stable=True).tolist():
        turn_number, shift_number = divmod(flat, cost.shape[1])
        if not torch.isfinite(cost[turn_number, shift_number]):
            break
        shift = about(here.centre, np.concatenate([np.zeros(3), shifts_mm[:, shift_number].numpy()]))
        motion = motions[turn_number] @ shift
        place = motion[:3, :3] @ centre + motion[:3, 3]
        if all(np.linalg.norm(place - m[:3, :3] @ centre - m[:3, 3]) > 1.01 * step_mm for m in found):
            found.append(motion)
        if len(found) == FOUND:
            break
    return [Rigid(start.matrix @ motion) for motion in found]


def _flat(index: Tensor, shape: Sequence[int]) -> Tensor:
    return (index[0] * shape[1] + index[1]) * shape[2] + index[2]


def _turns(angle_deg: float) -> list[np.ndarray]:
    """Rotation vectors: none, both ways about each axis, and about the eight diagonals; none alone for an angle of 0."""
    if angle_deg == 0:
        return [np.zeros(3)]
    axes = [*np.eye(3), *-np.eye(3)]
    diagonals = [(2 * np.array(corner) - 1) / np.sqrt(3) for corner in np.ndindex(2, 2, 2)]
    return [np.zeros(3), *(np.radians(angle_deg) * axis for axis in [*axes, *diagonals])]
