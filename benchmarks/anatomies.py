"""Bones other than the lumbar spine, through `register` with the moving labels, on pairs with known truth.

    python benchmarks/anatomies.py [knee pelvis thorax small FOLDER ...] [--seed 900] [--spacing 2.0]

knee, pelvis, thorax: drawn patients of `osteomorph simulate`, harmonic soft tissue, each joint up to 2 or 2.5 times its usual
range. small: the lumbar spine of one at 0.55 of its size and voxels, in place of a cervical spine, which the simulator does not
draw. FOLDER: a pair as `osteomorph simulate` writes it. All start aligned on the lowest labelled bone (--initial none) and run
with the default recipe at --spacing (small: 0.41 of it). Figures as in peers/metrics.py; the CPU seconds are those of the whole
registration in this process, figures not counted.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peers.metrics import Known, figures, read_known

from osteomorph.case import Case
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.recipes import default
from osteomorph.registration import register
from osteomorph.result import Registration
from osteomorph.simulate.motion import Motion
from osteomorph.simulate.pair import simulate
from osteomorph.simulate.phantom import SETTINGS
from osteomorph.simulate.subjects import procedural
from osteomorph.transforms import Displacement

ALIGNED = {"offset_deg": (0.0, 0.0), "offset_mm": (0.0, 0.0)}
MOTIONS = {
    "pelvis": Motion(bone_mm=(28.0, 40.0), skin_mm=(8.0, 14.0), turn=2.0, **ALIGNED),
    "knee": Motion(bone_mm=(15.0, 25.0), skin_mm=(8.0, 14.0), turn=2.5, **ALIGNED),
    "thorax": Motion(bone_mm=(8.0, 15.0), skin_mm=(8.0, 14.0), turn=2.5, **ALIGNED),
    "lumbar": Motion(bone_mm=(8.0, 15.0), skin_mm=(8.0, 14.0), turn=2.5, **ALIGNED),
}
CONTRASTS = {"pelvis": "t2", "knee": "t1", "thorax": "t1", "lumbar": "t2"}
SMALL = 0.55


def simulated(view: str, seed: int, spacing_mm: float) -> tuple[Known, dict[int, float]]:
    """A pair, and how far each labelled bone turns in degrees."""
    settings = replace(
        SETTINGS,
        view=view,
        size_mm=SETTINGS.size_mm if view == "lumbar" else None,
        contrast=CONTRASTS[view],
        motion=MOTIONS[view],
    ).coarser(spacing_mm)
    pair = simulate(procedural(view, seed)(0).anatomy, settings, seed)
    fixed_labels = pair.case.fixed_labels
    assert fixed_labels is not None
    unlabelled = pair.fixed_bones.mask() & ~fixed_labels.mask()
    soft = Labels(pair.fixed_body.data * ~unlabelled, pair.fixed_body.grid)
    turns = {k: angle_deg(pair.poses[k]) for k in fixed_labels.ids()}
    return Known(pair.case, pair.displacement, pair.fixed_body, soft), turns


def angle_deg(matrix: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1))))


def shrunk(known: Known, factor: float) -> Known:
    """The same pair in a smaller world."""

    def grid(old: Grid) -> Grid:
        affine = old.affine.copy()
        affine[:3] *= factor
        return Grid(old.shape, affine)

    def moved(part: Image | Labels | None) -> Image | Labels | None:
        return None if part is None else replace(part, grid=grid(part.grid))

    assert isinstance(known.truth, Displacement)
    case = known.case
    parts = [moved(part) for part in (case.fixed, case.moving, case.fixed_labels, case.moving_labels)]
    truth = Displacement(known.truth.vectors * factor, grid(known.truth.grid))
    return Known(Case(*parts), truth, moved(known.body), moved(known.soft))  # type: ignore[arg-type]


def run(known: Known, spacing_mm: float) -> tuple[Registration, float]:
    base = default()
    plan = base.model_copy(update={"prepare": base.prepare.model_copy(update={"spacing_mm": spacing_mm})})
    case = known.case
    began = time.process_time()
    found = register(case.fixed, case.moving, moving_labels=case.moving_labels, plan=plan, initial="none", threads=1)
    _ = found.stored_inverse, found.moved, found.moved_labels
    return found, time.process_time() - began


SHOWN = {
    "bone_mm": "bone TRE mm",
    "bone_p95_mm": "95 %",
    "soft_mm": "soft TRE mm",
    "dice": "Dice",
    "hd99_mm": "HD99 mm",
    "det_sd": "SD det J in bone",
    "rigidity_max_mm": "rigidity residual mm",
    "folding_percent": "fold %",
    "inverse_mm": "inverse mm",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["knee", "pelvis", "thorax", "small"])
    parser.add_argument("--seed", type=int, default=900)
    parser.add_argument("--spacing", type=float, default=2.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| anatomy | turns deg | {' | '.join(SHOWN.values())} | CPU s |")
    print("|---" * (len(SHOWN) + 3) + "|", flush=True)
    for what in options.what:
        spacing, turns = options.spacing, {}
        if what in MOTIONS:
            known, turns = simulated(what, options.seed, spacing)
        elif what == "small":
            known, turns = simulated("lumbar", options.seed, 0.75 * spacing)
            known, spacing = shrunk(known, SMALL), SMALL * 0.75 * spacing
        else:
            known = read_known(Path(what))
        found, spent = run(known, spacing)
        values = figures(found.stored, known, found.stored_inverse)
        turned = "" if not turns else f"{max(turns.values()):.0f}"
        cells = [f"{values[name]:.3g}" for name in SHOWN]
        print(
            f"| {what} ({len(found.exact.poses) if found.exact else 0} bones) | {turned} | {' | '.join(cells)} | {spent:.0f} |"
        )
        for line in found.warnings:
            print(f"    {line}")
        if found.exact is not None:
            rim = {k: n for k, n in found.exact.certificate.rim_voxels.items() if n}
            print(f"    rim voxels {rim}, narrowest gap {found.exact.certificate.narrowest_gap_mm}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
