"""``report.md`` of a study: what was run, how long it took, and sections."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from osteomorph import __version__
from osteomorph.simulate.motion import DIFFICULTIES
from osteomorph.study import duration, seconds_of
from osteomorph.study_arms import SIZES, Context


@final
@dataclass(frozen=True)
class Section:
    """title, and Markdown below it."""

    title: str
    text: str


def write_report(context: Context, study: str, sections: Sequence[Section]) -> Path:
    """Writes ``report.md``; pictures in ``figures/`` are shown at the end."""
    import torch

    size = context.size
    name = next((name for name, known in SIZES.items() if known == size), "other")
    spent = seconds_of(context.folder)
    steps: dict[str, float] = {}
    for unit, seconds in spent.items():
        steps[unit.partition("/")[0]] = steps.get(unit.partition("/")[0], 0.0) + seconds
    simulated = "0.6 x 0.6 x 0.8 (MR) and 0.64 x 0.64 x 0.7 mm (CT)" if size.simulate_mm is None else f"{size.simulate_mm:g} mm"
    low, high = size.bone_mm or DIFFICULTIES["thesis"].bone_mm
    lines = [
        f"# Study: {study}",
        "",
        f"    osteomorph study {study} --size {name} --seed {context.seed} -o DIR",
        "",
        "| | |",
        "|---|---|",
        f"| cohort | {size.pairs} simulated pairs, voxels of {simulated}; labels of L3, L4 and L5 as segmented |",
        f"| motion | a bone is up to {low:g} to {high:g} mm off after the start |",
        f"| registered at | {size.spacing_mm:g} mm, {' x '.join(map(str, size.shape))} voxels (AP, SI, LR) |",
        f"| training | {size.epochs} epochs, Adam {size.learning_rate:g}, batch 1, {size.folds} folds |",
        f"| gamma1 | {size.gamma1:g} (the thesis: 2) |",
        f"| time | {duration(float(sum(spent.values())))}: " + ", ".join(f"{k} {duration(v)}" for k, v in steps.items()) + " |",
        f"| machine | {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {context.device} |",
        f"| versions | osteomorph {__version__}, torch {torch.__version__}, Python {platform.python_version()} |",
        "",
    ]
    for section in sections:
        lines += [f"## {section.title}", "", section.text.rstrip() or "Nothing to show.", ""]
    pictures = sorted((context.folder / "figures").glob("*.png"))
    if pictures:
        lines += ["## Figures", ""]
        for picture in pictures:
            lines += [f"### {picture.stem.replace('-', ' ')}", "", f"![{picture.stem}](figures/{picture.name})", ""]
    path = context.folder / "report.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
