"""What a polyrigid transform promises, checked on the transform itself."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from osteomorph.geometry import Grid
from osteomorph.joints import pair_gaps
from osteomorph.polyrigid import Polyrigid

NEAR_MM = 6.0
"""Tissue this near to a bone is looked at closely."""


@final
@dataclass(frozen=True)
class Certificate:
    """Measured in float64.

    residual_mm: bone -> largest distance between the transform and the bone's pose over its voxels outside the rim.
    rim_residual_mm, rim_voxels, rim_mm3: of the rim, where another bone is too near for both to be rigid; 0 without one.
    least_determinant, folding_percent: of the Jacobian over the points looked at.
    inverse_mean_mm, inverse_max_mm: between x and inverse(T(x)), over the same points.
    narrowest_gap_mm, narrowest_pair: between two bones anywhere along the path (below 0: they overlap); None for one bone.
    """

    residual_mm: Mapping[int, float]
    rim_residual_mm: Mapping[int, float]
    rim_voxels: Mapping[int, int]
    rim_mm3: Mapping[int, float]
    least_determinant: float
    folding_percent: float
    inverse_mean_mm: float
    inverse_max_mm: float
    narrowest_gap_mm: float | None
    narrowest_pair: tuple[int, int] | None
    points: int
    steps: int
    path_kind: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def certify(transform: Polyrigid, grid: Grid, points: int = 20_000, seed: int = 0) -> Certificate:
    """Check a transform on about ``points`` points of ``grid``, and its rigidity on every voxel of every bone.

    Half of the points are those within 6 mm of a bone where two regions are nearest to each other, a quarter lies elsewhere
    near bones, a quarter anywhere in the field of view. A sample can miss a fold; `Polyrigid` says why there is none.
    """
    forward = transform.inverse() if transform.backward else transform
    tested = _points(forward, grid, points, torch.Generator().manual_seed(seed))
    determinants = torch.linalg.det(point_jacobian(forward, tested))
    error = (forward.inverse()(forward(tested)) - tested).norm(dim=0)
    residual, rim_residual = {}, {}
    for body in forward.bodies:
        here = body.bone.grid.world(body.bone.inside.nonzero().T.double())
        left = (forward(here) - body.pose(here)).norm(dim=0)
        rim = body.rim[body.bone.inside]
        residual[body.label] = float(left[~rim].max()) if (~rim).any() else 0.0
        rim_residual[body.label] = float(left[rim].max()) if rim.any() else 0.0
    narrowest, pair = _narrowest(forward)
    return Certificate(
        residual_mm=residual,
        rim_residual_mm=rim_residual,
        rim_voxels={body.label: int(body.rim.sum()) for body in forward.bodies},
        rim_mm3={body.label: body.rim_mm3 for body in forward.bodies},
        least_determinant=float(determinants.min()),
        folding_percent=100 * float((determinants <= 0).double().mean()),
        inverse_mean_mm=float(error.mean()),
        inverse_max_mm=float(error.max()),
        narrowest_gap_mm=narrowest,
        narrowest_pair=pair,
        points=tested.shape[1],
        steps=forward.steps,
        path_kind=forward.path_kind,
    )


def point_jacobian(
    transform: Callable[[Tensor], Tensor], points_mm: Float64[Tensor, "3 n"], step_mm: float = 0.02
) -> Float64[Tensor, "n 3 3"]:
    """d(component)/d(world axis) at points, by central differences of the transform itself."""
    columns = []
    for axis in range(3):
        half = torch.zeros(3, 1, dtype=points_mm.dtype)
        half[axis] = step_mm / 2
        columns.append((transform(points_mm + half) - transform(points_mm - half)) / step_mm)
    return torch.stack(columns, -1).transpose(0, 1)


def _points(transform: Polyrigid, grid: Grid, points: int, generator: torch.Generator) -> Tensor:
    near, between = [], []
    for body in transform.bodies:
        distance = body.region.values[0]
        band = ((distance > 0) & (distance < NEAR_MM)).nonzero()
        band = band[torch.randperm(len(band), generator=generator)[: 2 * points]]
        here = body.bone.grid.world(band.T.double())
        seen = grid.contains(here)
        here = here[:, seen]
        others = [other.region(here).clamp(min=0) for other in transform.bodies if other is not body]
        near.append(here)
        between.append(torch.stack(others).amin(0) if others else torch.zeros_like(here[0]))
        between[-1] = between[-1] + distance[tuple(band[seen].T)]
    all_near = torch.cat(near, 1)
    order = torch.cat(between).argsort()
    rest = order[points // 2 :]
    some = rest[torch.randperm(len(rest), generator=generator)[: points // 4]]
    share = torch.rand(3, points // 4, generator=generator, dtype=torch.float64)
    anywhere = grid.world(share * torch.tensor(grid.shape, dtype=torch.float64)[:, None] - 0.5)
    return torch.cat([all_near[:, order[: points // 2]], all_near[:, some], anywhere], 1)


def _narrowest(transform: Polyrigid) -> tuple[float | None, tuple[int, int] | None]:
    if len(transform.bodies) == 1:
        return None, None
    every = max(1, (len(transform.path) - 1) // 16)
    times = sorted({*range(0, len(transform.path), every), len(transform.path) - 1})
    gaps = pair_gaps([body.bone for body in transform.bodies], transform.path[times]).min(0)
    first, second = divmod(int(gaps.argmin()), len(gaps))
    return float(gaps.min()), (transform.bodies[first].label, transform.bodies[second].label)
