"""From a transform to tidy rows: one per bone, and one for the labelled bones pooled.

Estimators are those of `osteomorph.measure`: surface voxels are those of a mask with a face neighbour outside, distances run
between voxel centres, HD99 is the larger of the two directed 99th percentiles, det J is by central differences in mm.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from osteomorph.case import Case
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Labels
from osteomorph.measure import Mask, dice, fit_rigid, folding_percent, jacobian_statistics, surface_distances
from osteomorph.resampling import resample
from osteomorph.transforms import Transform

Row = dict[str, Any]
"""Column -> value; what could not be measured has no key."""

BANDS_MM = ((0.0, 10.0), (10.0, 20.0), (20.0, 30.0), (30.0, np.inf))
"""Distances from bone over which the error in soft tissue is averaged."""

COLUMNS = (
    *("pair", "method", "fold", "bone", "label", "role", "dice", "msd_mm", "hd99_mm", "det_mean", "det_sd", "det_sd_inner"),
    *("tre_mean_mm", "tre_p95_mm", "tre_max_mm", "rigidity_max_mm", "rigidity_rms_mm", "folding_percent"),
    *("folding_body_percent", "tre_soft_mean_mm"),
    *("tre_soft_0_10_mm", "tre_soft_10_20_mm", "tre_soft_20_30_mm", "tre_soft_30_up_mm", "seconds", "peak_mb"),
)
"""Of the files that `write_rows` writes, in this order."""


def evaluate(
    transform: Transform,
    case: Case,
    truth: Transform | None = None,
    body: Labels | None = None,
    bones: Labels | None = None,
) -> list[Row]:
    """Rows of one registration: what labels, truth and body at hand allow.

    transform, truth: fixed mm -> moving mm. case: everything is measured on the grid of its fixed image.
    body: not 0 inside the skin, on that grid. bones: every bone, exact, on that grid; the fixed labels by default.

    ``role`` is ``"labelled"`` (a bone of the fixed labels), ``"unlabelled"`` (of ``bones`` alone; no overlap there) or
    ``"pooled"`` (the labelled ones together). Pooled overlap counts the voxels of every bone, each with its own label only,
    and pooled surface distances are those of all bones in one list; whole-volume measures stand in the pooled row.
    Overlap and det J are taken in the labels, the target registration error and the rigidity residual (of the best rigid fit)
    in ``bones``. ``det_sd_inner`` leaves out voxels whose central differences reach out of the bone. Folding is det J <= 0.

    Raises ValueError where body or bones lie on another grid.
    """
    grid = case.fixed.grid
    for given in (body, bones):
        if given is not None and not given.grid.isclose(grid):
            raise ValueError("Body and bones lie on the grid of the fixed image; resample them first.")
    vectors = transform.displacement(grid)
    error = None if truth is None else _Errors(vectors, truth, case.moving.grid, grid)
    pulled = None if case.moving_labels is None else resample(case.moving_labels, transform, grid)
    seen = case.fixed_labels if case.fixed_labels is not None else pulled
    ids = [] if seen is None else seen.ids()
    there = [] if case.moving_labels is None else case.moving_labels.ids()
    exact = bones if bones is not None else seen
    rows: list[Row] = []
    overlaps: list[_Overlap] = []
    for label in ids:
        assert seen is not None
        assert exact is not None
        mask = seen.mask([label])
        row: Row = {"bone": _name(label, case, bones), "label": label, "role": "labelled"}
        if case.fixed_labels is not None and pulled is not None and label in there:
            overlaps.append(_Overlap(pulled.mask([label]), mask, grid.spacing_mm))
            row |= overlaps[-1].row()
        rows.append(row | _deformation(vectors, grid, mask) | _motion(vectors, grid, exact.mask([label]), error))
    pooled: Row = {"bone": "+".join(row["bone"] for row in reversed(rows)) or "none", "label": 0, "role": "pooled"}
    if overlaps:
        pooled |= _Overlap.pooled(overlaps).row()
    if ids:
        assert seen is not None
        assert exact is not None
        pooled |= _deformation(vectors, grid, seen.mask(ids)) | _spread(error, exact.mask(ids))
        pooled |= {key: max(row[key] for row in rows) for key in ("rigidity_max_mm",) if all(key in row for row in rows)}
    pooled |= _whole(vectors, grid, body, exact, error)
    for label in sorted(set(bones.ids() if bones is not None else ()) - set(ids)):
        assert bones is not None
        mask = bones.mask([label])
        row = {"bone": _name(label, case, bones), "label": label, "role": "unlabelled"}
        rows.append(row | _deformation(vectors, grid, mask) | _motion(vectors, grid, mask, error))
    return [*rows, pooled]


class _Overlap:
    """Counts and surface distances of one bone, or of several added up."""

    def __init__(self, moved: Mask, fixed: Mask, spacing_mm: np.ndarray) -> None:
        total = int(moved.sum()) + int(fixed.sum())
        self.shared, self.total = dice(moved, fixed) * total, total
        self.distances = surface_distances(moved, fixed, spacing_mm) if moved.any() else None

    @classmethod
    def pooled(cls, parts: Sequence["_Overlap"]) -> "_Overlap":
        out = cls.__new__(cls)
        out.shared, out.total = sum(part.shared for part in parts), sum(part.total for part in parts)
        lists = [part.distances for part in parts if part.distances is not None]
        whole = len(lists) == len(parts)
        out.distances = (np.concatenate([a for a, _ in lists]), np.concatenate([b for _, b in lists])) if whole else None
        return out

    def row(self) -> Row:
        row: Row = {"dice": self.shared / self.total}
        if self.distances is not None:
            row["msd_mm"] = float(np.concatenate(self.distances).mean())
            row["hd99_mm"] = float(max(np.percentile(directed, 99.0) for directed in self.distances))
        return row


class _Errors:
    """|T(x) - truth(x)| in mm at every voxel, and whether the true place is in the moving field of view."""

    def __init__(self, vectors: Float[Tensor, "3 i j k"], truth: Transform, moving: Grid, grid: Grid) -> None:
        true = truth.displacement(grid)
        self.length = (vectors - true).norm(dim=0)
        self.seen = moving.contains((grid.points() + true).flatten(1)).unflatten(0, grid.shape)

    def within(self, mask: Tensor) -> np.ndarray:
        return self.length[mask & self.seen].double().numpy()


def _deformation(vectors: Tensor, grid: Grid, mask: Mask) -> Row:
    if not mask.any():
        return {}
    mean, sd = jacobian_statistics(vectors, grid, mask)
    row: Row = {"det_mean": mean, "det_sd": sd}
    inner = torch.as_tensor(ndimage.binary_erosion(mask[0].numpy()))[None]
    if int(inner.sum()) > 1:
        row["det_sd_inner"] = jacobian_statistics(vectors, grid, inner)[1]
    return row


def _motion(vectors: Tensor, grid: Grid, mask: Mask, error: _Errors | None) -> Row:
    row = _spread(error, mask)
    index = mask[0].nonzero().T
    if index.shape[1] >= 3:
        points = grid.world(index.double())
        moved = points + vectors[:, mask[0]].double()
        _, row["rigidity_max_mm"], row["rigidity_rms_mm"] = fit_rigid(points, moved)
    return row


def _spread(error: _Errors | None, mask: Mask) -> Row:
    values = np.empty(0) if error is None else error.within(mask[0])
    if not values.size:
        return {}
    return {
        "tre_mean_mm": float(values.mean()),
        "tre_p95_mm": float(np.percentile(values, 95)),
        "tre_max_mm": float(values.max()),
    }


def _whole(vectors: Tensor, grid: Grid, body: Labels | None, bones: Labels | None, error: _Errors | None) -> Row:
    row: Row = {"folding_percent": folding_percent(vectors, grid)}
    if body is None or not body.mask().any():
        return row
    row["folding_body_percent"] = folding_percent(vectors, grid, body.mask())
    if error is None or bones is None or not bones.mask().any():
        return row
    distance = ndimage.distance_transform_edt(~bones.mask()[0].numpy(), sampling=grid.spacing_mm)
    soft = body.mask()[0] & ~bones.mask()[0]
    near = torch.as_tensor(distance <= BANDS_MM[-1][0])
    values = error.within(soft & near)
    if values.size:
        row["tre_soft_mean_mm"] = float(values.mean())
    for low, high in BANDS_MM:
        values = error.within(soft & torch.as_tensor((distance > low) & (distance <= high)))
        if values.size:
            row[f"tre_soft_{low:.0f}_{'up' if np.isinf(high) else f'{high:.0f}'}_mm"] = float(values.mean())
    return row


def _name(label: int, case: Case, bones: Labels | None) -> str:
    for labels in (case.fixed_labels, case.moving_labels, bones):
        if labels is not None and label in labels.names:
            return labels.name(label)
    return str(label)


# -- files --------------------------------------------------------------------------------------------------------------------
def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as CSV (or JSON, by the name's ending); lengths in mm, shares in percent, what was not measured left empty."""
    rows = list(rows)
    check_name(path)
    if path.suffix == ".json":
        from osteomorph.io import write_json

        write_json(path, rows)
        return path
    extra = sorted({key for row in rows for key in row} - set(COLUMNS))
    columns = [column for column in COLUMNS if any(column in row for row in rows)] + extra
    from osteomorph.io.files import writing

    with writing(path) as target, target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def check_name(path: Path) -> None:
    """Raises InputError where `write_rows` would not know the format."""
    if path.suffix not in (".csv", ".json"):
        raise InputError(f"{path}: results are written as CSV or JSON. Give a name that ends in .csv or .json.")


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote as CSV: numbers as numbers, empty cells left out."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: _value(key, text) for key, text in row.items() if text not in ("", None)} for row in csv.DictReader(file)]


def _value(key: str, text: str) -> Any:
    if key in ("pair", "method", "bone", "role", "study", "cohort"):
        return text
    return int(text) if key in ("label", "fold") else float(text)
