"""Time and memory of a training step and of inference with the network of the thesis, at its size.

    python benchmarks/training.py [--shape 320 320 96] [--threads 2] [--repeats 3] [--only NAME ...]

A step is forward, loss of thesis-ws-rp (mutual information, Dice of three bones, diffusion, rigidity penalty), backward and
Adam. Beside it stands the same step written with MONAI's losses: GlobalMutualInformationLoss (gaussian, 24 bins), DiceLoss,
DiffusionLoss, its own Warp, and the rigidity penalty over the whole volume. Inference is `network.predict`, batch
normalisation folded. Every contender runs in a process of its own, on the same arrays; the peak is that of the whole
process, libraries and inputs included. On a busy machine the processor's seconds say more than the clock's.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from osteomorph.case import Case
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.network import UNet, has_bf16, predict, warp
from osteomorph.plan import Plan
from osteomorph.recipes import recipe
from osteomorph.regularity import dense_rigidity_parts
from osteomorph.train import loss_of
from osteomorph.training_pairs import TrainingCase

CONTENDERS = {
    "step": "a step, float32",
    "step bf16": "a step, layers in bfloat16",
    "step recomputed": "a step, float32, blocks computed again on the way back",
    "step MONAI": "a step with MONAI's losses and warp, float32",
    "inference": "inference, float32",
    "inference bf16": "inference, bfloat16",
}


# -- inputs -----------------------------------------------------------------------------------------------------------
def case(folder: Path, shape: list[int]) -> Case:
    """Smooth images of unlike contrast and three bodies the size of vertebrae, written once and read by every contender."""
    names = ("fixed", "moving", "fixed_labels", "moving_labels")
    if not (folder / "fixed.npy").exists():
        torch.manual_seed(0)
        knots = [max(3, round(n / 12)) for n in shape]
        anatomy = torch.sigmoid(2 * interpolate(torch.randn(1, 1, *knots), size=shape, mode="trilinear")[0, 0])
        np.save(folder / "fixed.npy", (anatomy + 0.04 * torch.randn(shape)).clamp(0, 1).numpy())
        np.save(folder / "moving.npy", (0.15 + 0.7 * (anatomy * 5).sin().abs()).clamp(0, 1).numpy())
        axes = np.meshgrid(*[np.arange(n) / n - 0.5 for n in shape], indexing="ij", sparse=True)
        for name, shift in (("fixed_labels", 0.0), ("moving_labels", 0.01)):
            bones = np.zeros(shape, np.uint8)
            for label, centre in enumerate((-0.2, 0.0, 0.2), 22):
                inside = ((axes[0] - shift) / 0.0625) ** 2 + ((axes[1] - centre) / 0.069) ** 2 + (axes[2] / 0.26) ** 2 < 1
                bones[inside] = label
            np.save(folder / f"{name}.npy", bones)
    a, b, c = (torch.from_numpy(np.load(folder / f"{name}.npy"))[None] for name in names[:3])
    d = torch.from_numpy(np.load(folder / "moving_labels.npy"))[None]
    grid = Grid((shape[0], shape[1], shape[2]), np.eye(4))
    return Case(Image(a, grid), Image(b, grid), Labels(c, grid), Labels(d, grid))


# -- one contender, in its own process ----------------------------------------------------------------------------------
def contender(name: str, given: Case) -> Callable[[], object]:
    plan = recipe("thesis-ws-rp")
    torch.manual_seed(0)
    network = UNet(plan.network).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    torch.nn.init.normal_(network.last.weight, std=0.05)
    if name.startswith("inference"):
        return lambda: predict(network, given, bf16=name.endswith("bf16"))
    network.checkpointing = name == "step recomputed"
    plan = plan.model_copy(update={"train": plan.train.model_copy(update={"bf16": name == "step bf16"})})
    pair = TrainingCase.of(given)
    optimiser = torch.optim.Adam(network.parameters(), lr=plan.train.learning_rate)
    loss = monai_loss(given, plan) if name == "step MONAI" else lambda net: loss_of(net, pair, plan)[0]

    def step() -> None:
        optimiser.zero_grad()
        loss(network.train()).backward()
        optimiser.step()

    return step


def monai_loss(given: Case, plan: Plan) -> Callable[[UNet], Tensor]:
    """The same sum as `loss_of`, from MONAI's parts where it has one."""
    from monai.losses import DiceLoss, DiffusionLoss, GlobalMutualInformationLoss
    from monai.networks.blocks import Warp

    weights, grid = plan.refine.weights, given.fixed.grid
    information = GlobalMutualInformationLoss(kernel_type="gaussian", num_bins=plan.refine.bins)
    overlap, smooth, move = DiceLoss(), DiffusionLoss(), Warp("bilinear", "border")
    assert given.fixed_labels is not None
    assert given.moving_labels is not None
    maps = (given.fixed_labels, given.moving_labels)
    fixed, moving = (torch.cat([labels.data == k for k in (22, 23, 24)])[None].float() for labels in maps)

    def loss(network: UNet) -> Tensor:
        field = warp(network, given).vectors[None]
        moved, moved_labels = move(given.moving.data[None], field), move(moving, field)
        rigid = dense_rigidity_parts(field[0], grid, given_mask).total
        return (
            weights.mutual_information * information(moved, given.fixed.data[None])
            + weights.dice * overlap(moved_labels, fixed)
            + weights.diffusion * smooth(field)
            + weights.rigidity * rigid
        )

    given_mask = maps[1].mask()[0]
    return loss


def peak_bytes() -> int:
    """Most memory this process has held. Linux hands ru_maxrss on from the process that started it, so not that there."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    from osteomorph.memory import peak_bytes as told

    return told()


def measure(name: str, folder: Path, shape: list[int], threads: int, repeats: int) -> dict[str, float]:
    """The quickest of ``repeats`` runs after one that is not counted; MONAI's, which is slow, runs once."""
    torch.set_num_threads(threads)
    run = contender(name, case(folder, shape))
    slow = name == "step MONAI"
    if not slow:
        run()
    clocks, processors = [], []
    for _ in range(1 if slow else repeats):
        clock, processor = time.perf_counter(), time.process_time()
        run()
        clocks.append(time.perf_counter() - clock)
        processors.append(time.process_time() - processor)
    return {"seconds": min(clocks), "processor_seconds": min(processors), "peak_gb": peak_bytes() / 2**30}


# -- all of them --------------------------------------------------------------------------------------------------------
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[320, 320, 96])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measure(given.one[0], Path(given.one[1]), given.shape, given.threads, given.repeats)))
        return
    print(f"{date.today()}, {platform.processor() or platform.machine()}, {given.threads} threads, torch {version('torch')}, ")
    print(f"{' x '.join(map(str, given.shape))} voxels, bfloat16 instructions: {has_bf16(torch.device('cpu'))}\n")
    print("| | seconds | processor seconds | peak GB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        case(Path(folder), given.shape)
        for name in given.only:
            options = ["--shape", *map(str, given.shape), "--threads", str(given.threads), "--repeats", str(given.repeats)]
            done = subprocess.run([sys.executable, __file__, "--one", name, folder, *options], capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"])[-1]
                print(f"| {CONTENDERS[name]} | {reason} | | |", flush=True)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            cells = (f"{found['seconds']:.2f}", f"{found['processor_seconds']:.2f}", f"{found['peak_gb']:.2f}")
            print(f"| {CONTENDERS[name]} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
