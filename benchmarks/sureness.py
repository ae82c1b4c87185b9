"""Whether poses are as sure as they say: errors of bones in simulated pairs against the covariance of their poses.

    python benchmarks/sureness.py lumbar:1 lumbar:1.5 knee:1 knee:2 pelvis:2 --seeds 2

For every bone whose pose is determined, e the motion (rotation vector about its centroid, shift) that leads from the pose to
the true one, C the pose's covariance: e^T C^-1 e / 6 has a median of 0.89 and a 90th percentile of 1.77 where C is right.
Pairs are those of ``anatomies.py``.
"""

import argparse

import numpy as np
import torch
from anatomies import run, simulated
from scipy.spatial.transform import Rotation

from osteomorph.measure import fit_rigid
from osteomorph.pose import BonePose
from osteomorph.transforms import Transform


def off(pose: BonePose, truth: Transform, points: torch.Tensor) -> tuple[np.ndarray, float]:
    """e, in rad and mm in the fixed frame, and the mean distance between where the two poses take the bone's points."""
    there = truth(points)
    back = fit_rigid(points, pose.pose.inverse()(there))[0]
    centre = points.mean(1).numpy()
    shift = back[:3, :3] @ centre + back[:3, 3] - centre
    distance = float((pose.pose(points) - there).norm(dim=0).mean())
    return np.concatenate([Rotation.from_matrix(back[:3, :3]).as_rotvec(), shift]), distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="VIEW:MM, such as lumbar:1")
    parser.add_argument("--seeds", type=int, default=1, help="pairs of each")
    parser.add_argument("--seed", type=int, default=920, help="the first of them")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    ratios: dict[str, list[float]] = {}
    for what in asked.what:
        view, _, spacing = what.partition(":")
        for seed in range(asked.seed, asked.seed + asked.seeds):
            known, _ = simulated(view, seed, float(spacing))
            found, _ = run(known, float(spacing))
            labels = known.case.fixed_labels
            assert labels is not None
            assert found.exact is not None
            for label, pose in found.exact.poses.items():
                points = labels.grid.world((labels.data[0] == label).nonzero().T.double())[:, ::5]
                if points.shape[1] == 0:
                    continue
                error, distance = off(pose, known.truth, points)
                told = f"{what} {seed} {labels.name(label)}: off {distance:.2f} mm"
                if not pose.determined:
                    print(f"{told}, not determined", flush=True)
                    continue
                ratio = float(error @ np.linalg.solve(pose.covariance, error)) / 6
                ratios.setdefault(what, []).append(ratio)
                sure = f"{pose.rotation_sd_deg:.2f} degrees, {pose.shift_sd_mm:.2f} mm"
                print(f"{told}, standard deviations {sure}, ratio {ratio:.2f}", flush=True)
    print("\n| | bones | median (.89) | 90 % (1.77) | largest |\n|---|---|---|---|---|")
    for what, values in {**ratios, "all": [r for part in ratios.values() for r in part]}.items():
        middle, high = np.quantile(values, (0.5, 0.9))
        print(f"| {what} | {len(values)} | {middle:.2f} | {high:.2f} | {max(values):.1f} |")


if __name__ == "__main__":
    main()
