"""Signed distance to bones, in mm: each bone's map on a crop of its own, and the gaps between bones."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64
from scipy import ndimage
from torch import Tensor

from osteomorph.errors import InputError
from osteomorph.geometry import Grid, affine_ramps, sample_unit
from osteomorph.image import Labels
from osteomorph.kept import kept
from osteomorph.threads import spread

REACH_MM = 12.0
"""Width of the crop around a bone; further out its distance is bounded from below."""

FADED_MM = (20.0, 50.0)
"""From the crop on, over which the map has less and less to say."""

MOST_REACHES = 2.0
"""Distances in a crop's corners are cut to that many times its reach."""

CACHED = 1 << 17
"""Voxels that are looked at together, to stay in the cache."""

LOOKED = 4
"""Steps along a line between two looks whether a further one could be of use."""


@final
@dataclass(frozen=True, eq=False)
class DistanceMap:
    """Distance in mm to a body, below 0 inside it.

    values: (1, i, j, k) float32 at the voxel centres of ``grid``, a crop around the body. The outermost ones are above 0.
    """

    values: Float[Tensor, "1 i j k"]
    grid: Grid

    def __call__(self, points_mm: Float[Tensor, "3 n"]) -> Float[Tensor, " n"]:
        """Linear between voxel centres; beyond the crop sqrt(d^2 + s^2), d at its nearest point and s mm from there; further
        out d fades to the least value at the crop's border, which needs no look at the map.

        That is continuous and never above the distance to the body, since a crop is convex and holds the body.
        """
        to_unit = torch.as_tensor(self.grid.to_unit, dtype=points_mm.dtype)
        return self.at((to_unit[:, :3] @ points_mm + to_unit[:, 3:]).float()).to(points_mm.dtype)

    def on(self, grid: Grid) -> Float32[Tensor, "i j k"]:
        """The same at the voxel centres of a grid."""
        return self.at(affine_ramps(self.grid.to_unit @ grid.affine, grid.shape).flatten(1)).unflatten(0, grid.shape)

    def at(self, unit: Float32[Tensor, "3 n"]) -> Float32[Tensor, " n"]:
        """The same at points as the grid's ``to_unit`` tells them."""
        if unit.shape[1] == 0:
            return unit[0]
        square = (self._square_mm @ unit.abs().sub_(1).clamp_(min=0).square_())[0]
        if not square.any():
            return sample_unit(self.values, unit)[0]
        looked = square < FADED_MM[1] ** 2
        if looked.all():
            return self._beyond(unit, square)
        found = (square + self._least_at_border**2).sqrt_()
        some = looked.nonzero()[:, 0]
        if len(some):
            found[some] = self._beyond(unit.index_select(1, some), square.index_select(0, some))
        return found

    def _beyond(self, unit: Float32[Tensor, "3 n"], square: Float32[Tensor, " n"]) -> Float32[Tensor, " n"]:
        near = sample_unit(self.values, unit)[0]
        faded = ((square.sqrt() - FADED_MM[0]) / (FADED_MM[1] - FADED_MM[0])).clamp_(0, 1)
        at_border = torch.lerp(near, torch.full_like(near, self._least_at_border), faded)
        return torch.where(square > 0, (at_border.square_() + square).sqrt_(), near)

    @cached_property
    def _square_mm(self) -> Tensor:
        half_mm = self.grid.spacing_mm * (np.array(self.grid.shape) - 1) / 2
        return torch.as_tensor(half_mm[::-1] ** 2, dtype=torch.float32)[None]

    @cached_property
    def _least_at_border(self) -> float:
        ends = [self.values.select(axis, place) for axis in (1, 2, 3) for place in (0, -1)]
        return max(0.0, min(float(end.min()) for end in ends))

    def moved(self, matrix: np.ndarray) -> "DistanceMap":
        """The map of the body carried along by a rigid 4x4 matrix (RAS mm)."""
        return DistanceMap(self.values, self.grid.moved(matrix))

    @cached_property
    def inside(self) -> Bool[Tensor, "i j k"]:
        """Voxels whose centre is in the body."""
        return self.values[0] < 0

    @cached_property
    def crop_corners_mm(self) -> np.ndarray:
        """(4, 8) homogeneous world points: centres of the crop's outermost voxels."""
        return np.vstack([self.grid.corners_mm.numpy(), np.ones(8)])

    @cached_property
    def corners_mm(self) -> np.ndarray:
        """(4, 8) homogeneous world corners of the box around the body's voxels."""
        ends = [
            np.flatnonzero(self.inside.numpy().any(axis=other))[[0, -1]] + (-0.5, 0.5) for other in ((1, 2), (0, 2), (0, 1))
        ]
        index = np.stack(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
        return self.grid.affine @ np.vstack([index, np.ones(8)])

    def box_on(self, grid: Grid, reach_mm: float) -> tuple[slice, slice, slice] | None:
        """Voxels of a grid among which are all that lie within ``reach_mm`` of the body; None where there are none."""
        if not self.inside.any():
            return None
        between = float(np.linalg.norm(self.grid.spacing_mm))  # where the map crosses 0 between two centres
        index = grid.index(torch.as_tensor(self.corners_mm[:3].copy()))
        wide = torch.as_tensor((reach_mm + between) / grid.spacing_mm)
        low = (index.amin(1) - wide).floor().clamp(min=0).int().tolist()
        high = [min(n, int(v) + 1) for v, n in zip((index.amax(1) + wide).ceil(), grid.shape, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            return None
        return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])

    @cached_property
    def surface(self) -> tuple[Float[Tensor, "3 m"], Float[Tensor, " m"]]:
        """Centres in world mm, float64, of the body's voxels with a face neighbour outside it, and the distances there."""
        inside = self.inside.numpy()
        shell = torch.as_tensor(inside & ~ndimage.binary_erosion(inside))
        return self.grid.world(shell.nonzero().T.double()), self.values[0][shell].double()

    def joined(self, other: "DistanceMap") -> "DistanceMap":
        """The map of both bodies together, on this map's lattice."""
        ends = torch.stack(torch.meshgrid(*[torch.tensor([0.0, n - 1.0]).double() for n in other.grid.shape], indexing="ij"))
        corners = self.grid.index(other.grid.world(ends.flatten(1)))
        before = [max(0, int(np.ceil(-float(low) - 1e-3))) for low in corners.amin(1)]
        after = [
            max(0, int(np.ceil(float(high) - 1e-3)) - n + 1) for high, n in zip(corners.amax(1), self.grid.shape, strict=True)
        ]
        grid = self.grid.padded((before[0], before[1], before[2]), (after[0], after[1], after[2]))
        points = grid.points(torch.float64).flatten(1)
        values = torch.minimum(self(points), other(points)).float()
        return DistanceMap(values.unflatten(0, grid.shape)[None], grid)


def distance_maps(labels: Labels, ids: Iterable[int] | None = None, reach_mm: float = REACH_MM) -> dict[int, DistanceMap]:
    """Per label its distance map, on the part of the grid within ``reach_mm`` of it (beyond the field of view too).

    The surface runs along voxel faces: a voxel's distance is that to the nearest box of a voxel on the other side, so that
    halfway between a labelled centre and its neighbour the distance is 0 at any spacing.

    ids: labels wanted, all by default. reach_mm: in the crop's corners no more than `MOST_REACHES` times that is said. Made
    once for as long as the label map lives. Raises InputError where a label does not occur.
    """
    wanted = list(labels.ids() if ids is None else ids)
    missing = sorted(set(wanted) - set(labels.ids()))
    if missing:
        raise InputError(f"The label map has no voxel of label {missing[0]}. Leave the label out, or give the map that has it.")
    return dict(zip(wanted, spread(lambda label: _distance_map(labels, label, reach_mm), wanted), strict=True))


@kept
def _distance_map(labels: Labels, label: int, reach_mm: float) -> DistanceMap:
    box, grid = labels.boxes[label], labels.grid
    body = np.pad(labels.data[0][box].cpu().numpy() == label, 1)
    lattice = grid.padded(
        (1 - box[0].start, 1 - box[1].start, 1 - box[2].start),
        (box[0].stop + 1 - grid.shape[0], box[1].stop + 1 - grid.shape[1], box[2].stop + 1 - grid.shape[2]),
    )
    more = np.maximum(0, np.ceil(reach_mm / grid.spacing_mm).astype(int) - 1)
    margin = (int(more[0]), int(more[1]), int(more[2]))
    most = MOST_REACHES * max(reach_mm, float(grid.spacing_mm.max()))
    return signed_distance(np.pad(body, [(n, n) for n in margin]), lattice.padded(margin), most)


def signed_distance(body: Bool[np.ndarray, "i j k"], grid: Grid, most_mm: float) -> DistanceMap:
    """The distance map of a body on a crop around it, whose outermost voxels are not in the body; see `distance_maps`.

    most_mm: the map says no more than that outside the body.
    """
    inner = tuple(slice(max(0, box.start - 1), box.stop + 1) for box in ndimage.find_objects(body.astype(np.int8))[0])
    values = _to_nearest(~body, grid.spacing_mm, most_mm)
    values[inner] -= _to_nearest(body[inner], grid.spacing_mm)
    return DistanceMap(torch.from_numpy(values)[None], grid)


def _to_nearest(
    mask: Bool[np.ndarray, "i j k"], spacing_mm: Float64[np.ndarray, "3"], most_mm: float = np.inf
) -> Float32[np.ndarray, "i j k"]:
    """From each centre in the mask to the nearest box of a voxel out of it, at most ``most_mm``; 0 elsewhere.

    Squares add up over the axes, so that one after the other the least sum over all steps along it is taken.
    """
    most = np.float32(most_mm) ** 2
    least = np.where(mask, most, np.float32(0))
    for axis, spacing in enumerate(spacing_mm):
        lines = np.moveaxis(least, axis, 0)
        told = ndimage.find_objects((lines < most).any(0).astype(np.int8))[0]
        lines = lines[:, *told]
        costs = np.square(np.maximum(np.arange(len(lines)) - 0.5, 0) * spacing).astype(np.float32)
        width = max(1, CACHED // (lines.shape[0] * lines.shape[2]))
        for first in range(0, lines.shape[1], width):
            lines[:, first : first + width] = _least_along(lines[:, first : first + width], costs)
    return np.sqrt(least, out=least)


def _least_along(lines: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The least of the values on each line, along the first axis, and of what each step from there adds."""
    values = np.ascontiguousarray(lines)
    least, reached = values.copy(), np.empty_like(values)
    for step in range(1, len(values)):
        if step % LOOKED == 1 and costs[step] >= least.max():
            break
        np.add(values, costs[step], out=reached)
        np.minimum(least[step:], reached[:-step], out=least[step:])
        np.minimum(least[:-step], reached[step:], out=least[:-step])
    return least


def box_gap_mm(first: DistanceMap, second: DistanceMap, matrices: Float64[np.ndarray, "*m 4 4"]) -> Float64[np.ndarray, "*m"]:
    """At most the gap between a body moved by each rigid matrix and another: that between boxes along the other's axes."""
    turn = second.grid.direction.T
    one, other = (turn @ corners[..., :3, :] for corners in (matrices @ first.corners_mm, second.corners_mm))
    apart = np.maximum(one.min(-1) - other.max(-1), other.min(-1) - one.max(-1))
    return np.asarray(np.linalg.norm(np.maximum(apart, 0), axis=-1))


def gap_mm(first: DistanceMap, second: DistanceMap) -> float:
    """Least distance between the surfaces of two bodies; below 0 where they overlap, 0 where their voxels touch.

    Measured from voxel centres: exact across faces, up to 0.4 voxels too wide across corners. Beyond the reach of
    ``second``'s map it is a lower bound.
    """
    points, depth = first.surface
    return float((depth + second(points)).min())
