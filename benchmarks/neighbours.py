"""Bones far moved against the bone they hang on, at their joint: hips and knees flexed, a kneecap that slides and tips.

    python benchmarks/neighbours.py [--cases CASE ...] [--search MM] [--keep FOLDER] [--out FILE.md]

The simulator draws such motions only where nothing collides and nothing folds, and so hardly any. Here a pair of it with
little motion is moved further by this package's own polyrigid transform, and its MR acquired anew through both (nothing is
resampled; the CT stays). **Soft tissue between bones therefore moves as the method itself moves it**: errors of bones are
looked at, nothing else. A motion by which bones overlap, or fold what lies between, is refused, and said.

Registered as capture.py does it: exact labels of the CT, the default recipe at 1.5 mm (pelvis: 2 mm), wide search, first
poses, poses, from the pose of the lowest labelled bone; no start is off besides. Columns: how far a bone turned against its
neighbour and how far its voxels lie from where they were (mean); error of the start, of the search's pose, at the end.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from capture import WITHIN_MM, Bone, Pair, run

from osteomorph.certificate import certify
from osteomorph.image import Labels
from osteomorph.polyrigid import Polyrigid, from_labels
from osteomorph.recipes import default
from osteomorph.simulate.motion import Motion, apply, rigid_about
from osteomorph.simulate.pair import SimulatedPair, simulate
from osteomorph.simulate.phantom import SETTINGS
from osteomorph.simulate.subjects import procedural
from osteomorph.simulate.texture import texture
from osteomorph.simulate.truth import in_parts
from osteomorph.transforms import Rigid

LITTLE = Motion(bone_mm=(1.0, 3.0), skin_mm=(4.0, 8.0), turn=1.0, offset_deg=(0.0, 0.0), offset_mm=(0.0, 0.0))
AROUND_MM = 40.0
"""Beyond the fixed field of view, from where bones may come in."""

GAP_MM = 0.4
"""Least width between two rigid regions of the motion that is added."""

Turn = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Degrees about right, front, up through the joint, and mm along them."""


@final
@dataclass(frozen=True)
class Joint:
    """What is added at the joints of one drawn patient. turns: bone -> against the bone it hangs on."""

    view: str
    seed: int
    contrast: str
    turns: Mapping[int, Turn]


def flexed(degrees: float) -> Turn:
    return (degrees, 0.0, 0.0), (0.0, 0.0, 0.0)


def rolled(degrees: float) -> Turn:
    """About the leg's axis."""
    return (0.0, 0.0, degrees), (0.0, 0.0, 0.0)


FEMURS, KNEECAP = (33, 34), 83
CASES = {
    "knee 15": Joint("knee", 910, "t1", dict.fromkeys(FEMURS, flexed(15))),
    "knee 20": Joint("knee", 911, "t2", dict.fromkeys(FEMURS, flexed(20))),
    "knee -15": Joint("knee", 912, "gre", dict.fromkeys(FEMURS, flexed(-15))),
    "kneecap up": Joint("knee", 913, "t2", {KNEECAP: ((0.0, 0.0, 0.0), (0.0, 2.0, 15.0))}),
    "kneecap out": Joint("knee", 914, "t1", {KNEECAP: ((0.0, 0.0, 0.0), (0.0, 15.0, 0.0))}),
    "kneecap tips": Joint("knee", 915, "gre", {KNEECAP: ((15.0, 0.0, 0.0), (0.0, 6.0, 0.0))}),
    "hips 15": Joint("pelvis", 920, "t2", {FEMURS[0]: flexed(15), FEMURS[1]: flexed(-15)}),
    "hips roll 20": Joint("pelvis", 922, "gre", {FEMURS[0]: rolled(20), FEMURS[1]: rolled(-20)}),
    "hips 25": Joint("pelvis", 923, "t2", {FEMURS[0]: flexed(25), FEMURS[1]: flexed(25)}),
    "hips 20": Joint("pelvis", 921, "t1", {FEMURS[0]: flexed(-20), FEMURS[1]: flexed(20)}),
}


@final
@dataclass(frozen=True)
class Made:
    """pair: for `capture.run`. turned: bone -> degrees and mean mm by which it was moved further."""

    pair: Pair
    turned: Mapping[int, tuple[float, float]]
    gap_mm: float


def made(name: str, joint: Joint) -> Made:
    """Raises ValueError where bones would overlap, or soft tissue fold."""
    spacing = 2.0 if joint.view == "pelvis" else 1.5
    settings = replace(
        SETTINGS, view=joint.view, size_mm=None, contrast=joint.contrast, soft="harmonic", motion=LITTLE
    ).coarser(spacing)
    drawn = simulate(procedural(joint.view, joint.seed)(0).anatomy, settings, joint.seed)
    fixed, moving_labels = drawn.case.fixed.grid, drawn.case.moving_labels
    assert moving_labels is not None
    labels = everywhere(drawn, spacing)
    further = moved(drawn, joint.turns, labels)
    certificate = certify(further, fixed)
    gap = certificate.narrowest_gap_mm or 0.0
    if gap < 0 or certificate.folding_percent > 0:
        raise ValueError(f"{name}: the narrowest gap is {gap:.2g} mm, {certificate.folding_percent:.2g} % of points fold.")

    def where(points: torch.Tensor) -> torch.Tensor:
        return drawn.truth.to_anatomy(further.moved(points.double()))

    parameters = drawn.parameters
    mr = parameters.mr.acquire(drawn.truth.anatomy, where, fixed, texture(parameters.texture_seed))
    points, turned = {}, {}
    truth: dict[int, Rigid] = {}
    for body in further.bodies:
        if body.label not in moving_labels.ids():
            continue
        before = labels.grid.world((labels.data[0] == body.label).nonzero().T.double())
        here = body.pose.inverse()(before)
        seen = fixed.contains(here)
        points[body.label] = here[:, seen][:, ::5]
        truth[body.label] = Rigid(drawn.poses[body.label] @ body.pose.matrix)
        angle = np.degrees(np.arccos(np.clip((np.trace(body.pose.matrix[:3, :3]) - 1) / 2, -1, 1)))
        turned[body.label] = float(angle), float((here - before)[:, seen].norm(dim=0).mean())
    case = replace(drawn.case, fixed=mr, fixed_labels=None)
    return Made(Pair(name, spacing, case, points, truth, {k: k for k in points}), turned, gap)


def everywhere(drawn: SimulatedPair, spacing: float) -> Labels:
    """Every bone as it lies in the fixed image, and beyond its field of view."""
    margin = int(np.ceil(AROUND_MM / spacing))
    around = drawn.case.fixed.grid.resampled(spacing).padded((margin, margin, margin))
    points = around.points(torch.float64).flatten(1)
    truth = drawn.truth

    def ids(part: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(part[:1])
        for label in truth.poses:
            out[0, truth.distance(label, part, 2.0) < 0] = label
        return out

    found = in_parts(ids, points).to(torch.int16).unflatten(1, around.shape)
    return Labels(found, around, dict(truth.anatomy.names))


def moved(drawn: SimulatedPair, turns: Mapping[int, Turn], labels: Labels) -> Polyrigid:
    """New fixed mm -> fixed mm of the drawn pair: joints turned, each bone taking along those that hang on it."""
    truth = drawn.truth
    poses: dict[int, np.ndarray] = {}
    for joint in truth.anatomy.joints:
        before = np.eye(4) if joint.parent is None else poses.get(joint.parent, np.eye(4))
        step = np.eye(4)
        if joint.bone in turns:
            hung = truth.poses[joint.bone if joint.parent is None else joint.parent]
            centre = apply(np.linalg.inv(hung), torch.tensor(joint.centre_mm, dtype=torch.float64)[:, None])
            step = rigid_about(centre[:, 0].tolist(), *turns[joint.bone])
        poses[joint.bone] = before @ step
    there = {label: Rigid(np.linalg.inv(poses[label])) for label in labels.ids()}
    return from_labels(there, moving=labels, gap_mm=GAP_MM)


HEADING = ("case", "bone", "degrees", "mm", "start mm", "search mm", "end mm", "determined", "CPU s")


def lines(name: str, case: Made, found: Mapping[int, Bone], spent: float) -> list[tuple[str, ...]]:
    names = case.pair.case.moving_labels.names if case.pair.case.moving_labels else {}
    out = []
    for label, bone in found.items():
        degrees, mm = case.turned[label]
        errors = (f"{value:.2f}" for value in (bone.start, bone.first, bone.end))
        said = "yes" if bone.determined else "no"
        out.append((name, names.get(label, str(label)), f"{degrees:.0f}", f"{mm:.1f}", *errors, said, f"{spent:.0f}"))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--search", type=float, help="shifts of a bone that poses try where it is not found, mm; the recipe's")
    parser.add_argument("--keep", type=Path, help="folder where pairs are kept and looked for")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan, table = default(), [HEADING, ("---",) * len(HEADING)]
    if options.search is not None:
        plan = plan.model_copy(update={"pose": plan.pose.model_copy(update={"search_mm": options.search})})
    ends: list[float] = []
    for name in options.cases:
        kept = None if options.keep is None else options.keep / f"{name.replace(' ', '_')}.pt"
        if kept is not None and kept.is_file():
            case = torch.load(kept, weights_only=False)
        else:
            try:
                case = made(name, CASES[name])
            except ValueError as error:
                print(error, flush=True)
                continue
            if kept is not None:
                torch.save(case, kept)
        bones, spent = run(case.pair, 0, 0.0, plan, "moving")
        found = dict(zip(case.pair.points, bones, strict=True))
        for line in lines(name, case, found, spent):
            table.append(line)
            print(f"| {' | '.join(line)} |", flush=True)
        ends += [bone.end for label, bone in found.items() if case.turned[label][1] > 0.1]
        if options.out is not None:
            options.out.write_text("\n".join(f"| {' | '.join(line)} |" for line in table) + "\n", encoding="utf-8")
    within = sum(end < WITHIN_MM for end in ends)
    print(
        f"{within} of {len(ends)} moved bones within {WITHIN_MM:g} mm, median {np.median(ends):.2f}, worst {max(ends):.2f} mm."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
