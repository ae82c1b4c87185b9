"""Figures 3.1 to 4.5 from a study's cohort, models and rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from osteomorph import io
from osteomorph.compare import by_pair
from osteomorph.descent import Progress
from osteomorph.evaluate import Row
from osteomorph.study_arms import RIGID, Arm, Context

EXAMPLES = ("4.3", "4.4", "4.5")
"""Figures that show a pair: the lowest, the middle and the highest Dice after the rigid start."""


def thesis_figures(
    context: Context,
    arms: Sequence[Arm],
    rows: Sequence[Row],
    bones: Sequence[str],
    sweep: Mapping[float, Mapping[str, float]],
    methods: Sequence[str],
    progress: Progress,
) -> None:
    """Writes ``figures/figure-N.png``. Examples use the models of the first fold."""
    from osteomorph import thesis_figures as draw
    from osteomorph.evaluate_cohort import named

    folder = context.folder / "figures"
    folder.mkdir(exist_ok=True)
    chosen = example_pairs(rows)
    total = 5 + len(chosen)
    cohort = context.cohort()
    first = cohort.pair(chosen[0])
    sides = []
    for image, labels in ((first.moving, first.moving_labels_observed), (first.fixed, first.fixed_labels_observed)):
        assert labels is not None  # simulated pairs have them
        sides.append((io.read_image(cohort.path(image)), named(io.read_labels(cohort.path(labels)), cohort)))
    draw.slice_pair(folder / "figure-3.1.png", sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    progress("figures", 1, total)
    _intensities(context, arms[0], folder / "figure-3.3.png")
    progress("figures", 2, total)
    draw.vector_fields(folder / "figure-3.5.png", context.seed)
    draw.folding(folder / "figure-4.1.png", {weight: list(pairs.values()) for weight, pairs in sweep.items()})
    progress("figures", 4, total)
    draw.violins(folder / "figure-4.2.png", rows, methods, [*bones, "pooled"], "+".join(bones))
    progress("figures", 5, total)
    for done, (number, pair_id) in enumerate(zip(EXAMPLES, chosen, strict=False), 6):
        _example(context, arms, pair_id, folder / f"figure-{number}.png")
        progress("figures", done, total)


def example_pairs(rows: Sequence[Row]) -> list[str]:
    """At most three pairs, from the worst to the best rigid start."""
    values = by_pair(rows, "dice", "pooled").get(RIGID, {})
    order = sorted(values, key=lambda pair: (values[pair], pair))
    return list(dict.fromkeys((order[0], order[len(order) // 2], order[-1])))


def _intensities(context: Context, arm: Arm, path: Path) -> None:
    from osteomorph.carried import carried_pair
    from osteomorph.thesis_figures import intensities, some_values

    groups: dict[str, list] = {"CT": [], "MR": []}
    cohort = context.cohort(arm.cohort)
    for number, pair in enumerate(cohort.pairs):
        case = carried_pair(cohort, pair.id, arm.plan, context.cache, True).case
        groups["CT"].append(some_values(case.moving, seed=number))
        groups["MR"].append(some_values(case.fixed, seed=number))
    intensities(path, groups)


def _example(context: Context, arms: Sequence[Arm], pair_id: str, path: Path) -> None:
    from osteomorph.evaluate_cohort import network_method, reference, rigid_method
    from osteomorph.thesis_overlays import column, methods_side_by_side

    cohort = context.cohort(arms[0].cohort)
    case = reference(cohort, pair_id, arms[0].plan.prepare).case
    start = rigid_method(cohort, arms[0].plan, context.cache)(pair_id).transform
    columns = []
    for arm in arms:
        method = network_method(cohort, arm.weights(context, arm.folds[0]), context.cache, True, context.device)
        columns.append(column(arm.name, method(pair_id).transform, case))
    methods_side_by_side(path, case, start, columns, title=f"{pair_id}, models of fold {arms[0].folds[0]}")
