"""What a registration is measured by; each measure is defined once, in mm, on any grid.

Overlap, surface distances and the Jacobian determinant are equations 4.1 to 4.6 of the thesis this package extends
(H. van Ulsen, "Multi-modal deep learning based 3D image registration for osseous anatomies", section 4.1.2).
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from osteomorph import fields
from osteomorph.case import Case
from osteomorph.geometry import Grid
from osteomorph.image import Labels
from osteomorph.resampling import resample
from osteomorph.transforms import Rigid, Transform

Mask = Bool[Tensor, "1 i j k"]

SOFT_REACH_MM = 30.0
"""Soft tissue further than this from bone is left out of its target registration error."""


# -- overlap and surfaces -----------------------------------------------------------------------------------------------------
def dice(a: Mask, b: Mask) -> float:
    """2 |A and B| / (|A| + |B|), equation 4.1. ValueError where both are empty."""
    total = int(a.sum()) + int(b.sum())
    if total == 0:
        raise ValueError("Dice of two empty masks is not defined.")
    return 2 * int((a & b).sum()) / total


def surface_distances(a: Mask, b: Mask, spacing_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from each surface voxel of a to the nearest one of b, and from b to a, equation 4.3.

    A surface voxel is one of the mask with a face neighbour outside it; beyond the image is outside. Distances run between
    voxel centres. ValueError where a mask is empty.
    """
    if not (a.any() and b.any()):
        raise ValueError("Surface distances need two masks that are not empty.")
    either = (a | b)[0].numpy()
    box = tuple(slice(edge.start, edge.stop) for edge in ndimage.find_objects(either.astype(np.uint8))[0])
    first, second = (_surface(mask[0].numpy()[box]) for mask in (a, b))
    to_second = ndimage.distance_transform_edt(~second, sampling=spacing_mm)
    to_first = ndimage.distance_transform_edt(~first, sampling=spacing_mm)
    return to_second[first], to_first[second]


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def mean_surface_distance(a: Mask, b: Mask, spacing_mm: np.ndarray) -> float:
    """Mean over the surface voxels of both masks together, equation 4.2."""
    return float(np.concatenate(surface_distances(a, b, spacing_mm)).mean())


def hausdorff(a: Mask, b: Mask, spacing_mm: np.ndarray, percentile: float = 99.0) -> float:
    """Larger of the two directed percentiles, equations 4.4 and 4.5; percentile 100 is the Hausdorff distance itself."""
    return _hausdorff(surface_distances(a, b, spacing_mm), percentile)


def _hausdorff(distances: tuple[np.ndarray, np.ndarray], percentile: float) -> float:
    return float(max(np.percentile(directed, percentile) for directed in distances))


# -- Jacobian -----------------------------------------------------------------------------------------------------------------
def jacobian_statistics(vectors: Float[Tensor, "3 i j k"], grid: Grid, mask: Mask) -> tuple[float, float]:
    """Mean and standard deviation of det J of x + u(x) over the voxels of a mask, by central differences, equation 4.6."""
    values = _determinants(vectors, grid, mask)
    return float(values.mean()), float(values.std(correction=0))


def folding_percent(vectors: Float[Tensor, "3 i j k"], grid: Grid, mask: Mask | None = None) -> float:
    """Share of voxels with det J <= 0, in percent, in the mask or everywhere."""
    everywhere = torch.ones(1, *grid.shape, dtype=torch.bool)
    return 100 * float((_determinants(vectors, grid, everywhere if mask is None else mask) <= 0).double().mean())


def _determinants(vectors: Tensor, grid: Grid, mask: Tensor, planes: int = 32) -> Tensor:
    """det J at the voxels of a mask, a few planes at a time: neighbours on both sides go along."""
    if not mask.any():
        raise ValueError("The mask is empty.")
    slices = ndimage.find_objects(mask[0].numpy().astype(np.uint8))[0]
    low = [max(0, s.start - 1) for s in slices]
    high = [min(n, s.stop + 1) for s, n in zip(slices, grid.shape, strict=True)]
    found = []
    for start in range(slices[0].start, slices[0].stop, planes):
        stop = min(start + planes, slices[0].stop)
        corner = (max(0, start - 1), low[1], low[2])
        end = (min(grid.shape[0], stop + 1), high[1], high[2])
        (i0, j0, k0), (i1, j1, k1) = corner, end
        part = grid.padded((-i0, -j0, -k0), (i1 - grid.shape[0], j1 - grid.shape[1], k1 - grid.shape[2]))
        values = fields.jacobian_determinant(vectors[:, i0:i1, j0:j1, k0:k1].double(), part)
        inside = mask[0, start:stop, j0:j1, k0:k1]
        found.append(values[start - i0 : stop - i0][inside])
    return torch.cat(found)


# -- points -------------------------------------------------------------------------------------------------------------------
def fit_rigid(points: Float[Tensor, "3 n"], moved: Float[Tensor, "3 n"]) -> tuple[np.ndarray, float, float]:
    """Rotation and translation that take points to moved with the least square error (Kabsch, 1976).

    Returns the (4, 4) matrix and what is left, maximum and RMS in mm. ValueError with fewer than 3 points.
    """
    if points.shape[1] < 3:
        raise ValueError("A rigid fit needs at least 3 points.")
    a, b = points.double().numpy(), moved.double().numpy()
    centre_a, centre_b = a.mean(1, keepdims=True), b.mean(1, keepdims=True)
    u, _, vt = np.linalg.svd((b - centre_b) @ (a - centre_a).T)
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = (centre_b - rotation @ centre_a)[:, 0]
    left = np.linalg.norm(rotation @ (a - centre_a) - (b - centre_b), axis=0)
    return matrix, float(left.max()), float(np.sqrt((left**2).mean()))


def robust_fit(points: Float[Tensor, "3 n"], moved: Float[Tensor, "3 n"], rounds: int = 4) -> Rigid:
    """Kabsch's fit to the points that come within 2.5 robust standard deviations of the fit before, at least half of them."""
    kept = torch.ones_like(points[0], dtype=torch.bool)
    pose = Rigid(fit_rigid(points, moved)[0])
    for _ in range(rounds):
        left = (pose(points) - moved).norm(dim=0)
        middle = float(left.median())
        kept = left <= max(2.5 * middle, 1e-6)
        pose = Rigid(fit_rigid(points[:, kept], moved[:, kept])[0])
    return pose


def rigidity_residual(transform: Transform, points: Float[Tensor, "3 n"]) -> tuple[float, float]:
    """How far a transform is from rigid over points: maximum and RMS in mm after the best rigid fit."""
    points = points.double()
    _, largest, rms = fit_rigid(points, transform(points))
    return largest, rms


def target_registration_error(transform: Transform, truth: Transform, points: Float[Tensor, "3 n"]) -> Float[Tensor, " n"]:
    """|T(x) - truth(x)| in mm at fixed points."""
    points = points.double()
    return (transform(points) - truth(points)).norm(dim=0)


# -- a case -------------------------------------------------------------------------------------------------------------------
def measure(transform: Transform, case: Case, truth: Transform | None = None, body: Labels | None = None) -> dict[str, Any]:
    """Every measure that the labels, truth and body at hand allow; what cannot be measured has no key.

    ``"bones"`` is a list with one row per label: label, name, dice, msd_mm, hd99_mm, det_mean, det_sd, tre_mean_mm, tre_p95_mm,
    tre_max_mm, rigidity_max_mm, rigidity_rms_mm. Beside it: dice_mean, msd_mean_mm, hd99_mean_mm (over bones), det_mean,
    det_sd (bones pooled), tre_bone_* and tre_soft_* (mean, p95, max, mm), folding_percent (in body where given).

    Bone is where the fixed labels say, else the moving ones pulled back by nearest neighbour. Soft tissue is body outside bone
    and at most 30 mm from it. Points whose true position lies beyond the moving field of view are left out of the error.
    """
    if body is not None and not body.grid.isclose(case.fixed.grid):
        raise ValueError("The body mask lies on the grid of the fixed image; resample it first.")
    grid = case.fixed.grid
    vectors = transform.displacement(grid)
    pulled = resample(case.moving_labels, transform, grid) if case.moving_labels is not None else None
    region = case.fixed_labels if case.fixed_labels is not None else pulled
    inside = body.mask() if body is not None else None
    result: dict[str, Any] = {"bones": [], "folding_percent": folding_percent(vectors, grid, inside)}
    if region is None:
        return result

    errors: list[Tensor] = []
    known = set(region.ids()) | set(case.moving_labels.ids() if case.moving_labels is not None else ())
    for label in sorted(known):
        row: dict[str, Any] = {"label": label, "name": _name(label, case)}
        mask = region.mask([label])
        if (
            case.fixed_labels is not None
            and pulled is not None
            and _in(label, case.fixed_labels)
            and _in(label, case.moving_labels)
        ):
            row |= _overlap(pulled.mask([label]), mask, grid.spacing_mm)
        if mask.any():
            row["det_mean"], row["det_sd"] = jacobian_statistics(vectors, grid, mask)
            points = _points(grid, mask)
            if points.shape[1] >= 3:
                row["rigidity_max_mm"], row["rigidity_rms_mm"] = rigidity_residual(transform, points)
            if truth is not None:
                error = _errors(transform, truth, points, case.moving.grid)
                row |= _spread("tre", error)
                errors.append(error)
        result["bones"].append(row)

    for key, name in (("dice", "dice_mean"), ("msd_mm", "msd_mean_mm"), ("hd99_mm", "hd99_mean_mm")):
        values = [row[key] for row in result["bones"] if key in row]
        if values:
            result[name] = float(np.mean(values))
    bone = region.mask()
    if bone.any():
        result["det_mean"], result["det_sd"] = jacobian_statistics(vectors, grid, bone)
    if errors:
        result |= _spread("tre_bone", torch.cat(errors))
        if inside is not None:
            result |= _spread("tre_soft", _errors(transform, truth, _points(grid, _soft(bone, inside, grid)), case.moving.grid))
    return result


def _name(label: int, case: Case) -> str:
    for labels in (case.fixed_labels, case.moving_labels):
        if labels is not None and label in labels.names:
            return labels.name(label)
    return str(label)


def _in(label: int, labels: Labels | None) -> bool:
    return labels is not None and bool((labels.data == label).any())


def _overlap(moved: Tensor, fixed: Tensor, spacing_mm: np.ndarray) -> dict[str, float]:
    row = {"dice": dice(moved, fixed)}
    if moved.any():
        distances = surface_distances(moved, fixed, spacing_mm)
        row["msd_mm"] = float(np.concatenate(distances).mean())
        row["hd99_mm"] = _hausdorff(distances, 99.0)
    return row


def _points(grid: Grid, mask: Tensor) -> Tensor:
    return grid.world(mask[0].nonzero().T.double())


def _errors(transform: Transform, truth: Transform | None, points: Tensor, moving: Grid) -> Tensor:
    assert truth is not None
    there = truth(points)
    seen = moving.contains(there)
    return (transform(points[:, seen]) - there[:, seen]).norm(dim=0)


def _spread(name: str, error: Tensor) -> dict[str, float]:
    if not error.numel():
        return {}
    values = error.numpy()
    spread = {"mean": values.mean(), "p95": np.percentile(values, 95), "max": values.max()}
    return {f"{name}_{key}_mm": float(value) for key, value in spread.items()}


def _soft(bone: Tensor, body: Tensor, grid: Grid) -> Tensor:
    near = ndimage.distance_transform_edt(~bone[0].numpy(), sampling=grid.spacing_mm) <= SOFT_REACH_MM
    return torch.as_tensor(near)[None] & body & ~bone
