"""What studies are built from: cohorts, trained arms and their evaluation, as units."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, final

from osteomorph.cohort import Cohort, read_cohort
from osteomorph.descent import Progress
from osteomorph.errors import InputError
from osteomorph.evaluate import Row, read_rows, write_rows
from osteomorph.plan import InitialisePlan, Plan, PreparePlan
from osteomorph.recipes import recipe
from osteomorph.simulate.motion import DIFFICULTIES
from osteomorph.simulate.pair import Settings
from osteomorph.simulate.write import Subject
from osteomorph.study import Unit

SizeName = Literal["tiny", "small", "full"]

LABELS = (22, 23, 24)
"""L3, L4, L5: the bones that have labels."""

START = 24
"""L5: the thesis starts rigidly on it."""

RIGID = "Rigid"
"""The rigid start, as the tables call it."""


TRUTH = "Truth"
"""The true transform, as the tables call it."""


@final
@dataclass(frozen=True)
class Size:
    """How large a study is.

    pairs: patients, one pair each. simulate_mm: edge of a simulated voxel, were it a cube; None for the thesis' voxels.
    spacing_mm, shape: of the images a network sees, (anterior-posterior, inferior-superior, left-right) voxels.
    gamma1: of the variants; the thesis' is for bones that move by 1.5 to 4 mm. What diffusion costs the true field grows with
        the square of the motion, so that a motion three times as large takes a tenth of the weight to be as free.
    sweep: weights gamma1 of Figure 4.1, the variants' own among them. bf16, checkpointing: of the training.
    bone_mm: range of the largest displacement of a bone after the start; None for the difficulty's. Coarse voxels ask for more,
        so that it stays as many voxels: a third of a voxel is less than what interpolating a label costs, and teaches nothing.
    """

    pairs: int
    simulate_mm: float | None
    spacing_mm: float
    shape: tuple[int, int, int]
    epochs: int
    learning_rate: float
    sweep: tuple[float, ...]
    folds: int = 3
    bf16: bool = False
    checkpointing: bool = False
    bone_mm: tuple[float, float] | None = None
    gamma1: float = 2.0


SIZES: dict[SizeName, Size] = {
    "tiny": Size(5, 6.0, 6.0, (24, 24, 16), 1, 2e-3, (0.5, 2.0), folds=1),
    "small": Size(49, 2.0, 2.0, (48, 64, 32), 40, 2e-3, (0.01, 0.2, 1.0), bf16=True, bone_mm=(5.0, 12.0), gamma1=0.2),
    "full": Size(49, None, 1.0, (320, 320, 96), 1000, 4e-4, (0.01, 0.1, 0.5, 2.0, 8.0), bf16=True, checkpointing=True),
}
"""tiny: for tests. small: hours on two cores; fewer steps than the thesis, so a larger learning rate. full: the thesis'."""


@final
@dataclass(frozen=True)
class Context:
    """Where and how a study runs; none of it changes what comes out but the seed."""

    folder: Path
    size: Size
    seed: int = 1
    device: str = "cpu"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def cohort(self, name: str = "cohort") -> Cohort:
        """That a unit has made."""
        return read_cohort(self.folder / name)

    def rows(self) -> list[Row]:
        """Of every evaluation that is done."""
        return [row for file in sorted((self.folder / "rows").glob("*.csv")) for row in read_rows(file)]


@final
@dataclass(frozen=True)
class Arm:
    """A plan that is trained in some folds of a cohort."""

    name: str
    plan: Plan
    folds: tuple[int, ...]
    cohort: str = "cohort"
    about: Mapping[str, Any] = field(default_factory=dict)
    """Columns that its rows get."""

    def weights(self, context: Context, fold: int) -> Path:
        return context.folder / "models" / f"{_slug(self.name)}-fold{fold}" / "weights.safetensors"


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def study_plan(name: str, size: Size) -> Plan:
    """A recipe of the thesis at a study's size; the start is on L5's labels."""
    plan = with_weights(recipe(name), diffusion=size.gamma1)
    shape = {"spacing_mm": size.spacing_mm, "shape": size.shape}
    train = {
        "epochs": size.epochs,
        "learning_rate": size.learning_rate,
        "bf16": size.bf16,
        "checkpointing": size.checkpointing,
    }
    return plan.model_copy(
        update={
            "prepare": plan.prepare.model_copy(update=shape),
            "initialise": InitialisePlan(method="labels", labels=(START,)),
            "train": plan.train.model_copy(update=train),
        }
    )


def lumbar_patients(seed: int) -> Callable[[int], Subject]:
    """i -> a drawn patient of whom L3, L4 and L5 are whole in the view, as the thesis chose its pairs."""
    from osteomorph.simulate.subjects import procedural

    def subject(number: int) -> Subject:
        for attempt in count():
            who = procedural("lumbar", seed + 100_003 * attempt)(number)
            if who.anatomy.views["lumbar"].labelled == LABELS:
                return who
        raise AssertionError

    return subject


# -- units --------------------------------------------------------------------------------------------------------------------
def cohort_unit(context: Context, name: str = "cohort", difficulty: str = "thesis") -> Unit:
    """Simulates a cohort into the folder ``name``."""
    size = context.size
    motion = DIFFICULTIES[difficulty]
    if size.bone_mm is not None and difficulty == "thesis":
        motion = replace(motion, bone_mm=size.bone_mm)
    settings = Settings(view="lumbar", motion=motion)
    if size.simulate_mm is not None:
        settings = settings.coarser(size.simulate_mm)

    def run(progress: Progress) -> None:
        from osteomorph.simulate.write import simulate_cohort

        simulate_cohort(
            context.folder / name, size.pairs, context.seed, lumbar_patients(context.seed), settings, progress=progress
        )

    told = {"pairs": size.pairs, "seed": context.seed, "settings": asdict(settings)}
    return Unit(f"simulate/{name}", run, told, cost=10.0 * size.pairs)


def start_unit(context: Context, plan: Plan, cohort: str = "cohort", name: str | None = None) -> Unit:
    """Prepares every pair of a cohort and starts it rigidly; what comes out is kept in the cache."""

    def run(progress: Progress) -> None:
        from osteomorph.carried import carried_pair

        pairs = context.cohort(cohort).pairs
        progress("start", 0, len(pairs))
        for done, pair in enumerate(pairs, 1):
            carried_pair(context.cohort(cohort), pair.id, plan, context.cache, True)
            progress("start", done, len(pairs))

    told = {"prepare": plan.prepare.model_dump(), "initialise": plan.initialise.model_dump()}
    return Unit(f"start/{name or cohort}", run, told, (f"simulate/{cohort}",), 1.0 * context.size.pairs)


def train_units(context: Context, arm: Arm, needs: Sequence[str], step: str = "train") -> list[Unit]:
    """One per fold of an arm."""

    def unit(fold: int) -> Unit:
        def run(progress: Progress) -> None:
            from osteomorph.train import train

            train(
                context.cohort(arm.cohort),
                fold,
                arm.plan,
                arm.weights(context, fold).parent,
                seed=context.seed,
                cache=context.cache,
                observed=True,
                device=context.device,
                progress=progress,
            )

        told = {"plan": arm.plan.model_dump(mode="json"), "fold": fold, "seed": context.seed}
        megavoxels = 1e-6 * arm.plan.prepare.shape[0] * arm.plan.prepare.shape[1] * arm.plan.prepare.shape[2]  # type: ignore[index]
        cost = 2.0 * arm.plan.train.epochs * 0.8 * context.size.pairs * megavoxels
        return Unit(_unit_name(step, arm, fold), run, told, tuple(needs), cost)

    return [unit(fold) for fold in arm.folds]


def _unit_name(step: str, arm: Arm, fold: int) -> str:
    return f"{step}/{_slug(arm.name)}/fold{fold}"


def evaluate_units(context: Context, arm: Arm, plan: PreparePlan, step: str = "train") -> list[Unit]:
    """One per fold of an arm: its rows over the test part, on the grid that ``plan`` prepares. step: where it was trained."""

    def unit(fold: int) -> Unit:
        def run(progress: Progress) -> None:
            from osteomorph.evaluate_cohort import evaluate_pairs, network_method, part_of

            cohort = context.cohort(arm.cohort)
            method = network_method(cohort, arm.weights(context, fold), context.cache, True, context.device)
            ids = part_of(cohort, fold, "test")
            rows = evaluate_pairs(cohort, ids, method, arm.name, plan, fold, True, progress)
            _keep(context, f"{_slug(arm.name)}-fold{fold}", rows, arm)

        told = {"measured_on": plan.model_dump(), "about": dict(arm.about)}
        return Unit(_unit_name("evaluate", arm, fold), run, told, (_unit_name(step, arm, fold),), 3.0 * context.size.pairs / 5)

    return [unit(fold) for fold in arm.folds]


def rigid_unit(context: Context, plan: Plan, cohort: str = "cohort", name: str = RIGID, **about: Any) -> Unit:
    """Rows of the rigid start over the test part of a cohort."""

    def run(progress: Progress) -> None:
        from osteomorph.evaluate_cohort import evaluate_pairs, part_of, rigid_method

        pairs = context.cohort(cohort)
        method, ids = rigid_method(pairs, plan, context.cache), part_of(pairs, 0, "test")
        rows = evaluate_pairs(pairs, ids, method, name, plan.prepare, None, True, progress)
        _keep(context, _slug(name), rows, Arm(name, plan, (), cohort, about))

    told = {"prepare": plan.prepare.model_dump(), "initialise": plan.initialise.model_dump(), "about": about}
    return Unit(f"evaluate/{_slug(name)}", run, told, (f"start/{cohort}",), 3.0 * context.size.pairs / 5)


def truth_unit(context: Context, plan: Plan) -> Unit:
    """Rows of the true transform over the test part, measured like any other."""

    def run(progress: Progress) -> None:
        from osteomorph.evaluate_cohort import evaluate_pairs, part_of, truth_method

        pairs = context.cohort()
        rows = evaluate_pairs(pairs, part_of(pairs, 0, "test"), truth_method(pairs), TRUTH, plan.prepare, None, True, progress)
        _keep(context, _slug(TRUTH), rows, Arm(TRUTH, plan, ()))

    return Unit(f"evaluate/{_slug(TRUTH)}", run, {"prepare": plan.prepare.model_dump()}, ("simulate/cohort",), 10.0)


def _keep(context: Context, name: str, rows: Sequence[Row], arm: Arm) -> None:
    folder = context.folder / "rows"
    folder.mkdir(exist_ok=True)
    write_rows(folder / f"{name}.csv", [{**row, "cohort": arm.cohort, **arm.about} for row in rows])


def with_weights(plan: Plan, **weights: float) -> Plan:
    """A plan with other weights of its terms."""
    refine = plan.refine.model_copy(update={"weights": plan.refine.weights.model_copy(update=weights)})
    return plan.model_copy(update={"refine": refine})


def coarser(plan: Plan, factor: int) -> Plan:
    """A plan for images of ``factor`` times the spacing and the same field of view.

    Raises InputError where its shape is no multiple of ``factor``.
    """
    shape = plan.prepare.shape
    if shape is None or any(n % factor for n in shape):
        raise InputError(f"A shape of {shape} voxels is not a multiple of {factor}. Give another plan.")
    a, b, c = (n // factor for n in shape)
    wide = {"spacing_mm": plan.prepare.spacing_mm * factor, "shape": (a, b, c)}
    return plan.model_copy(update={"prepare": plan.prepare.model_copy(update=wide)})
