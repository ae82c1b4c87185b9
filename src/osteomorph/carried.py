"""Pairs of a cohort as a network takes them: prepared, and carried onto the fixed grid by the rigid start."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from osteomorph import io
from osteomorph.case import Case
from osteomorph.cohort import Cohort, PairFiles
from osteomorph.errors import InputError
from osteomorph.foreground import foreground
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.initialise import initialise
from osteomorph.plan import Plan
from osteomorph.prepare import prepare, resampled_case
from osteomorph.training_folder import write_whole
from osteomorph.transforms import Rigid

VERSION = 1
"""Of what a cached pair holds; another number makes it anew."""


@final
@dataclass(frozen=True, eq=False)
class CarriedPair:
    """case: prepared, every part on the fixed grid. start: fixed mm -> moving mm. id: of the pair in its cohort."""

    case: Case = field(repr=False)
    start: Rigid
    id: str


def carried_pair(cohort: Cohort, pair_id: str, plan: Plan, cache: Path | None = None, observed: bool = True) -> CarriedPair:
    """A pair read, prepared and rigidly started as the plan says; the moving side interpolated once onto the fixed grid.

    Labels are carried along where the pair has them, and the start takes them as ``plan.initialise`` says.

    cache: folder in which the result is kept under a digest of the files' sizes and times and of the plan's two stages.
    observed: take the labels with a segmentation's errors where the cohort has them.

    Raises InputError with the pair's name in front: a file that cannot be read, or a start that failed.
    """
    files = label_choice(cohort.pair(pair_id), observed)
    kept = None if cache is None else Path(cache) / f"{pair_id}-{_digest(cohort, files, plan)[:20]}.safetensors"
    if kept is not None and kept.is_file() and (found := _load(kept, pair_id)) is not None:
        return found
    try:
        case = _read(cohort, files)
        prepared = prepare(case, plan.prepare)
        start = initialise(prepared, plan.initialise, plan.seed).rigid
    except InputError as error:
        raise InputError(f"{pair_id}: {error}") from None
    made = CarriedPair(on_fixed_grid(prepared, start, plan), start, pair_id)
    if kept is not None:
        _save(kept, made)
    return made


def label_choice(pair: PairFiles, observed: bool) -> PairFiles:
    """The pair with the labels that are to be used as its labels."""
    if not observed:
        return pair
    chosen = {
        "fixed_labels": pair.fixed_labels_observed or pair.fixed_labels,
        "moving_labels": pair.moving_labels_observed or pair.moving_labels,
    }
    return pair.model_copy(update=chosen)


def on_fixed_grid(prepared: Case, start: Rigid, plan: Plan) -> Case:
    """The prepared moving side interpolated onto the fixed grid itself; a mask that leaves nothing out is dropped."""
    case = resampled_case(prepared, start, margin_mm=0.0)
    if case.moving_mask is not None and bool((case.moving_mask.data == 1).all()):
        case = replace(case, moving_mask=None)
    if case.fixed_mask is None and plan.refine.foreground:
        case = replace(case, fixed_mask=foreground(case.fixed))
    return case


def _read(cohort: Cohort, files: PairFiles) -> Case:
    fixed, moving = (io.read_image(cohort.path(path)) for path in (files.fixed, files.moving))
    labels = [
        None if path is None else io.read_labels(cohort.path(path), like=image.grid)
        for path, image in ((files.fixed_labels, fixed), (files.moving_labels, moving))
    ]
    return Case(fixed, moving, labels[0], labels[1])


# -- the cache ------------------------------------------------------------------------------------------------------------
def _digest(cohort: Cohort, files: PairFiles, plan: Plan) -> str:
    used = ("fixed", "moving", "fixed_labels", "moving_labels")
    stamps = {}
    for name in used:
        path = getattr(files, name)
        if path is not None:
            told = cohort.path(path).stat()
            stamps[name] = [str(cohort.path(path).resolve()), told.st_size, told.st_mtime_ns]
    made_by = [plan.prepare.model_dump(mode="json"), plan.initialise.model_dump(mode="json"), plan.seed, plan.refine.foreground]
    return hashlib.sha256(json.dumps([VERSION, stamps, made_by], sort_keys=True).encode()).hexdigest()


def _save(path: Path, pair: CarriedPair) -> None:
    """Whole or not at all; of two processes that write one pair either may win."""
    from safetensors.torch import save

    case = pair.case
    parts = {"fixed": case.fixed, "moving": case.moving, "fixed_labels": case.fixed_labels, "moving_labels": case.moving_labels}
    parts |= {"fixed_mask": case.fixed_mask, "moving_mask": case.moving_mask}
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {"affine": case.fixed.grid.affine.tolist(), "start": pair.start.matrix.tolist()}
    for name, part in parts.items():
        if part is not None:
            tensors[name] = part.data.contiguous()
            header[name] = {"stored": str(part.stored)}
        if isinstance(part, Labels):
            header[name]["names"] = {str(label): text for label, text in part.names.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(tensors, {"carried": json.dumps(header)}))


def _load(path: Path, pair_id: str) -> CarriedPair | None:
    """None where the file cannot be used; it is then made anew."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", device="cpu") as file:
            header = json.loads((file.metadata() or {})["carried"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError):
        return None
    a, b, c = tensors["fixed"].shape[1:]
    grid = Grid((a, b, c), np.array(header["affine"]))
    parts = {name: _part(data, grid, header[name]) for name, data in tensors.items()}
    return CarriedPair(Case(**parts), Rigid(np.array(header["start"])), pair_id)  # type: ignore[arg-type]


def _part(data: Tensor, grid: Grid, told: Mapping[str, Any]) -> Image | Labels:
    stored = np.dtype(told["stored"])
    if "names" in told:
        return Labels(data, grid, {int(label): text for label, text in told["names"].items()}, stored)
    return Image(data.to(torch.float32), grid, stored)
