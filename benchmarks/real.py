"""Real volumes: a real MR under a known articulated motion, and CT onto another patient's MR as a stress test.

    OSTEOMORPH_TEST_DATA=FOLDER python benchmarks/real.py [--out DIR] [--seed 0] [--only truth|stress] [--unlabelled] [--whole]

The folder holds mr-lumbar-t2 and mr-lumbar-water (MR with vertebral bodies labelled), ct-lumbopelvic (TCIA CCTH-A01) and
ct-abdomen-pelvis-3mm (TotalSegmentator's example). Prints a Markdown table each; writes an overlay per case into --out.
--whole: what moves rigidly in the truth are the whole vertebrae (and the sacrum) that the network in the box finds in the MR,
not the bodies that are labelled, beside which that truth bends their arches. Poses are judged then, not what is found.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from osteomorph.case import Case
from osteomorph.errors import InputError
from osteomorph.foreground import foreground
from osteomorph.found_bones import find_bones
from osteomorph.geometry import sample
from osteomorph.image import Image, Labels
from osteomorph.io import read_image, read_labels
from osteomorph.measure import measure
from osteomorph.memory import peak_bytes
from osteomorph.pictures import overlay
from osteomorph.registration import register
from osteomorph.resampling import resample
from osteomorph.result import Registration
from osteomorph.transforms import Displacement, Rigid
from osteomorph.unlabelled import LEAST_CONFIDENCE

HEADING = "| bone TRE mm | 95 % | soft TRE mm | Dice | SD det J | fold % | inverse mm | s | GB |"

REACH_MM = 12.0
"""Distance from a bone at which its motion has half given way to that of the far field."""


def articulated(labels: Labels, seed: int) -> Displacement:
    """Fixed -> moving: each label turned up to 3 degrees and shifted up to 1.5 mm against the one before, smooth in between."""
    rng = np.random.default_rng(seed)
    grid = labels.grid
    points = grid.points(torch.float64).flatten(1)
    pose = np.eye(4)
    near, push = torch.zeros(grid.voxels, dtype=torch.float64), torch.zeros(3, grid.voxels, dtype=torch.float64)
    inside = torch.zeros(grid.voxels, dtype=torch.int64)
    poses = {}
    for label in labels.ids():
        centre = points[:, labels.data.flatten() == label].mean(1).numpy()
        step = np.eye(4)
        step[:3, :3] = Rotation.from_rotvec(np.radians(rng.uniform(-3, 3, 3))).as_matrix()
        step[:3, 3] = centre - step[:3, :3] @ centre + rng.uniform(-1.5, 1.5, 3)
        pose = pose @ step
        poses[label] = Rigid(pose)
        there = poses[label](points)
        bone = sample((labels.data == label).to(torch.int8), grid, there, "nearest", 0)[0] > 0
        distance = ndimage.distance_transform_edt(~bone.reshape(grid.shape).numpy(), sampling=grid.spacing_mm)
        weight = torch.as_tensor(1 / np.maximum(distance.ravel(), 1e-3) ** 1.5)
        near += weight
        push += weight * (there - points)
        inside[bone & (inside == 0)] = label
    vectors = push / (near + 1 / REACH_MM**1.5)
    for label, pose_k in poses.items():
        bone = inside == label
        vectors[:, bone] = pose_k(points[:, bone]) - points[:, bone]
    return Displacement(vectors.float().unflatten(1, grid.shape), grid)


def draw(path: Path, result: Registration, title: str) -> None:
    case, grid = result.case, result.case.fixed.grid
    before = resample(case.moving, result.start.rigid, grid)
    before_labels = None if case.moving_labels is None else resample(case.moving_labels, result.start.rigid, grid)
    moved = result.warp.displacement(grid)
    overlay(path, case.fixed, before, result.moved, case.fixed_labels, before_labels, result.moved_labels, moved, title)


def truth_test(data: Path, out: Path, seed: int, unlabelled: bool, whole: bool) -> None:
    how = (", no labels" if unlabelled else "") + (", whole bones" if whole else "")
    print(
        f"\n| MR under known motion{how} | bone TRE mm | 95 % | soft TRE mm | Dice | SD det J | fold % | inverse mm | s | GB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in ("mr-lumbar-t2/02", "mr-lumbar-water/01"):
        moving, labels = read_image(data / f"{name}_mr.nii.gz"), read_labels(data / f"{name}_labels.nii.gz")
        if whole:
            labels = find_bones(moving).sure(LEAST_CONFIDENCE)
        truth = articulated(labels, seed)
        still = resample(moving, truth, moving.grid)
        noise = torch.randn(still.data.shape, generator=torch.Generator().manual_seed(seed))
        fixed = still.with_data(still.data + 0.02 * float(still.data.std()) * noise)
        body = foreground(Image((fixed.data / torch.quantile(fixed.data[:, ::4, ::4, ::4], 0.99)).clamp(0, 1), fixed.grid), 0.0)
        case = Case(fixed, moving, resample(labels, truth, moving.grid), labels)
        result = register(fixed, moving, moving_labels=None if unlabelled else labels, seed=seed)
        if unlabelled:
            assert result.found_in is not None
            print(f"{name}: {len(result.rigid_labels)} bones held rigid, {len(labels.ids())} move", end="; ")
            print(f"found in the {result.found_in.side} image", flush=True)
        mask = Labels(body.data.to(torch.uint8), fixed.grid)
        for row, transform in ((name, result.transform), ("identity", Rigid.identity()), ("truth", truth)):
            found = measure(transform, case, truth, mask)
            bone = (found[f"tre_bone_{key}_mm"] for key in ("mean", "p95"))
            cells = [*(f"{v:.2f}" for v in bone), f"{found['tre_soft_mean_mm']:.2f}", f"{found['dice_mean']:.3f}"]
            cells += [f"{found['det_sd']:.3f}", f"{found['folding_percent']:.2g}"]
            if row == name:
                spent = sum(result.seconds.values())
                cells += [f"{result.metrics['inverse_error_mean_mm']:.3f}", f"{spent:.0f}", f"{peak_bytes() / 2**30:.1f}"]
            print(f"| {row} | " + " | ".join(cells) + " |", flush=True)
        file = f"{'whole-' * whole}{'unlabelled' if unlabelled else 'truth'}-{name.replace('/', '-')}.png"
        draw(out / file, result, f"{name} under known motion{how}")


def renamed(labels: Labels, ids: dict[int, int]) -> Labels:
    data = torch.zeros_like(labels.data)
    for old, new in ids.items():
        data[labels.data == old] = new
    return Labels(data, labels.grid, {22: "L3", 23: "L4", 24: "L5"})


def stress_test(data: Path, out: Path, unlabelled: bool) -> None:
    print("\n| CT onto another patient's MR | start | MI start | end | fold % | inverse mm | bone residual mm | s | warnings |")
    print("|---|---|---|---|---|---|---|---|---|")
    whole = renamed(read_labels(data / "ct-lumbopelvic/labels.nii.gz"), {1: 24, 2: 23, 3: 22})
    t2 = renamed(read_labels(data / "mr-lumbar-t2/02_labels.nii.gz"), {7: 24, 6: 23, 5: 22})
    water = renamed(read_labels(data / "mr-lumbar-water/02_labels.nii.gz"), {5: 24, 4: 23, 3: 22})
    ct, coarse = "ct-lumbopelvic/ct.nii.gz", "ct-abdomen-pelvis-3mm/ct.nii.gz"
    pairs: tuple[tuple[str, str, Labels | None, Labels | None], ...] = (
        ("mr-lumbar-t2/02_mr.nii.gz", ct, t2, whole),
        ("mr-lumbar-water/02_mr.nii.gz", ct, water, whole),
        ("mr-lumbar-water/02_mr.nii.gz", ct, None, None),
        ("mr-lumbar-water/02_mr.nii.gz", coarse, None, None),
    )
    for fixed, moving, fixed_labels, moving_labels in pairs[2:] if unlabelled else pairs:
        began = time.perf_counter()
        title = f"{moving.split('.')[0]} onto {fixed.split('.')[0]}"
        known = {"fixed_labels": fixed_labels, "moving_labels": moving_labels, "initial": None if fixed_labels else "centres"}
        try:
            result = register(data / fixed, data / moving, **known)  # type: ignore[arg-type]
        except InputError as error:
            print(f"| {title} | refused: {error} | | | | | | {time.perf_counter() - began:.0f} | |", flush=True)
            continue
        m, worst = result.metrics, max((b.residual_mm for b in result.bones), default=float("nan"))
        cells = [f"{m['mutual_information_start']:.3f}", f"{m['mutual_information']:.3f}", f"{m['folding_percent']:.2g}"]
        cells += [f"{m.get('inverse_error_mean_mm', float('nan')):.3f}", f"{worst:.2f}", f"{time.perf_counter() - began:.0f}"]
        print(f"| {title} | {result.start.method} | " + " | ".join(cells) + f" | {'; '.join(result.warnings)} |", flush=True)
        name = title.replace("/", "-").replace(" ", "_")
        result.write(out / name, overwrite=True)
        draw(out / f"stress-{name}.png", result, title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("real"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("truth", "stress"))
    parser.add_argument("--unlabelled", action="store_true", help="give no labels; stress: leave out the pairs with labels")
    parser.add_argument("--whole", action="store_true", help="truth: whole bones move")
    options = parser.parse_args()
    data = Path(os.environ["OSTEOMORPH_TEST_DATA"])
    options.out.mkdir(parents=True, exist_ok=True)
    if options.only != "stress":
        truth_test(data, options.out, options.seed, options.unlabelled, options.whole)
    if options.only != "truth":
        stress_test(data, options.out, options.unlabelled)


if __name__ == "__main__":
    main()
