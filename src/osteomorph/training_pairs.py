"""The pairs a network is trained on: checked before the first epoch, carried once, held in memory where they fit."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, final

import torch

from osteomorph import io
from osteomorph.carried import carried_pair, label_choice
from osteomorph.case import Case
from osteomorph.cohort import Cohort, Fold, PairFiles
from osteomorph.errors import InputError
from osteomorph.image import Image, Labels
from osteomorph.memory import available_bytes
from osteomorph.parallel import Workers
from osteomorph.plan import Plan, Weights
from osteomorph.simulate.dataset import SimulatedPairs

MEMORY_SHARE = 0.4
"""Of what is free, for pairs that are held; more of them are read from the cache at each step."""

Tell = Callable[[str, int, int], None]


@final
@dataclass(frozen=True, eq=False)
class TrainingCase:
    """A carried case and what is known of its labels.

    rigid: ids of the bones inside which the rigidity penalty acts. shared: ids that both label maps hold.
    """

    case: Case = field(repr=False)
    rigid: tuple[int, ...]
    shared: tuple[int, ...]

    @classmethod
    def of(cls, case: Case) -> "TrainingCase":
        maps = (case.fixed_labels, case.moving_labels)
        fixed, moving = ([] if labels is None else labels.ids() for labels in maps)
        return cls(case, tuple(sorted({*fixed, *moving})), tuple(sorted({*fixed} & {*moving})))

    def to(self, device: torch.device) -> "TrainingCase":
        parts: dict[str, Any] = {part.name: getattr(self.case, part.name) for part in fields(self.case)}
        moved: dict[str, Any] = {name: None if part is None else part.to(device) for name, part in parts.items()}
        return replace(self, case=Case(**moved))

    @property
    def bytes(self) -> int:
        parts = [getattr(self.case, part.name) for part in fields(self.case)]
        return sum(part.data.numel() * part.data.element_size() for part in parts if part is not None)


# -- before the first epoch -----------------------------------------------------------------------------------------------
def fold_of(cohort: Cohort, fold: int) -> Fold:
    """Raises InputError where there is none of that number."""
    if not cohort.folds:
        raise InputError(f"The cohort of {len(cohort.pairs)} pairs has no folds. Add folds to its manifest.")
    if not 0 <= fold < len(cohort.folds):
        raise InputError(f"The cohort has no fold {fold}. Its folds are 0 to {len(cohort.folds) - 1}.")
    return cohort.folds[fold]


def check_fold(cohort: Cohort, fold: int, plan: Plan, observed: bool, tell: Tell) -> None:
    """Whether every pair of a fold is fit for training.

    Raises InputError: no such fold, an empty part, a patient or a file in two parts, and, with the pair's name in front, an
    image that cannot be read, a label map that a weight of the plan needs and is not there, or ids of one side alone.
    """
    parts = fold_of(cohort, fold)
    if not any(getattr(plan.refine.weights, name) for name in ("mutual_information", "mind", "dice")):
        raise InputError(f"The plan {plan.name!r} weighs nothing that tells how well images match. Give refine.weights.")
    for name in ("train", "validation"):
        if not getattr(parts, name):
            raise InputError(f"Fold {fold} has no pairs for {name}. Add some to its manifest.")
    _check_parts(cohort, parts, fold)
    named = [*parts.train, *parts.validation]
    for number, pair_id in enumerate(named):
        tell("check", number, len(named))
        try:
            _check_pair(cohort, label_choice(cohort.pair(pair_id), observed), plan.refine.weights)
        except InputError as error:
            raise InputError(f"{pair_id}: {error}") from None
    tell("check", len(named), len(named))


def _check_parts(cohort: Cohort, parts: Fold, fold: int) -> None:
    """No patient, and no image, in two parts."""
    seen: dict[str, tuple[str, str]] = {}
    for name, ids in (("train", parts.train), ("validation", parts.validation), ("test", parts.test)):
        if repeated := [pair_id for pair_id, times in Counter(ids).items() if times > 1]:
            raise InputError(f"Fold {fold} names {repeated[0]} twice in {name}. Name it once.")
        for pair_id in ids:
            pair = cohort.pair(pair_id)
            marks = [] if cohort.about.get("split_by_pair") else [f"patient {pair.patient}"]
            marks += [str(cohort.path(path).resolve()) for path in (pair.fixed, pair.moving)]
            for mark in marks:
                where, other = seen.setdefault(mark, (name, pair_id))
                if where != name:
                    raise InputError(
                        f"Fold {fold} has {mark} in {where} ({other}) and in {name} ({pair_id}). Keep it in one part."
                    )


def _check_pair(cohort: Cohort, files: PairFiles, weights: Weights) -> None:
    grids = [io.read_header(cohort.path(path)).grid for path in (files.fixed, files.moving)]
    if not (weights.dice or weights.rigidity):
        return
    needed = "dice" if weights.dice else "rigidity"
    ids = []
    for side, path, grid in (("fixed", files.fixed_labels, grids[0]), ("moving", files.moving_labels, grids[1])):
        if path is None:
            raise InputError(
                f"There are no {side} labels, and the plan weighs {needed}. Add {side}_labels to the manifest, take the pair "
                "out, or train thesis-us, which needs none."
            )
        ids.append(set(io.read_labels(cohort.path(path), like=grid).ids()))
    if not ids[0] or ids[0] != ids[1]:
        fixed, moving = (", ".join(map(str, sorted(side))) or "none" for side in ids)
        raise InputError(f"The fixed labels are {fixed} and the moving ones {moving}. Give both images the same ids.")


# -- carried --------------------------------------------------------------------------------------------------------------
@final
class TrainingPairs:
    """Pairs of a cohort by id, as `TrainingCase` on this worker's device."""

    def __init__(self, cohort: Cohort, plan: Plan, cache: Path, observed: bool, workers: Workers) -> None:
        self.cohort, self.plan, self.cache, self.observed, self.workers = cohort, plan, cache, observed, workers
        self._held: dict[str, TrainingCase] = {}
        self._known: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def carry(self, ids: Sequence[str], tell: Tell) -> None:
        """Every pair once, each process its share; then those that fit stay in memory.

        Raises InputError where a pair has no label left on the fixed grid and the plan weighs labels.
        """
        share = self.workers.share(ids)
        for number, pair_id in enumerate(share):
            tell("prepare", number, len(share))
            self._check_labels(self._read(pair_id), pair_id)
        tell("prepare", len(share), len(share))
        self.workers.wait()
        room = int(MEMORY_SHARE * self._free() / (1 if self.workers.device.type == "cuda" else self.workers.size))
        for pair_id in ids:
            found = self._read(pair_id)
            room -= found.bytes
            if room < 0:
                break
            self._held[pair_id] = found.to(self.workers.device)

    def __getitem__(self, pair_id: str) -> TrainingCase:
        return self._held[pair_id] if pair_id in self._held else self._read(pair_id).to(self.workers.device)

    def _read(self, pair_id: str) -> TrainingCase:
        case = carried_pair(self.cohort, pair_id, self.plan, self.cache, self.observed).case
        if pair_id not in self._known:
            found = TrainingCase.of(case)
            self._known[pair_id] = found.rigid, found.shared
        return TrainingCase(case, *self._known[pair_id])

    def _check_labels(self, found: TrainingCase, pair_id: str) -> None:
        weights = self.plan.refine.weights
        if (weights.dice or weights.rigidity) and not found.shared:
            raise InputError(
                f"{pair_id}: No label of both images is left on the fixed grid. Give a larger prepare.shape, check the labels, "
                "or take the pair out."
            )

    def _free(self) -> int:
        if self.workers.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.workers.device)[0])
        return available_bytes()


def drawn_case(pairs: SimulatedPairs, number: int) -> TrainingCase:
    """A simulated pair as a case; it is on one grid, and as near as a rigid start leaves it."""
    drawn = pairs.pair(number)
    fixed, moving = Image(drawn.fixed, drawn.grid), Image(drawn.moving, drawn.grid)
    labels = [Labels(data, drawn.grid) for data in (drawn.fixed_labels, drawn.moving_labels)]
    return TrainingCase.of(Case(fixed, moving, labels[0], labels[1]))


def drawn_pairs(patients: int, plan: Plan, seed: int = 0, device: torch.device | str = "cpu") -> SimulatedPairs:
    """Endless pairs of so many drawn patients, in the plan's voxels and field of view; labelled as a cohort of them would be.

    Raises InputError where the plan leaves its shape to the images.
    """
    from osteomorph.simulate.atlas import voxelised
    from osteomorph.simulate.subjects import procedural

    if plan.prepare.shape is None:
        raise InputError(f"The plan {plan.name!r} has no prepare.shape, so that nothing says how large pairs are. Give one.")
    depth, height, breadth = plan.prepare.shape
    anatomies = [procedural("lumbar", seed)(number).anatomy for number in range(patients)]
    atlases = [voxelised(anatomy, plan.prepare.spacing_mm, anatomy.views["lumbar"]) for anatomy in anatomies]
    labelled = sorted({label for anatomy in anatomies for label in anatomy.views["lumbar"].labelled})
    shape = (breadth, depth, height)
    return SimulatedPairs(atlases, shape, plan.prepare.spacing_mm, labelled=labelled, seed=seed, device=device)
