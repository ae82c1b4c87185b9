"""Found bones give way where two of them are too near for both to be rigid: what is left moves exactly rigidly.

Labels that a user gives are kept as they are, and what of them is not rigid is reported as their rim (`Body.rim`). Nobody
outlined a found bone: where two of them touch, its border is the network's guess, and the joint between them is left to soft
tissue. Both follow from the same regions; the transform is the same either way.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from osteomorph.case import Case
from osteomorph.distances import DistanceMap
from osteomorph.exact_bones import ExactBones, stored_grid
from osteomorph.geometry import Grid
from osteomorph.image import Labels
from osteomorph.polyrigid import Body, Polyrigid

LEAST_LEFT = 0.5
"""Share of a bone that has to be left. One that lies so deep in others that it would lose more is kept whole, with its rim."""

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
    return replace(base, bodies=tuple(_given(body, _steps(fixed, spacing_mm)) for body in base.bodies))


def held(labels: Labels, base: Polyrigid, spacing_mm: float) -> Labels:
    """Labels on the fixed grid, less the voxels that bones gave away."""
    steps = _steps(labels.grid, spacing_mm)
    data = labels.data[0].clone()
    for body in base.bodies:
        here = (data == body.label).nonzero()
        if body.given_mm3 is None or len(here) == 0:
            continue
        lost = here[~_moves_along(body, labels.grid.world(here.T.double()), steps)]
        data[tuple(lost.T)] = 0
    return replace(labels, data=data[None])


def _given(body: Body, steps: Float64[np.ndarray, "3 3"]) -> Body:
    grid, region = body.bone.grid, body.region.values[0]
    inside = body.bone.inside
    values = torch.maximum(body.bone.values[0], region.where(~inside, torch.tensor(-torch.inf)))
    near = inside & (region > -1.5 * float(np.linalg.norm(steps, axis=0).max()))  # distances are linear only in between
    places = near.nonzero()
    beside = _around(body, grid.world(places.T.double()), steps).float() - RIM_MM
    values[near] = torch.maximum(values[near], beside)
    lost = inside & (values >= 0)
    if int(lost.sum()) > (1 - LEAST_LEFT) * int(inside.sum()):
        return body
    given = float(lost.sum()) * float(np.prod(grid.spacing_mm))
    return replace(body, bone=DistanceMap(values[None], grid), given_mm3=given)


def _moves_along(body: Body, points_mm: Float64[Tensor, "3 n"], steps: Float64[np.ndarray, "3 3"]) -> Bool[Tensor, " n"]:
    return _around(body, points_mm, steps) < RIM_MM


def _around(body: Body, points_mm: Float64[Tensor, "3 n"], steps: Float64[np.ndarray, "3 3"]) -> Float64[Tensor, " n"]:
    """The largest distance to a body's region at fixed points and the points next to them."""
    lengths = np.linalg.norm(steps, axis=0)
    offsets = torch.as_tensor(steps * np.minimum(1, _margin_mm(body) / lengths))
    largest = body.region(points_mm)
    for axis in range(3):
        for sign in (-1, 1):
            largest = torch.maximum(largest, body.region(points_mm + sign * offsets[:, axis, None]))
    return largest


def _margin_mm(body: Body) -> float:
    return float((body.bone.values - body.region.values).max())


def _steps(fixed: Grid, spacing_mm: float) -> Float64[np.ndarray, "3 3"]:
    """Columns: one voxel along each axis, or one of the stored field where that is longer."""
    longest = np.maximum(fixed.spacing_mm, stored_grid(fixed, spacing_mm).spacing_mm)
    return fixed.direction * longest
