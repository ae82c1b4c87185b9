"""From how far off bones are found on the path that `register` runs: share of bones within 1 mm, against the start's error.

    python benchmarks/capture.py [--pairs lumbar:6 knee:2 pelvis:1] [--errors 0 5 10 15 20] [--seed 900] [--soft harmonic]
                                 [--frame moving|fixed|found] [--search MM] [--keep FOLDER] [--out FILE.md]

Pairs of `osteomorph simulate` whose bones move against each other (up to 12-22 mm for the bone that moves most, each joint up
to 2.5 times its usual range), contrasts in turn, exact labels of the moving image. The rigid start given is that of the lowest
labelled bone, turned and shifted by so many degrees and mm in random directions about the bones' middle: row 0 is relative
motion alone. Then, with the default recipe at 1.5 mm (pelvis, thorax: 2 mm), the wide search, first poses and poses, as
`register` goes through them. Error: mean over a bone's voxels of the distance to where the truth takes them. Wrong: a pose that
is off by 1 mm or more and is said to be determined. With ``--frame found`` nobody labels the moving image: the shipped network
finds its bones, and of each true bone the pose is that of the found bone that holds most of its voxels, if it holds half of
them; else it is missed.
"""

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch

from osteomorph.case import Case
from osteomorph.exact_bones import dense_guess, first_poses, refined_poses, sides_of
from osteomorph.found_bones import find_bones
from osteomorph.geometry import sample
from osteomorph.image import Labels
from osteomorph.plan import Plan
from osteomorph.pose_features import about
from osteomorph.prepare import prepare
from osteomorph.recipes import default
from osteomorph.simulate.motion import Motion
from osteomorph.simulate.pair import SOFT, simulate
from osteomorph.simulate.phantom import SETTINGS
from osteomorph.simulate.subjects import PROCEDURAL, procedural
from osteomorph.transforms import Rigid
from osteomorph.unlabelled import LEAST_CONFIDENCE

ERRORS = (0, 5, 10, 15, 20)
CONTRASTS = ("t2", "t1", "gre", "water", "gre-out", "t2", "gre-in")
MOTION = Motion(bone_mm=(12.0, 22.0), skin_mm=(8.0, 14.0), turn=2.5, offset_deg=(0.0, 0.0), offset_mm=(0.0, 0.0))
WITHIN_MM = 1.0


@final
@dataclass(frozen=True)
class Pair:
    """Where bones are in the fixed image (some of their voxels, mm), and where they go.

    known_as: ids in the labels of the case; None for a bone that no label holds.
    """

    name: str
    spacing_mm: float
    case: Case
    points: dict[int, torch.Tensor]
    truth: dict[int, Rigid]
    known_as: dict[int, int | None]


@final
@dataclass(frozen=True)
class Bone:
    """One bone's errors in mm: of the start, of the dense field's pose, at the end; and what is said of it."""

    start: float
    first: float
    end: float
    determined: bool
    lost: bool = False

    @property
    def wrong(self) -> bool:
        return self.determined and self.end >= WITHIN_MM


def made(view: str, number: int, options: argparse.Namespace) -> Pair:
    spacing = 2.0 if view in ("pelvis", "thorax") else 1.5
    kept = None if options.keep is None else options.keep / f"pair_{view}_{number}.pt"
    if kept is not None and kept.is_file():
        found = torch.load(kept, weights_only=False)
        case, poses = found["case"], found["poses"]
    else:
        seed = options.seed + number
        settings = replace(
            SETTINGS,
            view=view,
            size_mm=SETTINGS.size_mm if view == "lumbar" else None,
            contrast=CONTRASTS[number % len(CONTRASTS)],
            soft=options.soft,
            motion=MOTION,
        ).coarser(spacing)
        pair = simulate(procedural(view, seed)(0).anatomy, settings, seed)
        case, poses = pair.case, pair.poses
        if kept is not None:
            more = {"displacement": pair.displacement, "body": pair.fixed_body, "bones": pair.fixed_bones}
            torch.save({"case": case, "poses": poses, **more}, kept)
    labels = case.fixed_labels
    points = {k: labels.grid.world((labels.data[0] == k).nonzero().T.double())[:, ::7] for k in labels.ids()}
    truth = {k: Rigid(poses[k]) for k in points}
    known_as: dict[int, int | None] = {k: k for k in points}
    case = replace(case, moving_labels=None) if options.frame == "fixed" else replace(case, fixed_labels=None)
    if options.frame == "found":
        found_labels = find_bones(case.moving).sure(LEAST_CONFIDENCE)
        case = replace(case, moving_labels=found_labels)
        known_as = {k: holder(found_labels, truth[k](points[k])) for k in points}
    return Pair(f"{view} {number}", spacing, case, points, truth, known_as)


def holder(labels: Labels, points_mm: torch.Tensor) -> int | None:
    """The label that holds most of the points, if it holds half of them."""
    ids, counts = torch.unique(sample(labels.data, labels.grid, points_mm, "nearest", 0)[0], return_counts=True)
    best = int(counts.argmax())
    return int(ids[best]) if ids[best] > 0 and counts[best] >= points_mm.shape[1] / 2 else None


def off(points: dict[int, torch.Tensor], amount: float, seed: tuple[int, int]) -> Rigid:
    """A motion about the bones' middle by ``amount`` degrees and mm, in random directions."""
    middle = torch.cat(list(points.values()), 1).mean(1)
    axis, way = (v / np.linalg.norm(v) for v in np.random.default_rng(seed).standard_normal((2, 3)))
    return Rigid(about(middle, np.concatenate([np.radians(amount) * axis, amount * way])))


def error(pose: Rigid, truth: Rigid, points: torch.Tensor) -> float:
    return float((pose(points) - truth(points)).norm(dim=0).mean())


def run(pair: Pair, number: int, amount: float, plan: Plan, frame: str) -> tuple[list[Bone], float]:
    """Every bone, and the CPU seconds of guess and poses."""
    prepared = prepare(pair.case, plan.prepare.model_copy(update={"spacing_mm": pair.spacing_mm}))
    start = off(pair.points, amount, (number, round(amount)))
    began = time.process_time()
    known = tuple(sorted({k for k in pair.known_as.values() if k is not None}))
    sides = sides_of(known, "moving" if frame == "found" else frame, prepared)  # type: ignore[arg-type]
    dense = dense_guess(prepared, prepared, start, plan, plan.seed, None)
    first = first_poses(dense, start, prepared, sides, plan.guess_mm)
    found = refined_poses(prepared, first, plan, sides, None)
    spent = time.process_time() - began
    bones = []
    for label, points in pair.points.items():
        before, own = error(start, pair.truth[label], points), pair.known_as[label]
        if own is None or own not in found:
            bones.append(Bone(before, np.inf, np.inf, False, lost=True))
            print(f"{pair.name}, start {amount:g}: bone {label} missed", file=sys.stderr, flush=True)
            continue
        ends = [error(pose, pair.truth[label], points) for pose in (first[own], found[own].pose)]
        bones.append(Bone(before, *ends, found[own].determined))
        if not bones[-1].determined or ends[1] >= WITHIN_MM:
            print(f"{pair.name}, start {amount:g}: bone {label} {bones[-1]}", file=sys.stderr, flush=True)
    return bones, spent


HEADING = ["start mm, deg", "bones", "start error mm, mean (max)", f"within {WITHIN_MM:g} mm %", "median mm", "max mm"]
HEADING += ["determined %", "determined but wrong", "CPU s per pair"]


def row(amount: float, bones: list[Bone], spent: list[float]) -> list[str]:
    before, after = np.array([b.start for b in bones]), np.array([b.end for b in bones])
    return [
        f"{amount:g}",
        str(len(bones)),
        f"{before.mean():.1f} ({before.max():.1f})",
        f"{100 * (after < WITHIN_MM).mean():.0f}",
        f"{np.median(after):.2f}",
        f"{after.max():.2f}",
        f"{100 * np.mean([b.determined for b in bones]):.0f}",
        str(sum(b.wrong for b in bones)),
        f"{np.mean(spent):.1f}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=["lumbar:6", "knee:2", "pelvis:1"], metavar="VIEW:COUNT")
    parser.add_argument("--errors", type=float, nargs="+", default=list(ERRORS))
    parser.add_argument("--seed", type=int, default=900)
    parser.add_argument("--soft", default="harmonic", choices=SOFT)
    parser.add_argument("--frame", default="moving", choices=["moving", "fixed", "found"])
    parser.add_argument("--search", type=float, help="shifts of a bone that poses try where it is not found, mm; the recipe's")
    parser.add_argument("--keep", type=Path, help="folder where simulated pairs are kept and looked for")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [part.split(":") for part in options.pairs]
    if any(view not in PROCEDURAL for view, _ in wanted):
        parser.error(f"Views are {', '.join(PROCEDURAL)}.")
    pairs = [(k, made(view, k, options)) for view, count in wanted for k in range(int(count))]
    plan = default()
    if options.search is not None:
        plan = plan.model_copy(update={"pose": plan.pose.model_copy(update={"search_mm": options.search})})
    lines = [HEADING, ["---"] * len(HEADING)]
    for amount in options.errors:
        ran = [run(pair, k, amount, plan, options.frame) for k, pair in pairs]
        lines.append(row(amount, [bone for bones, _ in ran for bone in bones], [spent for _, spent in ran]))
        print(f"| {' | '.join(lines[-1])} |", flush=True)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(f"Seed {options.seed}; {options.soft}; {', '.join(options.pairs)}; {options.frame} labels.\n\n{text}")
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
