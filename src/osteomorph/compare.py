"""Rows to tables: median +- IQR per method, paired tests against references, as in Table 4.1 of the thesis.

A value belongs to a pair: it is the mean over the folds' models on that pair. Medians and interquartile ranges run over pairs
(the thesis: "an average over folds on the test set", read as models averaged first, then nine pairs described).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from scipy import stats

SIGNIFICANT = 0.05
"""p below which a difference is marked."""

RESAMPLES = 10_000
"""Of the bootstrap."""

MARKS = ("†", "*")
"""Of the first and of the second reference."""

Values = Mapping[str, float]
"""Pair -> value."""


@final
@dataclass(frozen=True)
class Measure:
    """A column of the rows as a table shows it."""

    key: str
    title: str
    digits: int = 3
    bone: bool = True
    """Whether it is measured in bone; else it stands in the pooled rows for the whole volume."""
    tested: bool = True


THESIS_MEASURES = (
    Measure("dice", "DSC"),
    Measure("msd_mm", "MSD (mm)"),
    Measure("hd99_mm", "HD99 (mm)"),
    Measure("det_mean", "mean JD"),
    Measure("det_sd", "SD JD"),
)
"""Those of Table 4.1; its text calls the last two the mean and the standard deviation of the Jacobian determinant."""

MORE_MEASURES = (
    Measure("det_sd_inner", "SD JD, inner"),
    Measure("rigidity_max_mm", "not rigid (mm)"),
    Measure("tre_mean_mm", "TRE bone (mm)"),
    Measure("tre_soft_0_10_mm", "TRE soft, 0-10 mm from bone (mm)", bone=False),
    Measure("tre_soft_10_20_mm", "TRE soft, 10-20 mm (mm)", bone=False),
    Measure("tre_soft_20_30_mm", "TRE soft, 20-30 mm (mm)", bone=False),
    Measure("tre_soft_30_up_mm", "TRE soft, beyond (mm)", bone=False),
    Measure("folding_percent", "folding (%)", bone=False),
    Measure("folding_body_percent", "folding in body (%)", bone=False),
    Measure("seconds", "seconds", 2, bone=False, tested=False),
    Measure("peak_mb", "peak (MB)", 0, bone=False, tested=False),
)
"""What the thesis lacked."""

UNLABELLED_MEASURES = tuple(
    m for m in (*THESIS_MEASURES, *MORE_MEASURES) if m.key.startswith(("det_sd", "rigidity", "tre_mean"))
)
"""Those that a bone without labels has."""


@final
@dataclass(frozen=True)
class Paired:
    """A method against a reference, pair by pair.

    difference: median of method - reference, with its 95 % interval ``low`` to ``high`` (bootstrap over pairs, percentiles).
    p: Wilcoxon signed-rank, two-sided; None where it cannot be computed. holm: the same, corrected for the family it was
        tested in. effect: matched-pairs rank-biserial correlation, from -1 (always below the reference) to 1 (always above).
    note: why there is no p.
    """

    reference: str
    pairs: int
    difference: float
    low: float
    high: float
    p: float | None
    effect: float
    note: str = ""
    holm: float | None = None


@final
@dataclass(frozen=True)
class Cell:
    """One method, bone and measure: median and interquartile range over pairs, and its tests."""

    measure: Measure
    bone: str
    method: str
    pairs: int
    median: float
    iqr: float
    tests: tuple[Paired, ...] = ()
    marks: str = ""
    """Marks of the references from which it differs with p < .05, uncorrected as in the thesis."""


# -- values and tests ---------------------------------------------------------------------------------------------------------
def by_pair(rows: Iterable[Mapping[str, Any]], key: str, bone: str) -> dict[str, dict[str, float]]:
    """Method -> pair -> mean over folds of a column, for a bone's rows (``"pooled"`` for the pooled ones)."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if key in row and bone in ((row["role"], row["bone"]) if bone == "pooled" else (row["bone"],)):
            found.setdefault(row["method"], {}).setdefault(row["pair"], []).append(float(row[key]))
    return {method: {pair: float(np.mean(v)) for pair, v in pairs.items()} for method, pairs in found.items()}


def interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the median: percentiles over bootstrap resamples. NaN for no value; of no width for one."""
    data = np.asarray(values, dtype=float)
    if not data.size:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(0, data.size, (RESAMPLES, data.size))
    low, high = np.percentile(np.median(data[drawn], axis=1), (2.5, 97.5))
    return float(low), float(high)


def paired(values: Values, reference: Values, name: str, seed: int = 0) -> Paired:
    """A method's values against a reference's, over the pairs that both have."""
    shared = sorted(set(values) & set(reference))
    differences = np.array([values[pair] - reference[pair] for pair in shared])
    if not shared:
        nan = float("nan")
        return Paired(name, 0, nan, nan, nan, None, nan, "no pair in common")
    low, high = interval(differences, seed)
    p, note = None, ""
    moved = differences[differences != 0]
    if not moved.size:
        p, note = 1.0, "no difference in any pair"
    elif moved.size < 2:
        note = "fewer than two pairs that differ"
    else:
        p = float(stats.wilcoxon(moved).pvalue)
    return Paired(name, len(shared), float(np.median(differences)), low, high, p, rank_biserial(differences), note)


def rank_biserial(differences: np.ndarray) -> float:
    """(W+ - W-) / (W+ + W-) of the signed ranks; 0 where nothing differs (Kerby, 2014)."""
    moved = differences[differences != 0]
    if not moved.size:
        return 0.0
    ranks = stats.rankdata(np.abs(moved))
    return float((ranks * np.sign(moved)).sum() / ranks.sum())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of one family; None stays None and does not count."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    out: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        out[i] = largest
    return out


def table(
    rows: Sequence[Mapping[str, Any]],
    methods: Sequence[str],
    bones: Sequence[str],
    measures: Sequence[Measure] = THESIS_MEASURES,
    references: Sequence[str] = ("Rigid", "US"),
    seed: int = 0,
) -> list[Cell]:
    """Every measure x bone x method, tested against each reference that comes before it.

    Holm's family: all tests of one measure. bones: names, or ``"pooled"``. Cells without a value are left out.
    """
    out: list[Cell] = []
    for measure in measures:
        cells: list[Cell] = []
        for bone in bones:
            values = by_pair(rows, measure.key, bone)
            for method in methods:
                if method not in values:
                    continue
                found = np.array(list(values[method].values()))
                before = methods[: methods.index(method)]
                against = [r for r in references if measure.tested and r in values and r in before]
                tests = tuple(paired(values[method], values[r], r, seed) for r in against)
                low, high = np.percentile(found, (25, 75))
                cells.append(Cell(measure, bone, method, found.size, float(np.median(found)), float(high - low), tests))
        out += _corrected(cells, references)
    return out


def _corrected(cells: list[Cell], references: Sequence[str]) -> list[Cell]:
    corrected = iter(holm([test.p for cell in cells for test in cell.tests]))
    out = []
    for cell in cells:
        tests = tuple(replace(test, holm=next(corrected)) for test in cell.tests)
        marked = {test.reference for test in tests if test.p is not None and test.p < SIGNIFICANT}
        marks = " ".join(mark for mark, name in zip(MARKS, references, strict=False) if name in marked)
        out.append(replace(cell, tests=tests, marks=marks))
    return out


# -- writers ------------------------------------------------------------------------------------------------------------------
Format = Literal["markdown", "latex"]


def _grid(cells: Sequence[Cell], pooled: str, shown: Callable[[Cell], str]) -> tuple[list[str], list[list[str]]]:
    methods = list(dict.fromkeys(cell.method for cell in cells))
    lines = []
    for measure, bone in dict.fromkeys((cell.measure, cell.bone) for cell in cells):
        found = {cell.method: shown(cell) for cell in cells if (cell.measure, cell.bone) == (measure, bone)}
        lines.append([measure.title, _where(measure, bone, pooled), *(found.get(m, "") for m in methods)])
    return methods, lines


def _where(measure: Measure, bone: str, pooled: str) -> str:
    if not measure.bone:
        return ""
    return pooled if bone == "pooled" else bone


def figure(value: float, digits: int) -> str:
    """A signed number with that many decimals, or one figure where these would all be 0."""
    short = f"{value:+.{digits}f}"
    return f"{value:+.0e}" if value != 0 and float(short) == 0 else short


def markdown(cells: Sequence[Cell], pooled: str = "all") -> str:
    """The table: median ± interquartile range, with the marks. pooled: what the pooled bones are called."""
    methods, lines = _grid(
        cells, pooled, lambda c: f"{c.median:.{c.measure.digits}f} ± {c.iqr:.{c.measure.digits}f} {c.marks}".strip()
    )
    head = ["| | | " + " | ".join(methods) + " |", "|---|---|" + "---|" * len(methods)]
    return "\n".join([*head, *("| " + " | ".join(line).replace("*", r"\*") + " |" for line in lines)]) + "\n"


def latex(cells: Sequence[Cell], pooled: str = "all", caption: str = "") -> str:
    """The same as a LaTeX ``table`` with ``booktabs`` rules."""
    signs = {"†": r"$^\dagger$", "*": r"$^{*}$"}

    def shown(cell: Cell) -> str:
        digits = cell.measure.digits
        return f"${cell.median:.{digits}f} \\pm {cell.iqr:.{digits}f}$" + "".join(signs[m] for m in cell.marks.split())

    methods, lines = _grid(cells, pooled, shown)
    body, last = [], ""
    for title, *rest in lines:
        body += [r"\midrule"] if last and title != last else []
        body.append(" & ".join(["" if title == last else _tex(title), _tex(rest[0]), *rest[1:]]) + r" \\")
        last = title
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{caption}}}" if caption else "",
            rf"\begin{{tabular}}{{ll{'c' * len(methods)}}}",
            r"\toprule",
            " & ".join(["", "", *map(_tex, methods)]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex(text: str) -> str:
    return text.replace("%", r"\%").replace("_", r"\_")


def statistics_rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One row per test, and one per cell that was not tested, for CSV."""
    out = []
    for cell in cells:
        row = {"measure": cell.measure.key, "bone": cell.bone, "method": cell.method, "pairs": cell.pairs}
        row |= {"median": cell.median, "iqr": cell.iqr}
        for t in cell.tests or (None,):
            out.append(row if t is None else row | _told(t))
    return out


def _told(test: Paired) -> dict[str, Any]:
    p, corrected = (("" if value is None else value) for value in (test.p, test.holm))
    told = {"reference": test.reference, "pairs": test.pairs, "difference": test.difference, "low": test.low, "high": test.high}
    return told | {"p": p, "p_holm": corrected, "effect": test.effect, "note": test.note}


def statistics_markdown(cells: Sequence[Cell], pooled: str = "all") -> str:
    """One line per test: difference with its interval, p, Holm's p, effect."""
    head = "| | | method | against | pairs | median difference [95 %] | p | Holm | effect |\n" + "|---" * 9 + "|\n"
    lines = []
    for cell in cells:
        for t in cell.tests:
            middle, low, high = (figure(value, cell.measure.digits) for value in (t.difference, t.low, t.high))
            p = ["-" if value is None else f"{value:.3f}" for value in (t.p, t.holm)]
            name = _where(cell.measure, cell.bone, pooled)
            words = [cell.measure.title, name, cell.method, t.reference, str(t.pairs), f"{middle} [{low}, {high}]", *p]
            words += [f"{t.effect:+.2f}" + (f" ({t.note})" if t.note else "")]
            lines.append("| " + " | ".join(words) + " |\n")
    return head + "".join(lines)
