"""The study of the thesis: four variants in three folds, a sweep of gamma1, tables and figures."""

from collections.abc import Sequence

from osteomorph.compare import (
    MORE_MEASURES,
    THESIS_MEASURES,
    UNLABELLED_MEASURES,
    latex,
    markdown,
    statistics_markdown,
    statistics_rows,
    table,
)
from osteomorph.descent import Progress
from osteomorph.evaluate import Row, write_rows
from osteomorph.study import Unit
from osteomorph.study_arms import (
    RIGID,
    START,
    TRUTH,
    Arm,
    Context,
    cohort_unit,
    evaluate_units,
    rigid_unit,
    start_unit,
    study_plan,
    train_units,
    truth_unit,
    with_weights,
)
from osteomorph.study_effects import thesis_effects
from osteomorph.study_report import Section, write_report

VARIANTS = {"US": "thesis-us", "US-RP": "thesis-us-rp", "WS": "thesis-ws", "WS-RP": "thesis-ws-rp"}
"""As the thesis calls them -> recipe."""

METHODS = (RIGID, *VARIANTS)

THESIS_TABLE: dict[tuple[str, str], tuple[tuple[float, float], ...]] = {
    ("dice", "L5"): ((0.952, 0.004), (0.940, 0.010), (0.942, 0.012), (0.952, 0.008), (0.951, 0.006)),
    ("dice", "L4"): ((0.932, 0.021), (0.933, 0.021), (0.935, 0.023), (0.946, 0.021), (0.943, 0.018)),
    ("dice", "L3"): ((0.848, 0.109), (0.905, 0.065), (0.900, 0.059), (0.918, 0.052), (0.917, 0.058)),
    ("dice", "pooled"): ((0.908, 0.040), (0.924, 0.037), (0.923, 0.030), (0.939, 0.024), (0.937, 0.023)),
    ("msd_mm", "L5"): ((0.245, 0.023), (0.331, 0.075), (0.328, 0.110), (0.247, 0.063), (0.247, 0.032)),
    ("msd_mm", "L4"): ((0.407, 0.190), (0.394, 0.165), (0.417, 0.161), (0.313, 0.129), (0.355, 0.121)),
    ("msd_mm", "L3"): ((1.037, 0.778), (0.616, 0.467), (0.667, 0.452), (0.552, 0.339), (0.577, 0.345)),
    ("msd_mm", "pooled"): ((0.568, 0.282), (0.451, 0.229), (0.503, 0.230), (0.364, 0.158), (0.372, 0.185)),
    ("hd99_mm", "L5"): ((1.414, 0.414), (1.732, 0.586), (1.732, 0.586), (1.414, 0.414), (1.414, 0.414)),
    ("hd99_mm", "L4"): ((2.000, 0.822), (2.000, 0.663), (2.000, 1.035), (1.414, 0.586), (1.414, 0.763)),
    ("hd99_mm", "L3"): ((3.606, 2.007), (3.000, 1.067), (3.000, 1.825), (2.828, 2.000), (2.828, 1.000)),
    ("hd99_mm", "pooled"): ((3.000, 2.000), (2.236, 0.914), (2.449, 1.535), (2.237, 1.293), (2.000, 0.597)),
    ("det_mean", "L5"): ((1.000, 0.000), (1.019, 0.037), (1.000, 0.011), (1.020, 0.013), (1.000, 0.001)),
    ("det_mean", "L4"): ((1.000, 0.000), (1.013, 0.032), (0.999, 0.014), (1.023, 0.025), (0.998, 0.006)),
    ("det_mean", "L3"): ((1.000, 0.000), (1.017, 0.035), (1.002, 0.016), (1.017, 0.023), (0.996, 0.009)),
    ("det_mean", "pooled"): ((1.000, 0.000), (1.016, 0.030), (1.001, 0.011), (1.017, 0.022), (0.998, 0.003)),
    ("det_sd", "L5"): ((0.000, 0.000), (0.095, 0.034), (0.026, 0.057), (0.068, 0.038), (0.012, 0.007)),
    ("det_sd", "L4"): ((0.000, 0.000), (0.095, 0.037), (0.019, 0.020), (0.152, 0.043), (0.018, 0.004)),
    ("det_sd", "L3"): ((0.000, 0.000), (0.093, 0.031), (0.023, 0.009), (0.189, 0.076), (0.022, 0.007)),
    ("det_sd", "pooled"): ((0.000, 0.000), (0.095, 0.029), (0.025, 0.034), (0.151, 0.054), (0.020, 0.006)),
}
"""Median and interquartile range per method (in the order of `METHODS`): Table 4.1 of H. van Ulsen, "Multi-modal deep learning
based 3D image registration for osseous anatomies", 2022; nine test pairs of private data."""


def thesis_units(context: Context) -> list[Unit]:
    """Everything, in order."""
    size = context.size
    arms = [Arm(name, study_plan(recipe, size), tuple(range(size.folds))) for name, recipe in VARIANTS.items()]
    swept = sweep_arms(context)
    plan = arms[0].plan
    units = [cohort_unit(context), start_unit(context, plan)]
    for fold in zip(*(train_units(context, arm, ["start/cohort"]) for arm in arms), strict=True):
        units += fold  # a study that was stopped has all variants of its first folds
    for arm in swept:
        units += train_units(context, arm, ["start/cohort"], "sweep")
    evaluated = [rigid_unit(context, plan), truth_unit(context, plan)]
    for arm in arms:
        evaluated += evaluate_units(context, arm, plan.prepare)
    for arm in swept:
        evaluated += evaluate_units(context, arm, plan.prepare, "sweep")
    needs = tuple(unit.name for unit in evaluated)
    last = [
        Unit("tables/thesis", lambda progress: write_tables(context), {}, needs, 2.0),
        Unit("figures/thesis", lambda progress: _figures(context, arms, progress), {}, needs, 10.0),
    ]
    report = Unit("report/thesis", lambda progress: write_thesis_report(context), {}, tuple(unit.name for unit in last), 1.0)
    return [*units, *evaluated, *last, report]


def sweep_arms(context: Context) -> list[Arm]:
    """The weights of Figure 4.1 but the variants' own."""
    plan = study_plan(VARIANTS["US"], context.size)
    return [
        Arm(f"US gamma1 {weight:g}", with_weights(plan, diffusion=weight), (0,), about={"gamma1": weight})
        for weight in context.size.sweep
        if weight != context.size.gamma1
    ]


# -- tables -------------------------------------------------------------------------------------------------------------------
def labelled_bones(rows: Sequence[Row], role: str = "labelled") -> list[str]:
    """Names from the lowest bone (the highest id) upwards, as the thesis lists them."""
    found = {row["label"]: row["bone"] for row in rows if row["role"] == role}
    return [found[label] for label in sorted(found, reverse=True)]


def write_tables(context: Context) -> None:
    """``table.md``, ``.tex``, ``statistics.csv``, ``rows.csv`` in the study's folder."""
    rows = context.rows()
    bones = labelled_bones(rows)
    cells = table(rows, METHODS, [*bones, "pooled"], THESIS_MEASURES, seed=context.seed)
    pooled, folder = "+".join(bones), context.folder
    caption = "Median $\\pm$ interquartile range. $\\dagger$: differs from Rigid, $*$: from US (Wilcoxon, $p < 0.05$)."
    (folder / "table.md").write_text(markdown(cells, pooled), encoding="utf-8")
    (folder / "table.tex").write_text(latex(cells, pooled, caption), encoding="utf-8")
    more = table(rows, METHODS, ["pooled"], MORE_MEASURES, seed=context.seed)
    write_rows(folder / "statistics.csv", statistics_rows([*cells, *more]))
    write_rows(folder / "rows.csv", rows)


def beside_thesis(rows: Sequence[Row]) -> str:
    """Markdown: medians here and in the thesis, for bones that both have."""
    bones = labelled_bones(rows)
    cells = table(rows, METHODS, [*bones, "pooled"], THESIS_MEASURES, ())
    lines = ["| | | " + " | ".join(f"{method} here | thesis" for method in METHODS) + " |", "|---|---|" + "---|" * 10]
    for measure in THESIS_MEASURES:
        for bone in [*bones, "pooled"]:
            theirs = THESIS_TABLE.get((measure.key, bone))
            if theirs is None:
                continue
            ours = {c.method: f"{c.median:.3f}" for c in cells if (c.measure, c.bone) == (measure, bone)}
            words = [f"{ours.get(method, '')} | {theirs[place][0]:.3f}" for place, method in enumerate(METHODS)]
            lines.append(f"| {measure.title} | {'+'.join(bones) if bone == 'pooled' else bone} | " + " | ".join(words) + " |")
    return "\n".join(lines) + "\n"


def sweep_values(rows: Sequence[Row], gamma1: float) -> dict[float, dict[str, float]]:
    """gamma1 -> pair -> folding in percent over the whole field, of models of fold 0. gamma1: of the variants."""
    found: dict[float, dict[str, float]] = {}
    for row in rows:
        weight = row.get("gamma1", gamma1 if row["method"] == "US" else None)
        if row["role"] == "pooled" and weight is not None and row.get("fold") == 0:
            found.setdefault(float(weight), {})[row["pair"]] = row["folding_percent"]
    return found


# -- figures and report -------------------------------------------------------------------------------------------------------
def _figures(context: Context, arms: Sequence[Arm], progress: Progress) -> None:
    from osteomorph.study_figures import thesis_figures

    rows = context.rows()
    thesis_figures(context, arms, rows, labelled_bones(rows), sweep_values(rows, context.size.gamma1), METHODS, progress)


def write_thesis_report(context: Context) -> None:
    """``report.md``."""
    rows = context.rows()
    bones = labelled_bones(rows)
    start = next((row["bone"] for row in rows if row["label"] == START and row["role"] == "labelled"), bones[0])
    effects = thesis_effects(rows, sweep_values(rows, context.size.gamma1), start)
    cells = table(rows, METHODS, [*bones, "pooled"], THESIS_MEASURES, seed=context.seed)
    more = table(rows, METHODS, ["pooled"], MORE_MEASURES, seed=context.seed)
    unlabelled = table(rows, METHODS, labelled_bones(rows, "unlabelled"), UNLABELLED_MEASURES, seed=context.seed)
    pooled = "+".join(bones)
    ceiling = table(rows, (RIGID, TRUTH), [*bones, "pooled"], THESIS_MEASURES, ())
    tested = [cell for cell in [*cells, *more] if cell.bone == "pooled"]
    lines = "".join(f"| {e.claim} | **{e.verdict}** | {e.evidence} |\n" for e in effects)
    sections = [
        Section("Effects of the thesis", "| effect | here | numbers |\n|---|---|---|\n" + lines),
        Section("Table 4.1", _READING + markdown(cells, pooled)),
        Section("Beside the thesis (medians; its data are private, so figures are not expected to agree)", beside_thesis(rows)),
        Section("The true transform, measured alike", markdown(ceiling, pooled)),
        Section("What the thesis did not measure", markdown(more, pooled)),
        Section("Bones without a label in training", markdown(unlabelled)),
        Section(f"Tests of {pooled} (all in statistics.csv)", statistics_markdown(tested, pooled)),
    ]
    write_report(context, "thesis", sections)


_READING = (
    "Median ± interquartile range over the test pairs; a pair's value is the mean over the folds' models. †: differs from "
    "Rigid, \\*: from US (Wilcoxon signed-rank, two-sided, p < .05, uncorrected as in the thesis; corrected ones below, Holm's "
    "family being all tests of one measure). The last line of each measure pools the bones: their voxels, and their surface "
    "distances, in one list.\n\n"
)
