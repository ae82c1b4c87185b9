"""Training a network on the pairs of a cohort (thesis, 3.4 and 4.1.1): one pair a step, the best epoch by validation kept."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from osteomorph import __version__
from osteomorph.cohort import Cohort
from osteomorph.descent import Progress
from osteomorph.errors import InputError
from osteomorph.model_card import model_card
from osteomorph.network import UNet, load_network, save_network, warp
from osteomorph.objective import Alignment, Objective
from osteomorph.parallel import Workers
from osteomorph.plan import Level, Plan
from osteomorph.refine import rigid_frame, terms
from osteomorph.shipped import weights_file
from osteomorph.simulate.dataset import SimulatedPairs
from osteomorph.training_folder import CARD, TrainingFolder, cohort_digest, sha256, write_whole
from osteomorph.training_pairs import TrainingCase, TrainingPairs, check_fold, drawn_case, fold_of

EVERY_VOXEL = Level(control_mm=1.0, iterations=0, step_mm=1.0)
"""Training has no coarser levels."""


def train(
    cohort: Cohort,
    fold: int,
    plan: Plan,
    folder: Path,
    *,
    seed: int = 0,
    cache: Path | None = None,
    observed: bool = True,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    weights: Path | None = None,
    simulated: SimulatedPairs | None = None,
) -> Path:
    """The path of ``weights.safetensors``: the network of the epoch with the least validation loss.

    Minimised by Adam is the plan's ``refine.weights`` over every voxel. Called again with the same arguments it goes on after
    the last whole epoch, on a CPU to the same bits, and returns at once where it had finished. Under ``torchrun`` the
    processes share each epoch's pairs and average their gradients.

    folder: made; holds ``train.json`` (the request), ``log.csv``, ``checkpoint.pt`` until the end, then ``model_card.md``.
    seed: of the first weights and of the order of pairs.
    cache: where carried pairs are kept; ``folder/carried`` by default. Several trainings may share one.
    observed: train on labels with a segmentation's errors where the cohort has them.
    weights: a network to begin from, with a new optimiser; a file, or a name that comes with the package.
    simulated: pairs to train on in place of the fold's, drawn anew in every epoch, as many as the fold has.

    Raises InputError before the first epoch for a cohort, plan or folder that does not fit, naming the pair; and later where
    the loss is no longer a number.
    """
    weights = None if weights is None else weights_file(weights)
    workers = Workers.join(device)
    tell: Progress = progress if progress is not None and workers.first else _silent
    out, parts = TrainingFolder(folder), fold_of(cohort, fold)
    state = _State.begin(plan, seed, weights, workers.device)
    request = _request(cohort, fold, plan, seed, observed, weights, simulated)
    if out.weights.is_file():
        out.open(request)
        return out.weights
    check_fold(cohort, fold, plan, observed, tell)
    if workers.first:
        out.open(request)
    workers.wait()
    state.restore(out.checkpoint())
    pairs = TrainingPairs(cohort, plan, cache or out.path / "carried", observed, workers)
    pairs.carry([*parts.validation, *([] if simulated else parts.train)], tell)

    def case_of(epoch: int, number: int) -> TrainingCase:
        return pairs[parts.train[number]] if simulated is None else drawn_case(simulated, epoch * steps + number)

    steps = len(parts.train)
    total = plan.train.epochs * steps
    tell("train", state.epoch * steps, total)
    while state.epoch < plan.train.epochs:
        began, epoch = time.perf_counter(), state.epoch + 1
        order = np.random.default_rng((seed, epoch)).permutation(steps).tolist()
        row = _train_epoch(state, plan, order, partial(case_of, epoch), workers, tell, total)
        if epoch % plan.train.validate_every == 0 or epoch == plan.train.epochs:
            workers.average_statistics(state.network)
            row |= _validate(state.network, plan, [*parts.validation], pairs, workers)
            state.keep_best(row["validation_loss"], epoch)
        state.epoch = epoch
        state.log.append({"epoch": float(epoch), "seconds": time.perf_counter() - began, **row})
        if workers.first:
            out.save_log(state.log)
            out.save_checkpoint(state.saved())
        workers.wait()
    if workers.first:
        _write_result(out, cohort, fold, plan, seed, state, observed, simulated is not None)
    workers.wait()
    return out.weights


def _train_epoch(
    state: "_State",
    plan: Plan,
    order: list[int],
    case_of: Callable[[int], TrainingCase],
    workers: Workers,
    tell: Progress,
    total: int,
) -> dict[str, float]:
    """One pass; the mean over its pairs of the loss and of every term."""
    network = state.network.train()
    network.checkpointing = plan.train.checkpointing
    sums = _Sums(plan)
    rounds = -(-len(order) // workers.size)
    for step in range(rounds):
        at_once = order[step * workers.size : (step + 1) * workers.size]
        state.optimiser.zero_grad()
        if workers.rank < len(at_once):
            loss, values = loss_of(network, case_of(at_once[workers.rank]), plan)
            if not torch.isfinite(loss):
                raise InputError(
                    f"The loss became {float(loss)} in epoch {state.epoch + 1} ({values}). Give a plan with a lower "
                    "train.learning_rate."
                )
            loss.backward()
            sums.add(loss, values)
        workers.average_gradients(network.parameters(), len(at_once))
        state.optimiser.step()
        tell("train", state.epoch * len(order) + min((step + 1) * workers.size, len(order)), total)
    return sums.means("train", workers)


def _validate(network: UNet, plan: Plan, ids: list[str], pairs: TrainingPairs, workers: Workers) -> dict[str, float]:
    network.eval()
    sums = _Sums(plan)
    with torch.no_grad():
        for pair_id in workers.share(ids):
            sums.add(*loss_of(network, pairs[pair_id], plan))
    return sums.means("validation", workers)


def loss_of(network: UNet, pair: TrainingCase, plan: Plan) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum of the plan's terms at the network's field, and each term's own value."""
    field = warp(network, pair.case, plan.train.channels_last, plan.train.bf16)
    frame = rigid_frame(plan.refine, pair.case)
    alignment = Alignment(pair.case, field, rigid_labels=pair.rigid, rigid_frame=frame, memo={"shared": list(pair.shared)})
    return Objective(terms(plan.refine, EVERY_VOXEL, pair.case, pair.rigid))(alignment)


@final
class _Sums:
    """Of the loss and the terms over pairs, in float64."""

    def __init__(self, plan: Plan) -> None:
        self.names = ["loss", *(name for name, weight in plan.refine.weights if weight > 0)]
        self.values = dict.fromkeys([*self.names, "count"], 0.0)

    def add(self, loss: Tensor, values: Mapping[str, float]) -> None:
        for name, value in {"loss": float(loss.detach()), **values, "count": 1.0}.items():
            self.values[name] += value

    def means(self, part: str, workers: Workers) -> dict[str, float]:
        held = torch.tensor(list(self.values.values()), dtype=torch.float64, device=workers.device)
        *values, count = workers.summed(held).tolist()
        return {f"{part}_{name}": value / count for name, value in zip(self.names, values, strict=True)}


@final
@dataclass
class _State:
    """All that an epoch changes."""

    network: UNet
    optimiser: torch.optim.Optimizer
    epoch: int
    best: dict[str, Any]
    log: list[dict[str, float]]

    @classmethod
    def begin(cls, plan: Plan, seed: int, weights: Path | None, device: torch.device) -> "_State":
        """Before the first epoch."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = UNet(plan.network)
        if weights is not None:
            network = load_network(weights)[0]
            if network.plan != plan.network:
                raise InputError(f"{weights} is not the network that the plan asks for. Give its own plan, or other weights.")
        layout = torch.channels_last_3d if plan.train.channels_last else torch.contiguous_format
        network = network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        optimiser = torch.optim.Adam(network.parameters(), lr=plan.train.learning_rate, betas=plan.train.betas)
        return cls(network, optimiser, 0, {"loss": float("inf"), "epoch": 0, "network": {}}, [])

    def keep_best(self, loss: float, epoch: int) -> None:
        if loss < self.best["loss"]:
            self.best = {"loss": loss, "epoch": epoch, "network": _on_cpu(self.network)}

    def saved(self) -> dict[str, Any]:
        state = {"network": _on_cpu(self.network), "optimiser": self.optimiser.state_dict()}
        return {**state, "epoch": self.epoch, "best": self.best, "log": self.log}

    def restore(self, saved: dict[str, Any] | None) -> None:
        if saved is not None:
            self.network.load_state_dict(saved["network"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.epoch, self.best, self.log = saved["epoch"], saved["best"], saved["log"]


def _on_cpu(network: UNet) -> dict[str, Tensor]:
    return {name: copy.deepcopy(value.detach().cpu()) for name, value in network.state_dict().items()}


def _request(
    cohort: Cohort, fold: int, plan: Plan, seed: int, observed: bool, weights: Path | None, simulated: SimulatedPairs | None
) -> dict[str, Any]:
    """What must be the same for a folder to be gone on with."""
    request = {
        "plan": plan.model_dump(mode="json"),
        "cohort": cohort_digest(cohort, fold),
        "fold": fold,
        "seed": seed,
        "labels": "observed" if observed else "exact",
        "first weights": None if weights is None else sha256(weights),
        "simulation": None,
    }
    if simulated is not None:
        told = [len(simulated.atlases), list(simulated.shape), simulated.spacing_mm, simulated.seed, list(simulated.contrasts)]
        request["simulation"] = told
    return request


def _write_result(
    out: TrainingFolder, cohort: Cohort, fold: int, plan: Plan, seed: int, state: _State, observed: bool, simulated: bool
) -> None:
    if not state.best["network"]:
        raise InputError("No epoch had a validation loss that is a number. Give a plan with a lower train.learning_rate.")
    parts = cohort.folds[fold]
    about = {
        "version": __version__,
        "fold": fold,
        "seed": seed,
        "cohort_sha256": cohort_digest(cohort, fold),
        "train": len(parts.train),
        "validation": len(parts.validation),
        "pairs": "simulated on the fly" if simulated else "the fold's",
        "labels": "observed" if observed else "exact",
        "names": {str(label): name for label, name in cohort.names.items()},
        "cohort": {name: str(value) for name, value in cohort.about.items()},
        "best_epoch": state.best["epoch"],
        "epochs": state.epoch,
        "validation_loss": state.best["loss"],
        "seconds": sum(row["seconds"] for row in state.log),
    }
    network = UNet(plan.network)
    network.load_state_dict(state.best["network"])
    write_whole(out.path / CARD, model_card(network, plan, about, state.log).encode())
    save_network(out.weights, network, plan, about)
    out.finish()


def _silent(stage: str, done: int, total: int) -> None:
    """No listener."""
