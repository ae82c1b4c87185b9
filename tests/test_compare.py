"""The statistics of the tables, against scipy, R's p.adjust and numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from osteomorph.compare import (
    Measure,
    by_pair,
    figure,
    holm,
    interval,
    latex,
    markdown,
    paired,
    rank_biserial,
    statistics_markdown,
    statistics_rows,
    table,
)

DICE = Measure("dice", "DSC")


def rows_of(method, values, bone="L5", role="labelled", fold=0):
    return [
        {"pair": f"p{n}", "method": method, "bone": bone, "role": role, "fold": fold, "dice": value}
        for n, value in enumerate(values)
    ]


NINE = (0.90, 0.91, 0.93, 0.92, 0.95, 0.94, 0.96, 0.89, 0.97)
BETTER = tuple(v + d for v, d in zip(NINE, (0.01, 0.02, 0.015, 0.03, 0.011, 0.005, 0.012, 0.04, 0.001), strict=True))


def test_folds_are_averaged_before_pairs_are_described():
    """Two folds, three pairs: medians of (2, 3, 9) and not of all six values."""
    rows = rows_of("US", (1.0, 2.0, 8.0)) + rows_of("US", (3.0, 4.0, 10.0), fold=1)
    assert by_pair(rows, "dice", "L5")["US"] == {"p0": 2.0, "p1": 3.0, "p2": 9.0}
    (cell,) = table(rows, ["US"], ["L5"], [DICE], ())
    assert (cell.pairs, cell.median, cell.iqr) == (3, 3.0, pytest.approx(6.0 - 2.5))


def test_wilcoxon_is_scipys_and_marks_follow():
    rows = rows_of("Rigid", NINE) + rows_of("US", BETTER) + rows_of("WS", NINE)
    cells = {c.method: c for c in table(rows, ["Rigid", "US", "WS"], ["L5"], [DICE])}
    (test,) = cells["US"].tests
    assert test.p == pytest.approx(2 / 2**9)  # all nine up: one of 2^9 sign patterns, two-sided
    assert test.p == pytest.approx(stats.wilcoxon(BETTER, NINE).pvalue)
    assert cells["US"].marks == "†"
    assert cells["WS"].marks == "*"
    assert cells["Rigid"].tests == ()
    assert cells["US"].tests[0].effect == 1.0


def test_no_difference_is_no_effect():
    test = paired(dict.fromkeys("abc", 1.0), dict.fromkeys("abc", 1.0), "Rigid")
    assert (test.p, test.effect, test.note) == (1.0, 0.0, "no difference in any pair")
    assert (test.low, test.high) == (0.0, 0.0)


def test_one_pair_is_said_and_not_tested():
    test = paired({"a": 2.0}, {"a": 1.0}, "Rigid")
    assert test.p is None
    assert "fewer than two" in test.note
    assert "no pair" in paired({"a": 2.0}, {"b": 1.0}, "Rigid").note


def test_only_pairs_that_both_have_count():
    assert paired({"a": 2.0, "b": 3.0, "c": 9.0}, {"a": 1.0, "b": 1.0}, "Rigid").difference == 1.5


def test_holm_by_hand():
    """Smallest times 3, next at least as large and times 2, and so on; None does not count."""
    assert holm([0.03, None, 0.01, 0.04]) == [pytest.approx(0.06), None, pytest.approx(0.03), pytest.approx(0.06)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_holm_family_is_one_measure():
    rows = rows_of("Rigid", NINE) + rows_of("US", BETTER)
    rows += rows_of("Rigid", NINE, "L4") + rows_of("US", BETTER, "L4")
    cells = table(rows, ["Rigid", "US"], ["L5", "L4"], [DICE])
    tests = [test for cell in cells for test in cell.tests]
    assert [test.holm for test in tests] == [pytest.approx(2 * test.p) for test in tests]


def test_rank_biserial_by_hand():
    """Ranks 1, 2, 3 of |d|, the middle one negative: (1 - 2 + 3) / 6."""
    assert rank_biserial(np.array([0.1, -0.2, 0.3])) == pytest.approx(2 / 6)
    assert rank_biserial(np.array([0.0, 0.0])) == 0


def test_bootstrap_interval_covers_the_median():
    """Of 100 samples of 15 normal values, the 95 % interval misses the true median in few."""
    draws = np.random.default_rng(3).normal(size=(100, 15))
    missed = sum(not low <= 0 <= high for low, high in map(interval, draws))
    assert 1 <= missed <= 14
    assert interval([2.0]) == (2.0, 2.0)
    assert np.isnan(interval([])).all()


def test_pooled_rows_are_asked_for_by_role():
    rows = rows_of("US", (1.0, 2.0)) + rows_of("US", (5.0, 7.0), "L5+L4", "pooled")
    assert by_pair(rows, "dice", "pooled")["US"] == {"p0": 5.0, "p1": 7.0}


def test_writers_hold_the_numbers():
    rows = rows_of("Rigid", NINE) + rows_of("US", BETTER)
    cells = table(rows, ["Rigid", "US"], ["L5"], [DICE])
    text = markdown(cells)
    assert text.splitlines()[0] == "| | | Rigid | US |"
    assert text.splitlines()[2] == "| DSC | L5 | 0.930 ± 0.040 | 0.945 ± 0.031 † |"
    tex = latex(cells, caption="One")
    assert r"DSC & L5 & $0.930 \pm 0.040$ & $0.945 \pm 0.031$$^\dagger$ \\" in tex
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 1
    assert [row.get("p") for row in statistics_rows(cells)] == [None, pytest.approx(2 / 2**9)]
    assert "| DSC | L5 | US | Rigid | 9 | +0.012 [" in statistics_markdown(cells)


def test_asterisks_are_no_emphasis():
    rows = rows_of("US", NINE) + rows_of("WS", BETTER)
    assert r"\*" in markdown(table(rows, ["US", "WS"], ["L5"], [DICE], ("Rigid", "US")))


def test_small_differences_do_not_read_as_none():
    assert [figure(0.0, 3), figure(-0.00002, 3), figure(0.0126, 3)] == ["+0.000", "-2e-05", "+0.013"]
