"""A method over a part of a cohort: the transform of each pair, and its rows beside the truth."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final

import torch

from osteomorph import io
from osteomorph.case import Case
from osteomorph.cohort import Cohort
from osteomorph.descent import Progress
from osteomorph.errors import InputError
from osteomorph.evaluate import Row, evaluate
from osteomorph.image import Labels
from osteomorph.memory import peak_bytes
from osteomorph.plan import Plan, PreparePlan
from osteomorph.prepare import prepare
from osteomorph.resampling import regrid_labels
from osteomorph.transforms import Transform

Part = Literal["train", "validation", "test"]


@final
@dataclass(frozen=True, eq=False)
class Found:
    """transform: fixed mm -> moving mm. seconds: that finding it took, the rigid start and reading left out."""

    transform: Transform
    seconds: float


Method = Callable[[str], Found]
"""Pair's id -> what was found for it."""


@final
@dataclass(frozen=True, eq=False)
class Reference:
    """What a pair is measured by.

    case: fixed side prepared, moving side as it is on disk; its labels are those of the thesis' measures.
    truth, body, bones: on the prepared fixed grid, where the cohort has them.
    """

    case: Case
    truth: Transform | None
    body: Labels | None
    bones: Labels | None


def reference(cohort: Cohort, pair_id: str, plan: PreparePlan, observed: bool = True) -> Reference:
    """A pair to measure by, on the grid that ``plan`` prepares its fixed image on.

    observed: labels with the errors of a segmentation where the cohort has them, as the thesis had; else exact ones.
    """
    pair = cohort.pair(pair_id)

    def labels(*choices: Path | None) -> Labels | None:
        path = next((choice for choice in choices if choice is not None), None)
        return None if path is None else io.read_labels(cohort.path(path))

    fixed, moving = (io.read_image(cohort.path(path)) for path in (pair.fixed, pair.moving))
    seen = (pair.fixed_labels_observed, pair.moving_labels_observed) if observed else (None, None)
    case = Case(fixed, moving, labels(seen[0], pair.fixed_labels), labels(seen[1], pair.moving_labels))
    prepared = prepare(case, plan)
    grid = prepared.fixed.grid
    bones, body = labels(pair.fixed_bones, pair.fixed_labels), labels(pair.fixed_body)
    return Reference(
        case=replace(prepared, moving=moving, moving_labels=case.moving_labels, moving_mask=None),
        truth=None if pair.displacement is None else io.read_transform(cohort.path(pair.displacement)),
        body=None if body is None else regrid_labels(body, grid),
        bones=None if bones is None else regrid_labels(named(bones, cohort), grid),
    )


def named(labels: Labels, cohort: Cohort) -> Labels:
    """With the cohort's names of bones."""
    return replace(labels, names={**cohort.names, **labels.names})


# -- methods ------------------------------------------------------------------------------------------------------------------
def rigid_method(cohort: Cohort, plan: Plan, cache: Path | None = None, observed: bool = True) -> Method:
    """The rigid start of a plan alone."""
    from osteomorph.carried import carried_pair

    return lambda pair_id: Found(carried_pair(cohort, pair_id, plan, cache, observed).start, 0.0)


def truth_method(cohort: Cohort) -> Method:
    """The true transform of simulated pairs: what is the best that measures by labels can say here."""

    def method(pair_id: str) -> Found:
        path = cohort.pair(pair_id).displacement
        if path is None:
            raise InputError(f"{pair_id}: The cohort has no true displacement. Give a simulated one.")
        return Found(io.read_transform(cohort.path(path)), 0.0)

    return method


def network_method(
    cohort: Cohort, weights: Path, cache: Path | None = None, observed: bool = True, device: torch.device | str = "cpu"
) -> Method:
    """A trained network after the rigid start of the plan it was trained by."""
    from osteomorph.carried import carried_pair
    from osteomorph.network import load_network, predict

    network, plan, _ = load_network(weights, device)

    def method(pair_id: str) -> Found:
        carried = carried_pair(cohort, pair_id, plan, cache, observed)
        images = Case(carried.case.fixed.to(device), carried.case.moving.to(device))
        began = time.perf_counter()
        warp = predict(network, images)
        warp = replace(warp, vectors=warp.vectors.cpu())
        seconds = time.perf_counter() - began
        return Found(carried.start.after(warp), seconds)

    return method


def plan_method(cohort: Cohort, plan: Plan, observed: bool = True, device: str = "cpu") -> Method:
    """Instance optimisation of each pair by ``register``, labels of both sides given where the cohort has them."""
    from osteomorph.carried import label_choice
    from osteomorph.registration import register

    def method(pair_id: str) -> Found:
        pair = label_choice(cohort.pair(pair_id), observed)
        labels = [None if path is None else cohort.path(path) for path in (pair.fixed_labels, pair.moving_labels)]
        result = register(
            cohort.path(pair.fixed),
            cohort.path(pair.moving),
            fixed_labels=labels[0],
            moving_labels=labels[1],
            plan=plan,
            device=device,
        )
        rest = ("read", "prepare", "rigid start")
        return Found(result.transform, sum(s for stage, s in result.seconds.items() if stage not in rest))

    return method


# -- over a cohort ------------------------------------------------------------------------------------------------------------
def part_of(cohort: Cohort, fold: int, part: Part) -> tuple[str, ...]:
    """Ids of a part of a fold. Raises InputError where the cohort has no such fold."""
    if not 0 <= fold < len(cohort.folds):
        count = len(cohort.folds)
        known = "no folds" if count == 0 else f"folds 0 to {count - 1}"
        raise InputError(f"The cohort has {known}, no fold {fold}. Give another one, or a manifest with folds.")
    ids: tuple[str, ...] = getattr(cohort.folds[fold], part)
    if not ids:
        raise InputError(f"Fold {fold} of the cohort has no {part} pairs. Give another part.")
    return ids


def evaluate_pairs(
    cohort: Cohort,
    ids: Sequence[str],
    method: Method,
    name: str,
    plan: PreparePlan,
    fold: int | None = None,
    observed: bool = True,
    progress: Progress | None = None,
) -> list[Row]:
    """Rows of every pair, each with pair, method and fold; seconds and peak memory (of this process) in the pooled rows."""
    rows: list[Row] = []
    tell = progress or (lambda stage, done, total: None)
    tell("evaluate", 0, len(ids))
    for done, pair_id in enumerate(ids, 1):
        found = method(pair_id)
        beside = reference(cohort, pair_id, plan, observed)
        about: Row = {"pair": pair_id, "method": name} | ({} if fold is None else {"fold": fold})
        for row in evaluate(found.transform, beside.case, beside.truth, beside.body, beside.bones):
            cost = {"seconds": found.seconds, "peak_mb": peak_bytes() / 2**20} if row["role"] == "pooled" else {}
            rows.append(about | row | cost)
        tell("evaluate", done, len(ids))
    return rows
