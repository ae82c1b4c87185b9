"""What a file holds, in plain words: one (name, value) pair a line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osteomorph import fields
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.plan import Plan
from osteomorph.recipes import recipe, recipe_names
from osteomorph.transforms import Chain, Displacement, Rigid, Transform, Velocity

Facts = list[tuple[str, str]]

WORDS = {"L": "left", "R": "right", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}
MOST_LISTED = 200
"""Labels that are listed one by one."""


def describe(path: Path) -> Facts:
    """Facts about an image, label map, transform, displacement, plan (or a recipe's name), points, or a result's folder.

    What makes a file unfit for registration is the fact named "problem". Raises InputError for a file that cannot be read.
    """
    from osteomorph.io.files import ITK, NIFTI, existing, is_dicom, suffix
    from osteomorph.io.itk import TRANSFORMS

    if str(path) in recipe_names() and not path.exists():
        return _plan(recipe(str(path)))
    if path.is_dir() and (path / "result.json").is_file():
        return _result(path / "result.json")
    if is_dicom(path):
        return _volume(path)
    ending = suffix(existing(path))
    if ending in NIFTI + ITK:
        return _volume(path)
    if ending in TRANSFORMS:
        return _transform(path)
    if ending == ".csv":
        return _points(path)
    if ending == ".json" and not _is_plan(path):
        return _result(path)
    if ending in (".json", ".toml"):
        return _plan(Plan.read(path))
    raise InputError(f"{path}: files that end in {ending or 'nothing'} are not known. Give an image, a transform or a plan.")


# -- grids and voxels -----------------------------------------------------------------------------------------------------


def grid_facts(grid: Grid) -> Facts:
    """Shape, spacing, orientation and field of view."""
    towards = ", ".join(WORDS[code] for code in grid.axcodes)
    tilt = np.degrees(np.arccos(np.clip(np.abs(grid.direction).max(0), 0, 1))).max()
    oblique = "" if tilt < 0.01 else f"; oblique by up to {tilt:.1f} degrees"
    return [
        ("voxels", _by(grid.shape)),
        ("spacing", f"{_by(grid.spacing_mm, '.4g')} mm"),
        ("axes", f"{grid.axcodes}: they run to {towards}{oblique}"),
        ("field of view", f"{_by(grid.size_mm, '.1f')} mm, centre at ({_comma(grid.centre_mm)}) mm RAS"),
    ]


def _volume(path: Path) -> Facts:
    from osteomorph.apply import detected_labels
    from osteomorph.io import read_header, read_image, read_transform

    head = read_header(path)
    kind = f"{head.dtype}{', scaled by the header' if head.scaled else ''}"
    facts = ([("voxels", _by(head.shape))] if head.grid is None else grid_facts(head.grid)) + [("stored as", kind)]
    if head.files:
        facts = [("DICOM series", _series(head.files, head.frames)), *facts]
    if head.components == 3 or (len(head.shape) == 5 and head.shape[-1] == 3):
        frame = {1006: "RAS (intent 1006)", 1007: "LPS (intent 1007)"}.get(head.intent, "LPS (ITK)")
        return [("kind", f"displacement in {frame}"), *facts, *transform_facts(read_transform(path))]
    try:
        labels = detected_labels(path)
        if labels is None:
            data = read_image(path).data
            mean, deviation = float(data.mean(dtype=torch.float64)), float(data.std())
            facts.append(("values", f"{float(data.min()):g} to {float(data.max()):g}, mean {mean:.4g}, SD {deviation:.4g}"))
            return [("kind", "image"), *facts]
    except InputError as error:
        return [("kind", "volume"), *facts, ("problem", str(error))]
    ids, counts = np.unique(labels.data.numpy(), return_counts=True)
    millilitres = float(np.prod(labels.grid.spacing_mm)) / 1000
    facts.append(("labels", str(len(labels.ids()))))
    for label, count in list(zip(ids.tolist(), counts.tolist(), strict=True))[:MOST_LISTED]:
        if label != 0:
            facts.append((f"  {label}", f"{count * millilitres:.2f} ml in {count} voxels"))
    return [("kind", "label map"), *facts]


# -- transforms -----------------------------------------------------------------------------------------------------------


def transform_facts(transform: Transform) -> Facts:
    """Its steps in the order they are applied, in RAS mm."""
    steps = transform.steps if isinstance(transform, Chain) else (transform,)
    facts: Facts = [("steps", str(len(steps)))]
    for number, step in enumerate(steps, 1):
        facts += [(f"  {number}", line) for line in _step(step)]
    return facts


def _step(step: Transform) -> list[str]:
    if isinstance(step, Rigid):
        shift = step.matrix[:3, 3]
        return [
            f"rigid: {step.angle_deg:.3f} degrees, translation ({_comma(shift, '.3f')}) mm, {np.linalg.norm(shift):.3f} mm long"
        ]
    if isinstance(step, Velocity):
        step = step.flow
    if not isinstance(step, Displacement):
        return [type(step).__name__]
    length = step.vectors.norm(dim=0)
    determinant = fields.jacobian_determinant(step.vectors, step.grid)
    low, high = float(determinant.min()), float(determinant.max())
    percent = 100 * float((determinant <= 0).float().mean())
    folds = "no folding" if percent == 0 else f"folding in {percent:.3g} % of voxels"
    return [
        f"displacements: up to {float(length.max()):.3f} mm, mean {float(length.mean()):.3f} mm",
        f"  on {_by(step.grid.shape)} vectors, {_by(step.grid.spacing_mm, '.3g')} mm apart, axes {step.grid.axcodes}",
        f"  Jacobian determinant {low:.3f} to {high:.3f}, {folds}",
    ]


def _transform(path: Path) -> Facts:
    from osteomorph.io import read_transform

    back = path.name == "inverse.h5" and path.with_name("transform.h5").exists()
    ends = ("moving", "fixed") if back else ("fixed", "moving")
    direction = f"points {ends[0]} -> {ends[1]}; images are pulled back, {ends[1]} -> {ends[0]}"
    facts = [("kind", "transform"), ("direction", direction), ("frame", "LPS mm in the file (ITK); RAS mm here")]
    return facts + transform_facts(read_transform(path))


# -- text -----------------------------------------------------------------------------------------------------------------


def _points(path: Path) -> Facts:
    from osteomorph.points import PointTable

    table = PointTable.read(path)
    points = table.points_mm()
    named = "named by the header" if table.header is not None and table.header[table.columns[0]].lower() != "x" else "taken as"
    bounds = f"({_comma(points.amin(1).tolist())}) to ({_comma(points.amax(1).tolist())}) mm RAS"
    return [("kind", "points"), ("number", str(len(table.rows))), ("frame", f"{named} {table.frame}, mm"), ("bounds", bounds)]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no readable JSON ({error}). Check what it holds.") from None


def _is_plan(path: Path) -> bool:
    found = _json(path)
    return not (isinstance(found, dict) and ({"metrics", "grids"} <= found.keys() or "bones" in found))


def _plan(plan: Plan) -> Facts:
    facts = [("kind", "plan"), ("name", plan.name), ("sha256", plan.digest())]
    for stage in ("prepare", "initialise", "refine"):
        for field, value in getattr(plan, stage).model_dump(mode="json").items():
            lines = value if field == "levels" else [value]
            facts += [(f"{stage}.{field}", _words(line)) for line in lines]
    return [*facts, ("interpolation", plan.interpolation), ("seed", str(plan.seed))]


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _result(path: Path) -> Facts:
    """Of result.json, and bones.json beside it or alone."""
    found = _json(path)
    facts: Facts = []
    if "metrics" in found:
        facts += [("kind", "registration"), ("version", str(found.get("version")))]
        for side in ("fixed", "moving"):
            where = found["grids"][side]
            grid = Grid(tuple(where["shape"]), np.array(where["affine"], dtype=np.float64))
            facts.append((side, "; ".join(f"{name} {value}" for name, value in grid_facts(grid))))
        facts += [("rigid start", found["start"]["method"]), ("plan", found["plan"]["name"])]
        facts += [(name, _words(value)) for name, value in found["metrics"].items()]
        facts += [("seconds", _words(found["seconds"])), ("quality check", "passed" if found["passed"] else "warns")]
        facts += [("warning", text) for text in found["warnings"]]
        bones = path.with_name("bones.json")
        found = _json(bones) if bones.is_file() else {}
    else:
        facts.append(("kind", "bones"))
    for bone in found.get("bones", []):
        moved = f"rotation {bone['rotation_deg']:.2f} degrees, shift {np.linalg.norm(bone['displacement_mm']):.2f} mm"
        facts.append((f"bone {bone['name']}", f"{moved}, not rigid by up to {bone['rigidity_residual_mm']:.2f} mm"))
    return facts


def _series(files: Sequence[Path], frames: Sequence[int]) -> str:
    if len(files) == 1:
        return f"{files[0].name}" + (f", {len(frames)} frames" if frames else "")
    return f"{len(files)} files, {files[0].name} to {files[-1].name}"


def _by(values: Any, form: str = "") -> str:
    return " x ".join(format(value, form) for value in values)


def _comma(values: Any, form: str = ".1f") -> str:
    return ", ".join(format(value, form) for value in values)
