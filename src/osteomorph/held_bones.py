"""Found bones give way where two of them are too near for both to be rigid: what is left moves exactly rigidly.

Labels that a user gives are kept as they are, and what of them is not rigid is reported as their rim (`Body.rim`). Nobody
outlined a found bone: where two of them touch, its border is the network's guess, and the joint between them is left to soft
tissue. Both follow from the same regions; the transform is the same either way.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from osteomorph.case import Case
from osteomorph.distances import DistanceMap, signed_distance
from osteomorph.exact_bones import ExactBones
from osteomorph.geometry import Grid
from osteomorph.image import Labels
from osteomorph.polyrigid import Body, Polyrigid
from osteomorph.stored_fields import stored_grid
from osteomorph.threads import spread

LEAST_LEFT = 0.5
"""Share of a bone that has to be left. One that lies so deep in others that it would lose more is kept whole, with its rim."""

LOOKED_MM = 4.0
"""Around what a bone gave away, where its distance is computed anew."""

RIM_MM = 1e-4
"""Distance from a region at which a point is out of it, as in `Body.rim`."""


def given_way(exact: ExactBones, case: Case, spacing_mm: float) -> tuple[ExactBones, Case]:
    """What was registered, with bones that gave way: the same transform, and the fixed labels without what they gave."""
    exact = replace(exact, base=giving_way(exact.base, case.fixed.grid, spacing_mm))
    if case.fixed_labels is None:
        return exact, case
    return exact, replace(case, fixed_labels=held(case.fixed_labels, exact.base, spacing_mm))


def giving_way(base: Polyrigid, fixed: Grid, spacing_mm: float) -> Polyrigid:
    """The same transform; of each bone, the voxels that move rigidly together with what is next to them.

    fixed: grid of the fixed image; next to a point is what lies a voxel away along its axes, at most as far as the bone's
    margin reaches. spacing_mm: at which fields are stored. What each bone lost is its ``given_mm3``.
    """
    offsets = _beside(fixed, spacing_mm)
    return replace(base, bodies=tuple(spread(lambda body: _given(body, offsets), base.bodies)))


def held(labels: Labels, base: Polyrigid, spacing_mm: float) -> Labels:
    """Labels on the fixed grid, less the voxels that bones gave away."""
    offsets = _beside(labels.grid, spacing_mm)
    data = labels.data[0].clone()
    boxes = labels.boxes
    for body in base.bodies:
        if body.given_mm3 is None or body.label not in boxes:
            continue
        inner = data[boxes[body.label]]
        here = (inner == body.label).nonzero()
        points = labels.grid.cropped(boxes[body.label]).world(here.T.double())
        lost = here[~_moves_along(body.region, points, offsets, body.margin_mm)]
        inner[tuple(lost.T)] = 0
    return replace(labels, data=data[None])


def _given(body: Body, offsets: Float64[np.ndarray, "3 m"]) -> Body:
    grid, inside = body.bone.grid, body.bone.inside
    places = inside.nonzero().T
    margin = float((body.bone.values - body.region.values).max())
    lost = ~_moves_along(body.region, grid.world(places.double()), offsets, margin)
    count, whole = int(lost.sum()), int(inside.sum())
    if count == 0:
        return replace(body, given_mm3=0.0, margin_mm=margin)
    if count > (1 - LEAST_LEFT) * whole:
        return body
    given = count * float(np.prod(grid.spacing_mm))
    return replace(body, bone=_without(body.bone, places[:, lost]), given_mm3=given, margin_mm=margin)


def _without(bone: DistanceMap, lost: Int[Tensor, "3 n"]) -> DistanceMap:
    """The map less some voxels of the body: exact within `LOOKED_MM` of them, elsewhere what it was, which is not above it."""
    left = bone.inside.clone()
    left[tuple(lost)] = False
    around, seen = (bone.grid.around(bone.grid.world(lost.double()), reach * LOOKED_MM) for reach in (1, 2))
    assert around is not None
    assert seen is not None
    anew = torch.full((1, *bone.grid.shape), torch.inf)
    if left[seen].any():
        anew[(0, *seen)] = signed_distance(left[seen].numpy(), bone.grid.cropped(seen), LOOKED_MM).values[0]
    values = bone.values.clone()  # what lies out of sight is further away than LOOKED_MM
    here = (0, *around)
    values[here] = torch.maximum(values[here], anew[here].clamp(max=LOOKED_MM))
    return DistanceMap(values, bone.grid)


def _moves_along(
    region: DistanceMap, points_mm: Float64[Tensor, "3 n"], offsets: Float64[np.ndarray, "3 m"], margin_mm: float
) -> Bool[Tensor, " n"]:
    """Which fixed points lie in a region, and the points at those offsets from them, taken no longer than the margin."""
    reach = offsets * np.minimum(1, margin_mm / np.linalg.norm(offsets, axis=0))
    largest = region(points_mm)
    near = (largest > -1.5 * float(np.linalg.norm(reach, axis=0).max())).nonzero()[:, 0]  # deeper down all moves along
    here = points_mm.index_select(1, near)
    for offset in torch.as_tensor(reach).T:
        largest[near] = torch.maximum(largest[near], region(here + offset[:, None]))
    return largest < RIM_MM


def _beside(fixed: Grid, spacing_mm: float) -> Float64[np.ndarray, "3 m"]:
    """From a voxel to the next ones along each axis, in mm; to all nodes they are interpolated from where fields have fewer."""
    skipped = np.maximum(1, np.rint(stored_grid(fixed, spacing_mm).spacing_mm / fixed.spacing_mm).astype(int))
    around = np.stack(np.meshgrid(*(np.arange(1 - n, n) for n in skipped), indexing="ij")).reshape(3, -1)
    steps = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)], axis=1)
    index = np.unique((steps[:, :, None] + around[:, None]).reshape(3, -1), axis=1)
    return fixed.affine[:3, :3] @ index[:, index.any(axis=0)]
