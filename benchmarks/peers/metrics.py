"""Figures of one transform on one pair with known truth; the measures are those of osteomorph.measure."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from osteomorph.case import Case
from osteomorph.fields import jacobian_determinant
from osteomorph.image import Labels
from osteomorph.io import read_image, read_labels, read_transform
from osteomorph.measure import folding_percent, measure
from osteomorph.transforms import Transform

FIGURES = (
    "bone_mm",
    "bone_p95_mm",
    "soft_mm",
    "soft_p95_mm",
    "dice",
    "hd99_mm",
    "det_mean",
    "det_sd",
    "rigidity_max_mm",
    "folding_percent",
    "inverse_mm",
    "det_sd_found",
    "missed_bones",
)
"""What `figures` returns, in this order; `inverse_mm` where there is an inverse, the last two where bones were found."""

MISSED = 1 / 3
"""A labelled bone of which less lies in every single found one is missed, or split."""

INVERSE_POINTS = 200_000
"""About how many points of the body the inverse is checked at."""


@final
@dataclass(frozen=True, eq=False)
class Known:
    """A pair with its exact labels and truth. body: inside of the skin. soft: the same without bones that carry no label."""

    case: Case
    truth: Transform
    body: Labels
    soft: Labels


def read_known(folder: Path) -> Known:
    """A pair from its folder."""
    fixed, moving = read_image(folder / "fixed.nii.gz"), read_image(folder / "moving.nii.gz")
    case = Case(
        fixed,
        moving,
        read_labels(folder / "fixed_labels.nii.gz", fixed.grid),
        read_labels(folder / "moving_labels.nii.gz", moving.grid),
    )
    body = read_labels(folder / "fixed_body.nii.gz", fixed.grid)
    bones = read_labels(folder / "fixed_bones.nii.gz", fixed.grid)
    assert case.fixed_labels is not None
    unlabelled = bones.mask() & ~case.fixed_labels.mask()
    soft = Labels(body.data * ~unlabelled, body.grid)
    return Known(case, read_transform(folder / "displacement.nii.gz"), body, soft)


def figures(
    transform: Transform, known: Known, inverse: Transform | None = None, found_bones: Labels | None = None
) -> dict[str, float]:
    """Name -> value, of `FIGURES`.

    Target registration errors in mm: over all voxels of labelled bones, and of soft tissue within 30 mm of them. dice and
    hd99_mm: mean over bones. det_mean, det_sd: of the Jacobian determinant in labelled bones, by central differences.
    rigidity_max_mm: of the worst bone. folding_percent: in the body. inverse_mm: mean of |inverse(T(x)) - x| over the body
    where T(x) is seen. det_sd_found: of the determinant in the bones that the method found, on the fixed grid.
    missed_bones: how many labelled ones it did not find.
    """
    found = measure(transform, known.case, known.truth, known.soft)
    grid = known.case.fixed.grid
    out = {
        "bone_mm": found["tre_bone_mean_mm"],
        "bone_p95_mm": found["tre_bone_p95_mm"],
        "soft_mm": found["tre_soft_mean_mm"],
        "soft_p95_mm": found["tre_soft_p95_mm"],
        "dice": found["dice_mean"],
        "hd99_mm": found.get("hd99_mean_mm", float("nan")),
        "det_mean": found["det_mean"],
        "det_sd": found["det_sd"],
        "rigidity_max_mm": max(bone["rigidity_max_mm"] for bone in found["bones"] if "rigidity_max_mm" in bone),
        "folding_percent": folding_percent(transform.displacement(grid), grid, known.body.mask()),
    }
    if inverse is not None:
        out["inverse_mm"] = inverse_error(transform, inverse, known)
    if found_bones is not None:
        determinant = jacobian_determinant(transform.displacement(grid), grid)
        out["det_sd_found"] = float(determinant[found_bones.mask()[0]].std())
        out["missed_bones"] = float(missed_bones(found_bones, known))
    return out


def missed_bones(found: Labels, known: Known) -> int:
    """Labelled bones of which no found one holds a third."""
    truth = known.case.fixed_labels
    assert truth is not None
    count = 0
    for label in truth.ids():
        inside = found.data[truth.data == label].long()
        most = int(torch.bincount(inside)[1:].max()) if int(inside.max()) > 0 else 0
        count += most < MISSED * inside.numel()
    return count


def inverse_error(transform: Transform, inverse: Transform, known: Known) -> float:
    inside = known.body.mask()[0].nonzero().T.double()
    points: Tensor = known.case.fixed.grid.world(inside[:, :: max(1, inside.shape[1] // INVERSE_POINTS)])
    there = transform(points)
    seen = known.case.moving.grid.contains(there)
    return float((inverse(there[:, seen]) - points[:, seen]).norm(dim=0).mean())


def to_ras(vectors: np.ndarray, frame: str, affine: np.ndarray) -> np.ndarray:
    """(i, j, k, 3) displacements in a frame -> (3, i, j, k) mm along RAS axes.

    frame: "RAS" or "LPS", mm along world axes; "voxels", along the array axes of the grid whose RAS affine is given.
    """
    if vectors.ndim != 4 or vectors.shape[-1] != 3:
        raise ValueError(f"Displacements of shape {vectors.shape}: expected (i, j, k, 3).")
    matrices = {"RAS": np.eye(3), "LPS": np.diag([-1.0, -1.0, 1.0]), "voxels": affine[:3, :3]}
    if frame not in matrices:
        raise ValueError(f"No frame is called {frame!r}: expected {', '.join(matrices)}.")
    out: np.ndarray = np.einsum("ab,ijkb->aijk", matrices[frame], vectors.astype(np.float64))
    return out


def as_tensor(vectors: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
