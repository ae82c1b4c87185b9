"""Time and memory of two terms next to their peers, in one run.

    python benchmarks/terms.py [--shape 320 320 96] [--repeats 3] [--threads N]

Mutual information with its gradient against MONAI's GlobalMutualInformationLoss (gaussian, 24 bins), and the rigidity penalty
with its gradient at bone voxels against the same over the whole volume. Every contender runs in a process of its own, on
the same arrays; peak memory is that above the loaded inputs, the gradient included. Exit code 1 if a bar is missed.
MONAI takes about 1 kB a voxel: 10 GB at the default shape.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from osteomorph.geometry import Grid
from osteomorph.regularity import dense_rigidity_parts, rigidity_parts
from osteomorph.similarity import mutual_information

BARS = {("MI", "time"): 1 / 20, ("MI", "memory"): 1 / 8, ("rigidity", "time"): 1 / 5}
BINS = 24


# -- inputs -----------------------------------------------------------------------------------------------------------
def smooth_noise(channels: int, shape: list[int], knots: float) -> Tensor:
    coarse = [max(3, round(n / knots)) for n in shape]
    return interpolate(torch.randn(1, channels, *coarse), size=shape, mode="trilinear")[0]


def write_inputs(folder: Path, shape: list[int]) -> None:
    """Two images of one anatomy with unlike contrast; a smooth field; three bodies the size of vertebrae."""
    torch.manual_seed(0)
    anatomy = torch.sigmoid(2 * smooth_noise(1, shape, 12)[0])
    other = 0.15 + 0.7 * (anatomy * 5).sin().abs()
    for name, image in {"fixed": anatomy, "moved": other}.items():
        image += 0.04 * torch.randn(shape)
        np.save(folder / f"{name}.npy", image.clamp_(0, 1).numpy())
    np.save(folder / "vectors.npy", (3 * smooth_noise(3, shape, 24) + 0.01 * torch.randn(3, *shape)).numpy())
    axes = np.meshgrid(*[np.arange(n) / n - 0.5 for n in shape], indexing="ij", sparse=True)
    bone = np.zeros(shape, bool)
    for centre in (-0.2, 0.0, 0.2):
        bone |= (axes[0] / 0.0625) ** 2 + ((axes[1] - centre) / 0.069) ** 2 + (axes[2] / 0.26) ** 2 < 1
    np.save(folder / "bone.npy", bone)


# -- one contender, in its own process ----------------------------------------------------------------------------------
def contender(name: str) -> Callable[[dict[str, Tensor]], Tensor]:
    if name == "MI ours":
        return lambda a: mutual_information(a["fixed"].flatten(), a["moved"].flatten(), bins=BINS)
    if name == "MI MONAI":
        from monai.losses import GlobalMutualInformationLoss

        loss = GlobalMutualInformationLoss(kernel_type="gaussian", num_bins=BINS)
        return lambda a: -loss(a["moved"][None, None], a["fixed"][None, None])
    parts = rigidity_parts if name == "rigidity sparse" else dense_rigidity_parts

    def penalty(a: dict[str, Tensor]) -> Tensor:
        i, j, k = a["bone"].shape
        return parts(a["vectors"], Grid((i, j, k), np.eye(4)), a["bone"]).total

    return penalty


def peak_bytes() -> int:
    """Most memory this process has held. Linux hands ru_maxrss on from the process that started it, so not that there."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(name: str, folder: Path, repeats: int) -> dict[str, object]:
    function = contender(name)
    names, variable = (("fixed", "moved"), "moved") if name.startswith("MI") else (("vectors", "bone"), "vectors")
    arrays = {n: torch.from_numpy(np.load(folder / f"{n}.npy")) for n in names}
    small = {n: a[..., 1::7, 1::7, 1::7].contiguous() for n, a in arrays.items()}  # loads libraries, starts threads
    small[variable].requires_grad_()
    function(small).backward()
    arrays[variable].requires_grad_()
    before = psutil.Process().memory_info().rss
    seconds = []
    for _ in range(repeats):
        arrays[variable].grad = None
        start = time.perf_counter()
        value = function(arrays)
        value.backward()
        seconds.append(time.perf_counter() - start)
    peak = peak_bytes()
    np.save(folder / f"{name}.gradient.npy", np.asarray(arrays[variable].grad))
    return {"seconds": seconds, "peak_mb": (peak - before) / 1e6, "value": value.item()}


# -- the table --------------------------------------------------------------------------------------------------------
def agreement(folder: Path, ours: str, peer: str) -> tuple[float, float]:
    """Cosine of the two gradients and the norm of their difference relative to the peer's."""
    a, b = (np.load(folder / f"{name}.gradient.npy").astype(np.float64).ravel() for name in (ours, peer))
    return float(a @ b / np.sqrt((a @ a) * (b @ b))), float(np.sqrt(((a - b) @ (a - b)) / (b @ b)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[320, 320, 96])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--measure", nargs=2, metavar=("CONTENDER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]), options.repeats)))
        return 0
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, options.shape)
        bone = np.load(folder / "bone.npy")
        libraries = ", ".join(f"{p} {version(p)}" for p in ("osteomorph", "torch", "monai", "numpy"))
        print(
            f"{date.today()}, {'x'.join(map(str, options.shape))} voxels, bone {bone.mean():.2%}, {options.threads} threads, "
        )
        print(f"{options.repeats} repeats, Python {platform.python_version()}, {libraries}\n")
        print("| term with gradient | seconds min | median | peak MB above inputs | value |\n|---|---|---|---|---|")
        summary = []
        for term, ours, peer in (("MI", "MI ours", "MI MONAI"), ("rigidity", "rigidity sparse", "rigidity dense")):
            found = {}
            for contestant in (ours, peer):
                command = [sys.executable, __file__, "--measure", contestant, name]
                command += ["--repeats", str(options.repeats), "--threads", str(options.threads)]
                found[contestant] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                r = found[contestant]
                times = f"{min(r['seconds']):.3f} | {statistics.median(r['seconds']):.3f}"
                print(f"| {contestant} | {times} | {r['peak_mb']:.0f} | {r['value']:.6f} |", flush=True)
            a, b = found[ours], found[peer]
            ratios = {
                "time": statistics.median(a["seconds"]) / statistics.median(b["seconds"]),
                "memory": a["peak_mb"] / b["peak_mb"],
            }
            cosine, error = agreement(folder, ours, peer)
            verdicts = []
            for what, ratio in ratios.items():
                bar = BARS.get((term, what))
                verdicts.append(f"{what} 1/{1 / ratio:.1f}" + (f" (bar 1/{1 / bar:.0f})" if bar else ""))
                if bar and ratio > bar:
                    missed.append(f"{term} {what}: 1/{1 / ratio:.1f}, bar 1/{1 / bar:.0f}")
            difference = abs(a["value"] - b["value"])
            row = f"| {term} | {' | '.join(verdicts)} | {difference:.1e} | cosine {cosine:.6f}, relative error {error:.1e} |"
            summary.append(row)
    print("\n| ours to peer | time (medians) | memory | difference of values | gradients |\n|---|---|---|---|---|")
    print("\n".join(summary))
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
