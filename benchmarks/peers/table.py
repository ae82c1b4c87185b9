"""The bench's table: medians and worst over pairs, and how they compare with the best peer.

python benchmarks/peers/table.py results.csv [--pairs 'lumbar-*'] [--ours osteomorph]
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

SHOWN = {
    "bone_mm": ("bone TRE mm", 2),
    "bone_p95_mm": ("95 %", 2),
    "soft_mm": ("soft TRE mm", 2),
    "soft_p95_mm": ("95 %", 2),
    "dice": ("Dice", 3),
    "hd99_mm": ("HD99 mm", 2),
    "det_mean": ("mean det J", 3),
    "det_sd": ("SD det J", 4),
    "det_sd_found": ("SD det J, found bones", 4),
    "missed_bones": ("missed bones", 0),
    "rigidity_max_mm": ("residual mm", 4),
    "folding_percent": ("fold %", 4),
    "inverse_mm": ("inverse mm", 3),
    "cpu_s": ("CPU s", 0),
    "wall_s": ("s", 0),
    "peak_gb": ("GB", 1),
}
"""Column -> heading and decimals."""

LARGER_IS_BETTER = ("dice",)
RATIOS = ("bone_mm", "soft_mm", "det_sd", "cpu_s", "peak_gb")
"""Columns in which ours is compared with the best peer."""

Row = Mapping[str, str]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """All rows, whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def values(rows: Sequence[Row], method: str, column: str) -> np.ndarray:
    """What a method has in a column, one value a pair."""
    found = [float(row[column]) for row in rows if row["method"] == method and row.get(column, "") != ""]
    return np.array(found)


def summary(found: np.ndarray, column: str) -> tuple[float, float]:
    """Median and worst of a column: the largest, or for an overlap the least; of det J the furthest from 1."""
    if column == "det_mean":
        return float(np.median(found)), float(found[np.abs(found - 1).argmax()])
    worst = found.min() if column in LARGER_IS_BETTER else found.max()
    return float(np.median(found)), float(worst)


def markdown(rows: Sequence[Row], shown: Mapping[str, tuple[str, int]] = SHOWN, by: str = "bone_mm") -> str:
    """One line a method, medians (worst), from the smallest median of ``by`` on."""
    methods = sorted({row["method"] for row in rows}, key=lambda m: (float(np.median(values(rows, m, by))), m))
    lines = ["| method | labels | pairs | " + " | ".join(heading for heading, _ in shown.values()) + " |"]
    lines.append("|---|---|" + "---|" * (len(shown) + 1))
    for method in methods:
        labels = next(row["labels"] for row in rows if row["method"] == method)
        count = len({row["pair"] for row in rows if row["method"] == method})
        cells = []
        for column, (_, decimals) in shown.items():
            found = values(rows, method, column)
            middle, worst = summary(found, column) if len(found) else (None, None)
            cells.append("-" if middle is None else f"{middle:.{decimals}f} ({worst:.{decimals}f})")
        lines.append(f"| {method} | {labels} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(rows: Sequence[Row], ours: str) -> list[tuple[str, str, float, float, float]]:
    """Column, best peer, its median, ours, and ours / peer; over the pairs that ours and that peer both have."""
    out = []
    mine = {row["pair"] for row in rows if row["method"] == ours}
    peers = sorted({row["method"] for row in rows if row["role"] == "peer"})
    for column in RATIOS:
        best: tuple[float, str, float] | None = None
        for peer in peers:
            shared = mine & {row["pair"] for row in rows if row["method"] == peer}
            both = [row for row in rows if row["pair"] in shared]
            theirs, own = values(both, peer, column), values(both, ours, column)
            if len(theirs) and len(own) and (best is None or float(np.median(theirs)) < best[0]):
                best = float(np.median(theirs)), peer, float(np.median(own))
        if best is not None:
            middle, peer, own_middle = best
            out.append((column, peer, middle, own_middle, own_middle / middle if middle else float("nan")))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--pairs", default="*", help="pattern of the pairs that count")
    parser.add_argument("--ours", default="osteomorph")
    options = parser.parse_args()
    rows = [row for row in read(options.results) if fnmatch(row["pair"], options.pairs)]
    if not rows:
        parser.error(f"{options.results} has no row of {options.pairs}.")
    print(f"Medians (worst) over {len({row['pair'] for row in rows})} pairs.\n")
    print(markdown(rows))
    found = ratios(rows, options.ours)
    if found:
        print(
            f"\n| {options.ours} against the best peer | best peer | its median | ours | ours / peer |\n|---|---|---|---|---|"
        )
        for column, peer, theirs, own, ratio in found:
            print(f"| {SHOWN[column][0]} | {peer} | {theirs:.3g} | {own:.3g} | {ratio:.2g} |")


if __name__ == "__main__":
    main()
