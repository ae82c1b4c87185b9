"""Curves of what other benchmarks and trainings wrote.

    python benchmarks/curves.py capture OUT.png "NAME=FILE.md" ...     # of `capture.py --out`, a name each
    python benchmarks/curves.py training OUT.png "NAME=FOLDER/log.csv" ...     # of `python -m osteomorph.train_bones`, in order

Capture: share of bones that end within 1 mm, and of those that are determined, against the error of the start. Training: the
loss of what steps saw, and on patients that no step saw Dice of bone and the error of offsets, against the steps of all parts.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOTS = 110
"""Per inch."""

MM_DEG, WITHIN, DETERMINED = "start mm, deg", "within 1 mm %", "determined %"


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a Markdown table by its headings."""
    lines = [line.strip("| \n").split(" | ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def capture(out: Path, files: Sequence[tuple[str, Path]]) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for n, (name, path) in enumerate(files):
        rows = sorted(table(path), key=lambda row: float(row[MM_DEG]))
        start = [float(row[MM_DEG]) for row in rows]
        axes.plot(start, [float(row[WITHIN]) for row in rows], "o-", color=f"C{n}", label=f"{name}, within 1 mm")
        axes.plot(start, [float(row[DETERMINED]) for row in rows], "x:", color=f"C{n}", label=f"{name}, determined")
    axes.axhline(90, color="0.7", linewidth=0.8)
    axes.set(xlabel="error of the rigid start, mm and degrees", ylabel="% of bones", ylim=(0, 104))
    axes.legend(loc="lower left", fontsize="small")
    figure.savefig(out, dpi=DOTS)


def training(out: Path, files: Sequence[tuple[str, Path]]) -> None:
    figure, (upper, middle, lower) = plt.subplots(3, 1, figsize=(6.4, 7.2), sharex=True, layout="constrained")
    done = 0.0
    for name, path in files:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        steps = [done + float(row["step"]) for row in rows]
        values = {key: [float(row[key]) for row in rows] for key in rows[0]}
        upper.plot(steps, values["loss"], ".-", color="C0")
        middle.plot(steps, values["validation_dice_ct"], ".-", color="C1", label=None if done else "CT")
        middle.plot(steps, values["validation_dice_mr"], ".-", color="C2", label=None if done else "MR")
        lower.plot(steps, values["validation_offset_mm"], ".-", color="C3")
        for axes in (upper, middle, lower):
            axes.axvline(done, color="0.8", linewidth=0.8)
        upper.annotate(name, (done, 0.98), xycoords=("data", "axes fraction"), va="top", fontsize="small")
        done = steps[-1]
    upper.set_ylabel("loss")
    middle.set_ylabel("Dice of bone, held out")
    middle.legend(loc="lower right", fontsize="small")
    lower.set(ylabel="offset error mm, held out", xlabel="steps", ylim=(0, None))
    figure.savefig(out, dpi=DOTS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["capture", "training"])
    parser.add_argument("out", type=Path)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    options = parser.parse_args()
    parts = [given.rpartition("=") for given in options.files]
    files = [(name, Path(path)) for name, _, path in parts]
    {"capture": capture, "training": training}[options.what](options.out, files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
