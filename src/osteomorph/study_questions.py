"""Questions the thesis left open, each from the same units: resolution, width, misalignment, unlabelled bones, mask frame."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from osteomorph.compare import MORE_MEASURES, THESIS_MEASURES, UNLABELLED_MEASURES, markdown, statistics_markdown, table
from osteomorph.evaluate import write_rows
from osteomorph.plan import Plan, PreparePlan
from osteomorph.study import Unit
from osteomorph.study_arms import (
    RIGID,
    Arm,
    Context,
    coarser,
    cohort_unit,
    evaluate_units,
    rigid_unit,
    start_unit,
    study_plan,
    train_units,
)
from osteomorph.study_report import Section, write_report
from osteomorph.study_thesis import VARIANTS, labelled_bones


@final
@dataclass(frozen=True)
class Question:
    """words: as the report asks it. arms: what is compared, the reference first. cohorts: name -> difficulty."""

    words: str
    arms: tuple[Arm, ...]
    cohorts: tuple[tuple[str, str], ...] = (("cohort", "thesis"),)


ONE_FOLD = (0,)
"""Questions are asked of one fold: its test pairs are those of every fold."""


def resolution(context: Context) -> Question:
    """Downsampled against full resolution, both measured at full resolution."""
    full = study_plan(VARIANTS["WS"], context.size)
    arms = (Arm("WS", full, ONE_FOLD), Arm("WS, half resolution", coarser(full, 2), ONE_FOLD))
    return Question("Does a network on images of half the resolution do as well, measured at the full one?", arms)


def width(context: Context) -> Question:
    """2 and 4 times the channels."""
    base = study_plan(VARIANTS["WS-RP"], context.size)

    def arm(times: int) -> Arm:
        network = base.network.model_copy(update={"channels": base.network.channels * times})
        return Arm(f"WS-RP, {times}x channels", base.model_copy(update={"network": network}), ONE_FOLD)

    return Question("Does a wider network do better?", (arm(1), arm(2), arm(4)))


def misalignment(context: Context) -> Question:
    """Bones up to 4 mm off after the start, and 8 to 30 mm: a network trained and tested on each."""
    plan = study_plan(VARIANTS["WS-RP"], context.size)
    arms = (Arm("WS-RP", plan, ONE_FOLD), Arm("WS-RP, large misalignment", plan, ONE_FOLD, "hard"))
    words = "How does a network do where bones are 8 to 30 mm off after the start, rather than at most 4?"
    return Question(words, arms, (("cohort", "thesis"), ("hard", "hard")))


def unlabelled(context: Context) -> Question:
    """L2, sacrum and the rest: the penalty acts on labelled bones alone."""
    arms = tuple(Arm(name, study_plan(recipe, context.size), ONE_FOLD) for name, recipe in VARIANTS.items())
    return Question("Do bones stay rigid that had no label in training?", arms)


def frame(context: Context) -> Question:
    """The penalty's mask: moving labels as stored, as the thesis writes it, or pulled back by the current field."""
    plan = study_plan(VARIANTS["WS-RP"], context.size)
    warped = plan.model_copy(update={"refine": plan.refine.model_copy(update={"rigid_frame": "warped"})})
    arms = (Arm("WS-RP", plan, ONE_FOLD), Arm("WS-RP, warped mask", warped, ONE_FOLD))
    return Question("Does it matter in which frame the rigidity penalty takes its mask?", arms)


QUESTIONS: dict[str, Callable[[Context], Question]] = {
    function.__name__: function for function in (resolution, width, misalignment, unlabelled, frame)
}


def question_units(context: Context, study: str) -> list[Unit]:
    """Everything, in order."""
    question = QUESTIONS[study](context)
    measured: PreparePlan = question.arms[0].plan.prepare
    units: list[Unit] = []
    evaluated: list[Unit] = []
    for cohort, difficulty in question.cohorts:
        arms = [arm for arm in question.arms if arm.cohort == cohort]
        units.append(cohort_unit(context, cohort, difficulty))
        starts = _starts(context, arms, cohort)
        units += starts
        name = RIGID if cohort == "cohort" else f"{RIGID}, {cohort}"
        evaluated.append(rigid_unit(context, arms[0].plan, cohort, name))
        for arm in arms:
            units += train_units(context, arm, [start.name for start in starts])
            evaluated += evaluate_units(context, arm, measured)
    needs = tuple(unit.name for unit in evaluated)
    return [*units, *evaluated, Unit(f"report/{study}", lambda progress: _report(context, study, question), {}, needs)]


def _starts(context: Context, arms: list[Arm], cohort: str) -> list[Unit]:
    """One per way in which the arms prepare their pairs; the first bears the cohort's name."""
    plans: list[Plan] = []
    for arm in arms:
        if all(arm.plan.prepare != plan.prepare for plan in plans):
            plans.append(arm.plan)
    return [start_unit(context, plan, cohort, None if n == 0 else f"{cohort}-{n}") for n, plan in enumerate(plans)]


def _report(context: Context, study: str, question: Question) -> None:
    rows = context.rows()
    write_rows(context.folder / "rows.csv", rows)
    bones, others = labelled_bones(rows), labelled_bones(rows, "unlabelled")
    methods = list(dict.fromkeys([RIGID, *(row["method"] for row in rows if row["method"].startswith(RIGID))]))
    methods += [arm.name for arm in question.arms]
    references = (RIGID, question.arms[0].name)
    cells = table(rows, methods, [*bones, "pooled"], THESIS_MEASURES, references, context.seed)
    more = table(rows, methods, ["pooled"], MORE_MEASURES, references, context.seed)
    without = table(rows, methods, others, UNLABELLED_MEASURES, references, context.seed)
    pooled = "+".join(bones)
    marks = f"{question.words} Fold 0. †: differs from {references[0]}, \\*: from {references[1]} (Wilcoxon, p < .05).\n\n"
    sections = [
        Section("Bones with a label", marks + markdown(cells, pooled)),
        Section("Whole volume", markdown(more, pooled)),
        Section("Bones without a label in training", markdown(without)),
        Section("Tests", statistics_markdown([*cells, *more, *without], pooled)),
    ]
    write_report(context, study, sections)
