"""Simulated pairs on disk: one folder a pair, and the cohort's manifest. What was interrupted goes on where it stopped."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from osteomorph.cohort import Cohort, PairFiles, make_folds, write_cohort
from osteomorph.errors import InputError
from osteomorph.simulate.anatomy import Anatomy
from osteomorph.simulate.mr import CONTRASTS
from osteomorph.simulate.pair import SOFT, Settings, SimulatedPair, simulate

RECORD = "pair.json"
"""What was drawn, and the file by which a finished pair is known."""

FILES = (
    "fixed",
    "moving",
    "fixed_labels",
    "moving_labels",
    "fixed_labels_observed",
    "moving_labels_observed",
    "fixed_bones",
    "fixed_body",
    "displacement",
)
"""Names of a pair's files, each with the ending .nii.gz."""

MIXED = "mixed"
"""A choice drawn anew for every pair."""


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """An anatomy, who it is, and how it came to be, fit for JSON."""

    anatomy: Anatomy
    patient: str
    record: Mapping[str, Any]


def save(
    pair: SimulatedPair, folder: Path, truth_spacing_mm: float | None = None, more: Mapping[str, Any] | None = None
) -> None:
    """Writes a pair as files into a folder that exists or is made.

    truth_spacing_mm: of the true displacement; on the fixed grid by default.
    more: further entries of ``pair.json``.
    """
    from osteomorph import io

    folder.mkdir(parents=True, exist_ok=True)
    case = pair.case
    assert case.fixed_labels is not None
    assert case.moving_labels is not None
    io.write_image(folder / "fixed.nii.gz", case.fixed)
    io.write_image(folder / "moving.nii.gz", case.moving)
    io.write_image(folder / "fixed_labels.nii.gz", case.fixed_labels)
    io.write_image(folder / "moving_labels.nii.gz", case.moving_labels)
    io.write_image(folder / "fixed_labels_observed.nii.gz", pair.fixed_observed)
    io.write_image(folder / "moving_labels_observed.nii.gz", pair.moving_observed)
    io.write_image(folder / "fixed_bones.nii.gz", pair.fixed_bones)
    io.write_image(folder / "fixed_body.nii.gz", pair.fixed_body)
    if truth_spacing_mm is None:
        io.write_displacement(folder / "displacement.nii.gz", pair.displacement, case.fixed.grid)
    else:
        io.write_displacement(folder / "displacement.nii.gz", pair.truth, case.fixed.grid.resampled(truth_spacing_mm))
    io.write_json(folder / RECORD, {**pair.record(), **(more or {})})


def simulate_cohort(
    folder: Path,
    count: int,
    seed: int,
    subject: Callable[[int], Subject],
    settings: Settings,
    *,
    contrast: str = "gre",
    soft: str = "harmonic",
    truth_spacing_mm: float | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Cohort:
    """Writes ``count`` pairs and ``cohort.json``. Pair i depends on ``seed`` and i alone.

    A pair that is there already, made of the same request, is kept.

    subject: i -> the anatomy of pair i. contrast, soft: as in `Settings`, or ``"mixed"``.

    Raises InputError: a folder that holds pairs of another request (unless ``overwrite``), or what `simulate` raises.
    """
    from osteomorph.io import OutputFolder

    if count < 1:
        raise InputError(f"A cohort has at least one pair, not {count}. Give -n 1 or more.")
    _check_choice("contrast", contrast, CONTRASTS)
    _check_choice("soft tissue", soft, SOFT)
    tell = progress or (lambda stage, done, total: None)
    entries: list[PairFiles] = []
    names: dict[int, str] = {}
    tell("simulate", 0, count)
    for number in range(count):
        drawn = np.random.default_rng((seed, number, 1))
        one = replace(
            settings,
            contrast=str(drawn.choice(CONTRASTS)) if contrast == MIXED else contrast,
            soft=str(drawn.choice(SOFT)) if soft == MIXED else soft,
        )
        target = folder / f"pair{number:03d}"
        who = subject(number)
        request = _digest({"seed": [seed, number], "subject": who.record, "settings": asdict(one), "truth": truth_spacing_mm})
        if not _is_finished(target, request, overwrite):
            with OutputFolder(target, overwrite=True, marker=RECORD) as output:
                pair = simulate(who.anatomy, one, int(drawn.integers(0, 2**31)))
                more = {"patient": who.patient, "anatomy": who.record, "request": request}
                save(pair, output.path, truth_spacing_mm, more)
        entries.append(_entry(target, who.patient))
        names |= {bone["label"]: bone["name"] for bone in _read(target)["bones"]}
        tell("simulate", number + 1, count)
    folds, by_pair = make_folds(entries, seed)
    about: dict[str, object] = {"seed": seed, "made_by": "osteomorph simulate", "contrast": contrast, "soft": soft}
    cohort = Cohort(
        pairs=tuple(entries),
        folds=folds,
        names=names,
        about={**about, "split_by_pair": True} if by_pair else about,
        root=folder,
    )
    write_cohort(folder, cohort)
    return cohort


def _check_choice(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in (*known, MIXED):
        raise InputError(f"No {what} is called {given!r}. Choose from {', '.join((*known, MIXED))}.")


def _digest(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).hexdigest()


def _read(target: Path) -> dict[str, Any]:
    return dict(json.loads((target / RECORD).read_text(encoding="utf-8")))


def _is_finished(target: Path, request: str, overwrite: bool) -> bool:
    if not (target / RECORD).is_file():
        return False
    try:
        same = _read(target).get("request") == request
    except ValueError:
        same = False
    if not same and not overwrite:
        raise InputError(f"{target} holds a pair made of another request. Give another folder, or replace it with --overwrite.")
    return same


def _entry(target: Path, patient: str) -> PairFiles:
    name = target.name
    parts = {part: Path(name) / f"{part}.nii.gz" for part in FILES}
    return PairFiles(id=name, patient=patient, record=Path(name) / RECORD, **parts)
