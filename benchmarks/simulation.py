"""The simulator against its promises: truth that is true, labels with the errors of a segmentation, pairs per second.

    python benchmarks/simulation.py [truth|segmentation|speed ...] [--data FOLDER] [--out FILE.md]

truth: for every anatomy and generator of soft tissue the largest residual of a bone against its rigid motion (function and
file), the least Jacobian determinant in the body, the inverse's error, and by how much mutual information near bones falls
when the truth is shifted by 1 mm along an axis (least over six shifts; positive: the truth is best). Real CTs, where FOLDER
(default: OSTEOMORPH_TEST_DATA) holds them. segmentation: overlap of two observed labels of L5 under its exact rigid motion.
speed: pairs made on the fly. Exits 1 where a bar is missed.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from osteomorph import io, measure
from osteomorph.geometry import sample
from osteomorph.resampling import resample
from osteomorph.similarity import mutual_information
from osteomorph.simulate.anatomy import Anatomy
from osteomorph.simulate.atlas import atlas_from_ct, voxelised
from osteomorph.simulate.build import draw_build
from osteomorph.simulate.dataset import BANKS, SimulatedPairs
from osteomorph.simulate.knee import Knee, draw_knee_build
from osteomorph.simulate.motion import DIFFICULTIES
from osteomorph.simulate.naming import names_for
from osteomorph.simulate.pair import SOFT, Settings, SimulatedPair, simulate
from osteomorph.simulate.trunk import Trunk
from osteomorph.simulate.truth import jacobian
from osteomorph.transforms import Rigid

REAL = (("ct-lumbopelvic", "spine"), ("ct-lumbar-crop", "whole"), ("ct-abdomen-pelvis-3mm", "whole"))


def drawn(seed: int) -> Anatomy:
    return Trunk(draw_build(np.random.default_rng((seed, 0))))


def anatomies(data: Path | None) -> list[tuple[str, Anatomy, str]]:
    out: list[tuple[str, Anatomy, str]] = [(view, drawn(n), view) for n, view in enumerate(("lumbar", "thorax", "pelvis"))]
    out.append(("knee", Knee(draw_knee_build(np.random.default_rng(0))), "knee"))
    for name, view in REAL if data is not None else ():
        folder = data / name
        labels = next(folder / n for n in ("labels.nii.gz", "seg-vert.nii.gz") if (folder / n).is_file())
        ct = io.read_image(folder / "ct.nii.gz")
        regions = io.read_labels(labels, ct.grid)
        out.append((name, atlas_from_ct(ct, regions, names_for(labels) or None), view))
    return out


def truth_row(name: str, anatomy: Anatomy, view: str, soft: str, difficulty: str, seed: int, spacing: float) -> list[str]:
    settings = Settings(view=view, soft=soft, motion=DIFFICULTIES[difficulty]).coarser(spacing)
    began = time.perf_counter()
    pair = simulate(anatomy, settings, seed)
    seconds = time.perf_counter() - began
    points = pair.case.fixed.grid.points(torch.float64).flatten(1)
    bone = pair.fixed_bones.data.flatten()
    residual, stored = 0.0, 0.0
    for label, pose in pair.poses.items():
        inside = points[:, bone == label]
        if inside.shape[1]:
            goal = Rigid(pose)(inside)
            residual = max(residual, float((pair.truth(inside) - goal).norm(dim=0).max()))
            stored = max(stored, float((pair.displacement(inside) - goal).norm(dim=0).max()))
    body = points[:, pair.fixed_body.data.flatten() > 0]
    least = float(torch.linalg.det(jacobian(pair.truth.to_anatomy, body, 0.05)).min())
    some = body[:, :: max(1, body.shape[1] // 20_000)]
    inverse = float((pair.truth.inverse()(pair.truth(some)) - some).norm(dim=0).max())
    drop = information_drop(pair, points)
    good = residual <= 1e-6 and stored <= 1e-4 and least > 0 and inverse <= 0.01 and drop > 0
    turn = max(abs(angle) for rotation, _ in pair.parameters.steps.values() for angle in rotation)
    row = [f"{residual:.0e}", f"{stored:.0e}", f"{least:.2f}", f"{inverse:.0e}", f"{drop:+.4f}", f"{turn:.1f}"]
    return [name, soft, difficulty, str(pair.parameters.attempt + 1), *row, f"{seconds:.0f}", "" if good else "**missed**"]


def information_drop(pair: SimulatedPair, points: torch.Tensor) -> float:
    """Least fall of mutual information, in nats, within 6 mm of labelled bones under shifts of 1 mm."""
    assert pair.case.fixed_labels is not None
    labels = pair.case.fixed_labels.ids()
    near = torch.stack([pair.truth.distance(k, points) for k in labels]).min(0).values < 6
    there = pair.truth(points[:, near])
    mr = unit(pair.case.fixed.data[0].flatten()[near])

    def score(shift: np.ndarray) -> float:
        at = (there + torch.as_tensor(shift)[:, None]).float()
        ct = sample(pair.case.moving.data, pair.case.moving.grid, at)[0].clamp(-200, 900)
        return float(mutual_information(mr, unit(ct), bins=32))

    best = score(np.zeros(3))
    return best - max(score(sign * axis) for sign in (1, -1) for axis in np.eye(3))


def unit(values: torch.Tensor) -> torch.Tensor:
    low, high = np.percentile(values.numpy(), (0.5, 98.0))
    return ((values - float(low)) / float(high - low)).clamp(0, 1).float()


def truth(data: Path | None, spacing: float) -> tuple[list[list[str]], list[str]]:
    heading = ["anatomy", "soft tissue", "difficulty", "draws", "bone mm", "in the file mm", "least det J", "inverse mm"]
    rows = []
    for name, anatomy, view in anatomies(data):
        for number, (soft, difficulty) in enumerate([*((s, "thesis") for s in SOFT), ("harmonic", "hard")]):
            rows.append(truth_row(name, anatomy, view, soft, difficulty, number, spacing))
            print(*rows[-1], flush=True)
    return rows, [*heading, "MI drop at 1 mm", "largest turn deg", "s", ""]


def segmentation(pairs: int) -> tuple[list[list[str]], list[str]]:
    rows = []
    for seed in range(pairs):
        settings = Settings(view="lumbar", size_mm=(100.0, 110.0, 80.0))
        pair = simulate(drawn(seed), settings, seed)
        grid = pair.case.fixed.grid.resampled(1.0)
        fixed = resample(pair.fixed_observed, Rigid.identity(), grid)
        label = max(pair.fixed_observed.ids())  # the lowest: L5, where there are five
        moved = resample(pair.moving_observed, Rigid(pair.poses[label]), grid)
        a, b = fixed.mask([label]), moved.mask([label])
        msd = measure.mean_surface_distance(a, b, grid.spacing_mm)
        hd = measure.hausdorff(a, b, grid.spacing_mm)
        name = pair.truth.anatomy.names[label]
        rows.append([f"{seed} {name}", f"{measure.dice(a, b):.3f}", f"{msd:.3f}", f"{hd:.2f}"])
        print(*rows[-1], flush=True)
    columns = [np.median([float(row[c]) for row in rows]) for c in (1, 2, 3)]
    missed = "" if abs(columns[0] - 0.952) < 0.01 and abs(columns[2] - 1.41) < 0.35 else " **missed**"
    rows.append([f"median{missed}", *(f"{c:.3f}" for c in columns)])
    rows.append(["thesis, rigid on L5", "0.952", "0.245", "1.41"])
    return rows, ["pair", "Dice", "MSD mm", "HD99 mm"]


def speed(count: int) -> tuple[list[list[str]], list[str]]:
    patient = drawn(0)
    rows = []
    for spacing, shape in ((1.25, (96, 96, 96)), (1.0, (160, 160, 96))):
        atlas = voxelised(patient, spacing, patient.views["lumbar"])
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        for device in devices:
            pairs = SimulatedPairs([atlas], shape, spacing, device=device)
            cores = (os.cpu_count() or 1) if device == "cpu" else 0
            loader = iter(DataLoader(pairs, batch_size=None, num_workers=cores))
            for _ in range(BANKS * max(1, cores)):  # until every worker has its textures
                next(loader)
            began = time.perf_counter()
            for _ in range(count):
                next(loader)
            if device == "cuda":
                torch.cuda.synchronize()
            wall = time.perf_counter() - began
            where = f"{cores} workers" if device == "cpu" else torch.cuda.get_device_name()
            rows.append([" x ".join(map(str, shape)), where, f"{count / wall:.2f}"])
            print(*rows[-1], flush=True)
    return rows, ["voxels", "on", "pairs per s"]


def table(rows: list[list[str]], heading: list[str]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["truth", "segmentation", "speed"], metavar="PART")
    default = os.environ.get("OSTEOMORPH_TEST_DATA")
    parser.add_argument("--data", type=Path, default=None if default is None else Path(default))
    parser.add_argument("--spacing", type=float, default=2.0, help="Voxels of the pairs of the truth part, mm.")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    parts: dict[str, Callable[[], tuple[list[list[str]], list[str]]]] = {
        "truth": lambda: truth(arguments.data, arguments.spacing),
        "segmentation": lambda: segmentation(9),
        "speed": lambda: speed(16),
    }
    text = "\n\n".join(f"### {name}\n\n{table(*parts[name]())}" for name in arguments.parts or parts)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 1 if "**missed**" in text else 0


if __name__ == "__main__":
    sys.exit(main())
