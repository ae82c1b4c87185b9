"""Pairs of the bench: CT-MR pairs with known motion, aligned on their lowest labelled bone, as the thesis' are after its start.

    python benchmarks/peers/pairs.py DIR [SET ...] [-n 3] [--seed 700] [--difficulty thesis|bench|hard] [--spacing 1.0]
                                     [--size 96,160,160]

Sets (all by default): lumbar-elastic and lumbar-harmonic (drawn patients), and where OSTEOMORPH_TEST_DATA is set
ct-lumbopelvic-elastic, ct-lumbopelvic-harmonic, ct-abdomen-pelvis-elastic and ct-lumbar-crop-elastic (CT and anatomy real).
Pair i of a set depends on the seed and i alone, is written as `osteomorph simulate` does, into DIR/SET/pairNNN, kept where it
is there already. Neither soft-tissue generator is the method's own flow. Voxels of the MR are cubes of --spacing mm on axes
tilted by up to 5 degrees; a real CT keeps its voxels.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from osteomorph.simulate import motion
from osteomorph.simulate.motion import Motion
from osteomorph.simulate.pair import Settings
from osteomorph.simulate.subjects import from_files, procedural
from osteomorph.simulate.write import Subject, simulate_cohort

DRAWN = {"lumbar-elastic": ("lumbar", "elastic"), "lumbar-harmonic": ("lumbar", "harmonic")}
"""Set -> view and soft tissue of drawn patients."""

REAL = {
    "ct-lumbopelvic-elastic": ("ct-lumbopelvic", "labels.nii.gz", "spine", "elastic"),
    "ct-lumbopelvic-harmonic": ("ct-lumbopelvic", "labels.nii.gz", "spine", "harmonic"),
    "ct-abdomen-pelvis-elastic": ("ct-abdomen-pelvis-3mm", "labels.nii.gz", "spine", "elastic"),
    "ct-lumbar-crop-elastic": ("ct-lumbar-crop", "seg-vert.nii.gz", "whole", "elastic"),
}
"""Set -> folder of a CT, its label file, view and soft tissue."""


DIFFICULTIES = {**motion.DIFFICULTIES, "bench": Motion((4.0, 7.0), (8.0, 14.0), 2.0, (0.0, 0.0), (0.0, 0.0))}
"""Those of `osteomorph simulate`, and one whose bones move further than the thesis'."""


def aligned(difficulty: str) -> Motion:
    """A difficulty's motion with both scanners in one frame: the lowest labelled bone does not move."""
    return replace(DIFFICULTIES[difficulty], offset_deg=(0.0, 0.0), offset_mm=(0.0, 0.0))


def make(folder: Path, name: str, count: int, seed: int, settings: Settings) -> None:
    """The pairs of one set; its view and soft tissue take the place of the settings'."""
    subject: Callable[[int], Subject]
    if name in DRAWN:
        view, soft = DRAWN[name]
        subject = procedural(view, seed)
    else:
        data, labels, view, soft = REAL[name]
        source = Path(os.environ["OSTEOMORPH_TEST_DATA"]) / data
        subject, _ = from_files(source / "ct.nii.gz", source / labels)
    settings = replace(settings, view=view)
    simulate_cohort(folder / name, count, seed, subject, settings, soft=soft)


def main() -> None:
    known = [*DRAWN, *(REAL if "OSTEOMORPH_TEST_DATA" in os.environ else ())]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sets", nargs="*", metavar="SET", help=", ".join(known))
    parser.add_argument("-n", type=int, default=3, help="pairs a set")
    parser.add_argument("--seed", type=int, default=700)
    parser.add_argument("--difficulty", choices=tuple(DIFFICULTIES), default="thesis")
    parser.add_argument("--spacing", type=float, default=1.0, help="mm")
    parser.add_argument(
        "--size", help="field of view in mm: left-right, anterior-posterior, inferior-superior; the view's by default"
    )
    options = parser.parse_args()
    size = None if options.size is None else tuple(float(v) for v in options.size.split(","))
    if size is not None and len(size) != 3:
        parser.error("--size takes three lengths in mm: 96,160,160.")
    cubes = (options.spacing,) * 3
    settings = Settings(fixed_mm=cubes, moving_mm=cubes, motion=aligned(options.difficulty))
    if size is not None:
        settings = replace(settings, size_mm=(size[0], size[1], size[2]))
    for name in options.sets or known:
        if name not in known:
            parser.error(f"There is no set {name!r}, or OSTEOMORPH_TEST_DATA is not set. Choose from {', '.join(known)}.")
        make(options.folder, name, options.n, options.seed, settings)
        print(options.folder / name, flush=True)


if __name__ == "__main__":
    main()
