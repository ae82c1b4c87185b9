"""Training of the shipped network: ``python -m osteomorph.train_bones FOLDER --data VOLUMES``; run again, it goes on.

FOLDER gets the patients as voxels, the simulated pairs, ``log.csv``, ``checkpoint.pt`` and the weights, which are averages over
the last few hundred steps and are written anew with every row of the log. The number of steps may be changed between two runs;
what it sets is how the learning rate falls. ``--shared`` is a folder of patients and pairs for several trainings, ``--from``
weights to begin with.
"""

import argparse
import copy
import csv
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from osteomorph import __version__
from osteomorph.bone_anatomies import DRAWN, REAL, OwnCt, Patient, drawn_patient, kept
from osteomorph.bone_losses import losses
from osteomorph.bone_network import SHIPPED, WIDTHS, BoneNetwork, load_bone_network, save_bone_network
from osteomorph.bone_samples import PATCH_VOXELS, Pairs, StoredPair, pairs_of, patches_of
from osteomorph.descent import Progress
from osteomorph.errors import InputError
from osteomorph.network import has_bf16
from osteomorph.threads import threads
from osteomorph.training_folder import write_tensors, write_whole


@final
@dataclass(frozen=True)
class Settings:
    """steps: of one pair each. pool: pairs there are. falling: share of the steps over which the learning rate falls to 0.

    real_share: of the steps, are of a real CT where there is one. porous: of the CTs, have thin trabecular bone. balanced: see
    `losses`. begun_from: SHA-256 of the weights it began with. remembered: steps that the weights are averaged over, about.
    every: steps of a row of the log. bf16: whether layers compute in bfloat16. patch: voxels along each side of the patches.
    empty: share of the steps that see nothing but noise. own_cts: names of a user's CTs.
    """

    steps: int = 2800
    pool: int = 600
    seed: int = 0
    learning_rate: float = 1e-3
    warming: int = 20
    falling: float = 0.3
    decay: float = 0.01
    remembered: int = 200
    every: int = 200
    patch: int = PATCH_VOXELS
    widths: tuple[int, ...] = WIDTHS
    bf16: bool = True
    real_share: float = 0.3
    porous: float = 0.4
    balanced: bool = True
    empty: float = 0.0
    begun_from: str | None = None
    own_cts: tuple[str, ...] = ()

    def pair(self, step: int, drawn: Sequence[int], real: Sequence[int]) -> int:
        """Which of the numbers a step takes."""
        generator = np.random.default_rng((self.seed, step, 2))
        among = real if real and (not drawn or generator.random() < self.real_share) else drawn
        return int(generator.choice(among))

    def rate(self, step: int) -> float:
        """Learning rate: up, level, then down along a cosine."""
        start = (1 - self.falling) * self.steps
        down = min(max(step - start, 0.0) / max(self.steps - start, 1.0), 1.0)
        return self.learning_rate * min(1.0, (step + 1) / self.warming) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * down)))


@final
class Training:
    """All that a step changes; `step` and `saved` are what a run that was stopped goes on from."""

    def __init__(self, settings: Settings, begin: BoneNetwork | None = None) -> None:
        """begin: weights to start with, random ones by default. Raises InputError: they are of another network."""
        self.settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = BoneNetwork(settings.widths)
        if begin is not None:
            if begin.widths != network.widths:
                raise InputError(f"The weights have widths {begin.widths}, not {network.widths}. Give others to --from.")
            network.load_state_dict(begin.state_dict())
        self.network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).eval()
        weights = [w for w in self.network.parameters() if w.ndim > 1]
        others = [w for w in self.network.parameters() if w.ndim <= 1]
        groups = [{"params": weights, "weight_decay": settings.decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
        self.step = 0
        self.log: list[dict[str, float]] = []

    def advance(self, pair: StoredPair) -> dict[str, float]:
        """One step; what its loss was made of."""
        settings, step = self.settings, self.step
        patches = patches_of(
            pair, np.random.default_rng((settings.seed, step, 3)), settings.patch, True, settings.porous, settings.empty
        )
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate(step)
        self.optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            found = self.network.train()(patches.images, MR_AND_CT)
        parts = losses(found, patches, settings.balanced)
        if not torch.isfinite(parts.total):
            raise InputError(f"The loss became {float(parts.total)} in step {step}. Give a lower --learning-rate.")
        parts.total.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        with torch.no_grad():
            keep = min(1 - 1 / settings.remembered, self.step / (self.step + 10))
            for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        values = {name: float(torch.as_tensor(value).detach()) for name, value in parts._asdict().items()}
        return {"loss": float(parts.total.detach()), **values}

    def saved(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "log": self.log,
            "settings": asdict(self.settings),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Raises InputError: what was saved is of other settings, the number of steps aside."""
        mine = asdict(self.settings)
        other = [name for name, value in saved["settings"].items() if mine[name] != value and name != "steps"]
        if other:
            raise InputError(f"The training has another {', another '.join(other)}. Give another folder.")
        self.network.load_state_dict(saved["network"])
        self.average.load_state_dict(saved["average"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step, self.log = saved["step"], saved["log"]


@torch.no_grad()
def validate(network: BoneNetwork, pairs: Pairs, count: int, bf16: bool) -> dict[str, float]:
    """Means over the first pairs of patients that no step saw, not disturbed: of the losses, and Dice of bone in MR and CT."""
    rows = []
    for number in range(count):
        patches = patches_of(pairs[number], np.random.default_rng((number, 4)), augment=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = network(patches.images, MR_AND_CT)
        row = {name: float(value) for name, value in losses(found, patches)._asdict().items()}
        known, bone = patches.labels >= 0, patches.labels > 0
        predicted = (found.bone[:, 0] > 0) & known
        for side, name in enumerate(("dice_mr", "dice_ct")):
            both = float((predicted[side] & bone[side]).sum())
            row[name] = 2 * both / max(float(predicted[side].sum() + bone[side].sum()), 1.0)
        wrong = (found.offset_mm - patches.offset_mm).norm(dim=1)[bone]
        row["offset_mm"] = float(wrong.median()) if len(wrong) else 0.0
        rows.append(row)
    return {f"validation_{name}": float(np.mean([row[name] for row in rows])) for name in rows[0]}


def run(
    folder: Path,
    settings: Settings,
    data: Path | None,
    real: Sequence[str],
    begin: Path | None = None,
    shared: Path | None = None,
    checked: int = 8,
    own: Sequence[OwnCt] = (),
    drawn: Mapping[str, int] = DRAWN,
    progress: Progress | None = None,
) -> Path:
    """Trains, or goes on. Returns the weights' path. begin, shared: as ``--from`` and ``--shared``. own: a user's CTs.

    drawn: patients by field of view. progress: told of instead of printing the log's rows.
    """
    network, origin = (None, None) if begin is None else load_bone_network(begin)
    if begin is not None:
        settings = replace(settings, begun_from=hashlib.sha256(begin.read_bytes()).hexdigest())
    settings = replace(settings, own_cts=tuple(one.name for one in own))
    training = Training(settings, network)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.is_file():
        training.restore(torch.load(checkpoint, map_location="cpu", weights_only=False))
    common = shared or folder
    pairs = pairs_of(common, settings.seed, data, real, own, drawn, progress)
    folder.mkdir(parents=True, exist_ok=True)
    simulated, scanned = pairs.numbers(settings.pool)
    held = Pairs(_held_out(common, settings.seed) if checked else (), common / "held", settings.seed + 1)
    began, sums = time.process_time(), []
    out = folder / SHIPPED
    while training.step < settings.steps:
        if progress is not None:
            progress("train", training.step, settings.steps)
        sums.append(training.advance(pairs[settings.pair(training.step, simulated, scanned)]))
        if training.step % settings.every and training.step < settings.steps:
            continue
        means = {name: float(np.mean([row[name] for row in sums])) for name in sums[0]}
        row = {"step": float(training.step), "processor_seconds": time.process_time() - began, **means}
        if checked:
            row |= validate(training.average, held, checked, settings.bf16)
        training.log.append(row)
        if progress is None:
            print(" ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
        began, sums = time.process_time(), []
        write_tensors(checkpoint, training.saved())
        write_whole(folder / "log.csv", _table(training.log))
        _write(out, training, len(pairs.patients), drawn, real, origin)
    return out


MR_AND_CT = torch.tensor([False, True])
"""Of the two images of a pair, which is a CT."""

HELD_OUT = (("lumbar", 0), ("thorax", 2), ("knee", 3), ("pelvis", 4))
"""View and number of drawn patients, of the seed after the training's, that it is checked on."""


def _held_out(folder: Path, seed: int) -> list[Patient]:
    return [kept(folder / "held" / f"{v}{n}.pt", partial(drawn_patient, v, seed + 1, n)) for v, n in HELD_OUT]


def _write(
    path: Path,
    training: Training,
    seen: int,
    drawn: Mapping[str, int],
    real: Sequence[str],
    origin: Mapping[str, Any] | None,
) -> None:
    settings = training.settings
    about = {
        "version": __version__,
        "step": training.step,
        "settings": asdict(settings),
        "drawn": dict(drawn),
        "patients": seen,
        "real": {name: REAL[name].licence for name in real},
        "last": training.log[-1],
        "processor_seconds": sum(row["processor_seconds"] for row in training.log),
    }
    if origin is not None:
        about["begun_from"] = {"sha256": settings.begun_from, "about": origin}
    save_bone_network(path, training.average, about)


def _table(rows: list[dict[str, float]]) -> bytes:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the real CTs; without it only drawn patients are seen")
    parser.add_argument(
        "--real", nargs="*", choices=list(REAL), default=list(REAL), help="of them; those left out are held out"
    )
    parser.add_argument(
        "--from", dest="begin", type=Path, metavar="WEIGHTS", help="weights of an earlier training to begin with"
    )
    parser.add_argument("--shared", type=Path, help="folder of patients and pairs, for several trainings of one seed")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--pool", type=int, default=Settings.pool)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--learning-rate", type=float, default=Settings.learning_rate)
    parser.add_argument("--falling", type=float, default=Settings.falling, help="share of the steps over which the rate falls")
    parser.add_argument("--real-share", type=float, default=Settings.real_share, help="of the steps, are of a real CT")
    parser.add_argument("--porous", type=float, default=Settings.porous, help="share of the CTs that lose trabecular bone")
    parser.add_argument(
        "--balanced", action=argparse.BooleanOptionalAction, default=Settings.balanced, help="small bones count"
    )
    parser.add_argument("--empty", type=float, default=Settings.empty, help="share of the steps that see noise alone")
    parser.add_argument("--patch", type=int, default=Settings.patch, help="voxels along each side of what a step sees")
    parser.add_argument("--threads", type=int, default=1)
    told = parser.parse_args(given)
    settings = Settings(
        told.steps, told.pool, told.seed, told.learning_rate, falling=told.falling, patch=told.patch,
        bf16=has_bf16(torch.device("cpu")), real_share=told.real_share, porous=told.porous,
        balanced=told.balanced, empty=told.empty,
    )  # fmt: skip
    with threads(told.threads):
        print(run(told.folder, settings, told.data, told.real if told.data else (), told.begin, told.shared))


if __name__ == "__main__":
    main()
