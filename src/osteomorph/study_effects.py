"""What the thesis found, asked of rows of one's own: each effect with its statistic, shown or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy import stats

from osteomorph.compare import SIGNIFICANT, Paired, by_pair, figure, interval, paired

EQUAL_DICE = 0.005
"""Medians of Dice that differ by less count as equal."""

FEWEST = 6
"""Pairs below which a two-sided signed-rank test cannot reach p < .05."""

Rows = Sequence[Mapping[str, Any]]


@final
@dataclass(frozen=True)
class Effect:
    """claim: one sentence. shown: what the data say; None where they cannot tell. evidence: the numbers."""

    claim: str
    shown: bool | None
    evidence: str

    @property
    def verdict(self) -> str:
        return {True: "shown", False: "not shown", None: "cannot be told"}[self.shown]


def thesis_effects(rows: Rows, sweep: Mapping[float, Mapping[str, float]], lowest: str = "L5") -> list[Effect]:
    """The effects of chapter 4. sweep: gamma1 -> pair -> folding in percent. lowest: the bone that the start aligned."""
    return [
        _differs(rows, "WS", "US", "dice", "pooled", +1, "Weak supervision raises Dice over the unsupervised model"),
        _differs(rows, "WS", "Rigid", "dice", "pooled", +1, "Weak supervision raises Dice over the rigid start"),
        *_penalty(rows, "US-RP", "US"),
        *_penalty(rows, "WS-RP", "WS"),
        folding_falls(sweep),
        _differs(
            rows, "US", "Rigid", "dice", lowest, -1, f"The unsupervised model lowers the Dice of {lowest}, aligned before"
        ),
    ]


def _differs(rows: Rows, method: str, reference: str, key: str, bone: str, sign: int, claim: str) -> Effect:
    values = by_pair(rows, key, bone)
    if method not in values or reference not in values:
        return Effect(claim, None, f"no rows of {method} or {reference}")
    test = paired(values[method], values[reference], reference)
    enough = test.p is not None and test.pairs >= FEWEST
    shown = bool(test.p < SIGNIFICANT and sign * test.difference > 0) if enough and test.p is not None else None
    return Effect(claim, shown, told(test))


def told(test: Paired, digits: int = 4) -> str:
    """A paired test in words."""
    p = test.note or "no p" if test.p is None else f"p = {test.p:.3f}"
    middle, low, high = (figure(value, digits) for value in (test.difference, test.low, test.high))
    return f"median difference {middle} [{low}, {high}], {p}, effect {test.effect:+.2f}, {test.pairs} pairs"


def _penalty(rows: Rows, method: str, reference: str) -> tuple[Effect, Effect]:
    """That bones keep their volume better: shown where the interval of the ratio of SDs lies above 1. And what it costs."""
    claim = f"The rigidity penalty lowers the SD of det J in bone ({reference} to {method})"
    cost = f"The penalty leaves Dice within {EQUAL_DICE} ({reference} to {method})"
    spread, overlap = by_pair(rows, "det_sd", "pooled"), by_pair(rows, "dice", "pooled")
    if any(name not in values for name in (method, reference) for values in (spread, overlap)):
        words = f"no rows of {method} or {reference}"
        return Effect(claim, None, words), Effect(cost, None, words)
    shared = sorted(set(spread[method]) & set(spread[reference]))
    ratios = [spread[reference][pair] / spread[method][pair] for pair in shared if spread[method][pair] > 0]
    if len(ratios) < FEWEST:
        return Effect(claim, None, f"{len(ratios)} pairs with a ratio"), Effect(cost, None, f"{len(shared)} pairs")
    low, high = interval(ratios)
    dice = paired(overlap[method], overlap[reference], reference)
    evidence = (
        f"ratio of SDs, median {np.median(ratios):.2f} [{low:.2f}, {high:.2f}] over {len(ratios)} pairs "
        f"(inner voxels alone: {_inner(rows, method, reference)})"
    )
    return Effect(claim, low > 1, evidence), Effect(cost, abs(dice.difference) <= EQUAL_DICE, told(dice))


def _inner(rows: Rows, method: str, reference: str) -> str:
    values = by_pair(rows, "det_sd_inner", "pooled")
    shared = sorted(set(values.get(method, {})) & set(values.get(reference, {})))
    ratios = [values[reference][pair] / values[method][pair] for pair in shared if values[method][pair] > 0]
    return f"{np.median(ratios):.2f}" if ratios else "none"


def folding_falls(sweep: Mapping[float, Mapping[str, float]]) -> Effect:
    """Page's trend test over pairs: folding ordered by falling gamma1 should rise (Page, 1963)."""
    claim = "Folding falls as gamma1 grows"
    weights = sorted(sweep, reverse=True)
    shared = sorted(set.intersection(*(set(sweep[w]) for w in weights))) if weights else []
    if len(weights) < 3 or len(shared) < 2:
        return Effect(claim, None, f"{len(weights)} weights, {len(shared)} pairs: too few for a trend")
    data = np.array([[sweep[w][pair] for w in weights] for pair in shared])
    means = ", ".join(f"{w:g}: {mean:.3g} %" for w, mean in zip(reversed(weights), data.mean(0)[::-1], strict=True))
    if np.ptp(data) == 0:
        return Effect(claim, False, f"folding is the same everywhere ({means})")
    p = float(stats.page_trend_test(data).pvalue)
    falls = p < SIGNIFICANT and data.mean(0)[-1] > data.mean(0)[0]
    return Effect(claim, bool(falls), f"Page's trend test p = {p:.3g}; {means}")
