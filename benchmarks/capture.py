"""From how far off a bone's pose is found: share of bones within 1 mm, and their median error, against the start's error.

    python benchmarks/capture.py [--seeds 0 1] [--spacing 1.5] [--contrast t2] [--soft harmonic] [--labels exact|observed]
                                 [--frame moving|fixed] [--out FILE.md]

Every bone of simulated lumbar pairs starts from its true pose, turned and shifted about its centroid by so many degrees and mm
in random directions. Error: mean over the bone's voxels of the distance to where the truth takes them.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from osteomorph.case import Case
from osteomorph.plan import PosePlan, PreparePlan
from osteomorph.pose import poses
from osteomorph.pose_features import about
from osteomorph.prepare import prepare
from osteomorph.simulate.build import draw_build
from osteomorph.simulate.pair import SOFT, simulate
from osteomorph.simulate.phantom import SETTINGS
from osteomorph.simulate.trunk import Trunk
from osteomorph.transforms import Rigid

ERRORS = (0, 5, 10, 15, 20)


def pair(seed: int, arguments: argparse.Namespace) -> tuple[Case, dict[int, np.ndarray]]:
    patient = Trunk(draw_build(np.random.default_rng((seed, 0))))
    settings = replace(SETTINGS, contrast=arguments.contrast, soft=arguments.soft).coarser(arguments.spacing)
    made = simulate(patient, settings, seed)
    case = made.case
    if arguments.labels == "observed":
        case = replace(case, fixed_labels=made.fixed_observed, moving_labels=made.moving_observed)
    return prepare(case, PreparePlan()), made.poses


def wrong(truth: np.ndarray, centre: torch.Tensor, amount: float, generator: np.random.Generator) -> Rigid:
    axis, way = (v / np.linalg.norm(v) for v in generator.standard_normal((2, 3)))
    return Rigid(truth @ about(centre, np.concatenate([np.radians(amount) * axis, amount * way])))


def bone_points(case: Case, label: int) -> torch.Tensor:
    assert case.fixed_labels is not None
    return case.fixed_labels.grid.world((case.fixed_labels.data[0] == label).nonzero().T.double())


def row(cases: list[tuple[int, Case, dict[int, np.ndarray]]], amount: float, frame: str) -> list[str]:
    errors: list[float] = []
    believed: list[bool] = []
    normalised: list[float] = []
    began = time.process_time()
    for seed, case, truth in cases:
        generator = np.random.default_rng((seed, round(amount)))
        assert case.fixed_labels is not None
        assert case.moving_labels is not None
        points = {k: bone_points(case, k) for k in case.fixed_labels.ids() if k in case.moving_labels.ids()}
        start = {k: wrong(truth[k], found.mean(1), amount, generator) for k, found in points.items()}
        for k, bone in poses(case, start, PosePlan(), list(points), frame).items():  # type: ignore[arg-type]
            errors.append(float((bone.pose(points[k]) - Rigid(truth[k])(points[k])).norm(dim=0).mean()))
            believed.append(bone.determined)
            if bone.determined:
                centre = points[k].mean(1, keepdim=True)
                shift = (bone.pose.inverse()(Rigid(truth[k])(centre)) - centre)[:, 0].numpy()
                normalised.append(float(shift @ np.linalg.solve(bone.covariance[3:, 3:], shift)) / 3)
    seconds = (time.process_time() - began) / len(errors)
    found = np.array(errors)
    held = np.array(believed)
    return [
        f"{amount:g}",
        str(len(found)),
        f"{100 * (found < 1).mean():.0f}",
        f"{np.median(found):.3f}",
        f"{np.percentile(found, 95):.2f}",
        f"{found.max():.2f}",
        f"{100 * held.mean():.0f}",
        f"{int((held & (found >= 1)).sum())}",
        f"{np.median(normalised):.2f}" if normalised else "",
        f"{seconds:.1f}",
    ]


HEADING = ["start mm, deg", "bones", "within 1 mm %", "median mm", "p95 mm", "max mm", "determined %", "determined but wrong"]
HEADING += ["median e^2/var", "CPU s per bone"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--spacing", type=float, default=1.5)
    parser.add_argument("--contrast", default="t2")
    parser.add_argument("--soft", default="harmonic", choices=SOFT)
    parser.add_argument("--labels", default="exact", choices=["exact", "observed"])
    parser.add_argument("--frame", default="moving", choices=["moving", "fixed"])
    parser.add_argument("--errors", type=float, nargs="+", default=list(ERRORS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(seed, *pair(seed, arguments)) for seed in arguments.seeds]
    rows = [row(cases, amount, arguments.frame) for amount in arguments.errors]
    lines = [HEADING, ["---"] * len(HEADING), *rows]
    what = f"{arguments.contrast}, {arguments.soft}, {arguments.spacing:g} mm, {arguments.labels} {arguments.frame} labels"
    text = f"Seeds {', '.join(map(str, arguments.seeds))}; {what}.\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
