"""A cohort on disk: pairs of files, and the folds they are trained, validated and tested in. The file is ``cohort.json``."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from osteomorph.errors import InputError

MANIFEST = "cohort.json"

THESIS_SHARE = 9 / 49
"""Part of the patients that the 2022 thesis kept for testing, and in each fold for validation."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@final
class PairFiles(_Strict):
    """One fixed and one moving image of a patient. Paths are relative to the manifest's folder, or absolute."""

    id: str
    patient: str
    """Pairs of one patient never lie on both sides of a split."""
    fixed: Path
    moving: Path
    fixed_labels: Path | None = None
    moving_labels: Path | None = None
    fixed_labels_observed: Path | None = None
    """With the errors of a segmentation; for training in place of the exact ones."""
    moving_labels_observed: Path | None = None
    fixed_bones: Path | None = None
    """Every bone, those that carry no label for training too."""
    fixed_body: Path | None = None
    displacement: Path | None = None
    """The truth, fixed -> moving, where it is known."""
    record: Path | None = None

    def files(self) -> dict[str, Path]:
        """Name -> path of every file that is given."""
        return {name: path for name, path in self if isinstance(path, Path)}


@final
class Fold(_Strict):
    """Ids of pairs."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


@final
class Cohort(_Strict):
    """What a manifest holds."""

    pairs: tuple[PairFiles, ...] = Field(min_length=1)
    folds: tuple[Fold, ...] = ()
    names: dict[int, str] = {}
    """Label id -> name of a bone."""
    about: dict[str, object] = {}
    """How the cohort came to be."""
    root: Path = Field(default=Path(), exclude=True)
    """Folder of the manifest."""

    @model_validator(mode="after")
    def _consistent(self) -> "Cohort":
        ids = [pair.id for pair in self.pairs]
        if len(set(ids)) < len(ids):
            raise ValueError("two pairs have the same id")
        patient = {pair.id: pair.patient for pair in self.pairs}
        for number, fold in enumerate(self.folds):
            parts = (fold.train, fold.validation, fold.test)
            absent = sorted({i for part in parts for i in part} - set(ids))
            if absent:
                raise ValueError(f"fold {number} names pairs that do not exist: {', '.join(absent)}")
            for one, other in (*pairwise(parts), (fold.train, fold.test)):
                both = {patient[i] for i in one} & {patient[i] for i in other}
                if both and not self.about.get("split_by_pair"):
                    raise ValueError(f"fold {number} has patient {min(both)} in two of its parts")
        return self

    def pair(self, name: str) -> PairFiles:
        """By its id. Raises InputError where there is none."""
        for pair in self.pairs:
            if pair.id == name:
                return pair
        raise InputError(f"The cohort has no pair {name!r}. It has {', '.join(p.id for p in self.pairs[:5])} ...")

    def path(self, relative: Path) -> Path:
        return self.root / relative


def read_cohort(path: Path) -> Cohort:
    """A manifest, or the folder that holds it.

    Raises InputError: missing, no JSON, fields that are wrong, or files that do not exist.
    """
    path = Path(path)
    file = path / MANIFEST if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file} does not exist. Give a cohort's folder or its {MANIFEST}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        cohort = Cohort.model_validate({**content, "root": file.parent})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(f"{file}: {where}: {first['msg']}. Correct the manifest.") from None
    except (UnicodeDecodeError, ValueError, TypeError):
        raise InputError(f"{file} is no manifest of a cohort (JSON with pairs). Write it again.") from None
    for pair in cohort.pairs:
        for name, part in pair.files().items():
            if not cohort.path(part).is_file():
                raise InputError(f"{file}: {name} of {pair.id} does not exist ({part}). Restore it or take the pair out.")
    return cohort


def write_cohort(folder: Path, cohort: Cohort) -> None:
    """Writes the manifest into a folder."""
    from osteomorph.io import write_json

    write_json(folder / MANIFEST, cohort.model_dump(mode="json", exclude_none=True))


def split(groups: Sequence[str], seed: int, folds: int = 3) -> list[dict[Literal["train", "validation", "test"], list[str]]]:
    """Groups (patients) into one test set and ``folds`` disjoint validation sets, in the thesis' proportions: 49 are 31/9/9.

    Returns nothing where there are fewer than ``folds`` + 2 groups.
    """
    distinct = sorted(set(groups))
    if len(distinct) < folds + 2:
        return []
    order = [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))]
    size = max(1, min(round(len(order) * THESIS_SHARE), (len(order) - 1) // (folds + 1)))
    test, rest = order[:size], order[size:]
    out: list[dict[Literal["train", "validation", "test"], list[str]]] = []
    for fold in range(folds):
        held = rest[fold * size : (fold + 1) * size]
        out.append({"train": sorted(set(rest) - set(held)), "validation": sorted(held), "test": sorted(test)})
    return out


def make_folds(pairs: Sequence[PairFiles], seed: int, folds: int = 3) -> tuple[tuple[Fold, ...], bool]:
    """Folds by patient; by pair, and True, where there are too few patients; none where there are too few pairs."""
    by_patient = split([pair.patient for pair in pairs], seed, folds)
    by_pair = not by_patient
    parts = by_patient or split([pair.id for pair in pairs], seed, folds)

    def members(group: list[str]) -> tuple[str, ...]:
        return tuple(pair.id for pair in pairs if (pair.id if by_pair else pair.patient) in group)

    return tuple(Fold(**{name: members(group) for name, group in part.items()}) for part in parts), by_pair and bool(parts)
