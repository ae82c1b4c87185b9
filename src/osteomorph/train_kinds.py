"""The last step of the shipped network's training: ``python -m osteomorph.train_kinds WEIGHTS OUT --shared FOLDER``.

The rest of the network stays as it is. What it knows around every bone of the simulated pairs is gathered, in the MR and in the
CT, and the head that tells a bone's kind is fitted to it as a multinomial logistic regression.
"""

import argparse
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from osteomorph import __version__
from osteomorph.bone_anatomies import DRAWN, REAL, OwnCt
from osteomorph.bone_kinds import described
from osteomorph.bone_network import KINDS, SPACING_MM, BoneNetwork, load_bone_network, save_bone_network
from osteomorph.bone_samples import StoredPair, pairs_of
from osteomorph.descent import Progress
from osteomorph.errors import InputError
from osteomorph.network import has_bf16
from osteomorph.simulate.naming import BONE_LABELS
from osteomorph.threads import threads

LEAST_MM3 = 3000.0
"""Of a bone in a pair, to be learned from."""

DECAY = 1e-3
"""Of the head's weights, for inputs of unit variance."""

ITERATIONS = 200

HELD = 5
"""Every so many drawn patients one is held out to see how often the head is right; the head that is written saw them all."""


@final
class Seen(NamedTuple):
    """One bone of one image: whose, whether a CT shows it, its kind's number, and what is known of it."""

    patient: str
    ct: bool
    kind: int
    values: Float[Tensor, " d"]


def kind_of(label: int) -> int:
    """Number in `KINDS` of a bone that goes by the ids of `BONE_LABELS`."""
    name = {number: name for name, number in BONE_LABELS.items()}.get(label, "other")
    if name[0] in "CTL" and name[1:].isdigit():
        return KINDS.index("vertebra")
    return KINDS.index(name.split("_")[0]) if name.split("_")[0] in KINDS else KINDS.index("other")


def bones_of(network: BoneNetwork, patient: str, pair: StoredPair) -> Iterator[Seen]:
    """Every bone of a pair's two images."""
    for image, labels, ct in zip(pair.images, pair.labels, (False, True), strict=True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=has_bf16(torch.device("cpu"))):
            context = network.bones_in_context(image[None, None], torch.tensor([ct]))[1][0]
        numbers = labels.clamp(min=0).numpy().astype(np.int32)
        sizes = np.bincount(numbers.ravel()) * SPACING_MM**3
        for label, values in described(context, numbers, network.context_stride).items():
            if sizes[label] >= LEAST_MM3:
                yield Seen(patient, ct, kind_of(label), values)


def fitted(values: Float[Tensor, "n d"], kinds: Int[Tensor, " n"]) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """Weight and bias of the head."""
    mean, scale = values.mean(0), values.std(0).clamp(min=1e-3)
    inputs = (values - mean) / scale
    weight, bias = torch.zeros(len(KINDS), values.shape[1], requires_grad=True), torch.zeros(len(KINDS), requires_grad=True)
    descent = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> float:
        descent.zero_grad()
        total = cross_entropy(inputs @ weight.T + bias, kinds) + DECAY * weight.square().sum()
        total.backward()
        return float(total.detach())

    descent.step(loss)
    own = weight.detach() / scale
    return own, bias.detach() - own @ mean


def right(head: tuple[Tensor, Tensor], rows: Sequence[Seen], sure: float = 0.9) -> str:
    """How often the head is right, and how often where it is sure."""
    if not rows:
        return "no bones"
    chances = (torch.stack([row.values for row in rows]) @ head[0].T + head[1]).softmax(1)
    hit = chances.argmax(1) == torch.tensor([row.kind for row in rows])
    certain = chances.amax(1) >= sure
    share = float(hit[certain].float().mean()) if certain.any() else float("nan")
    return (
        f"{len(rows)} bones, {float(hit.float().mean()):.1%} right; {float(certain.float().mean()):.0%} sure, {share:.1%} right"
    )


def run(
    weights: Path,
    out: Path,
    shared: Path,
    data: Path | None,
    real: Sequence[str],
    pool: int,
    seed: int,
    own: Sequence[OwnCt] = (),
    drawn: Mapping[str, int] = DRAWN,
    progress: Progress | None = None,
) -> str:
    """Writes the network with its head. Returns the file's SHA-256. shared: folder of patients and pairs of `train_bones`."""
    network, about = load_bone_network(weights)
    pairs = pairs_of(shared, seed, data, real, own, drawn, progress)
    simulated = [name for name, patient in pairs.patients.items() if patient.atlas.scan is None]
    rows: list[Seen] = []
    drawn_ones, scanned = pairs.numbers(pool)
    for count, number in enumerate(sorted(drawn_ones + scanned)):
        rows += bones_of(network, pairs.whose(number), pairs[number])
        if progress is not None:
            progress("kinds", count, pool)
        elif count % 100 == 99:
            print(f"{count + 1} pairs, {len(rows)} bones", flush=True)
    if not rows:
        raise InputError("No pair shows a bone. Give a larger --pool.")
    held = set(simulated[::HELD])
    some = [row for row in rows if row.patient not in held]
    parted = fitted(torch.stack([row.values for row in some]), torch.tensor([row.kind for row in some]))
    told = {}
    for name, ct in (("CT", True), ("MR", False)):
        told[name] = right(parted, [row for row in rows if row.patient in held and row.ct == ct])
        if progress is None:
            print(f"{len(held)} patients held out, {name}: {told[name]}", flush=True)
    weight, bias = fitted(torch.stack([row.values for row in rows]), torch.tensor([row.kind for row in rows]))
    with torch.no_grad():
        network.kind_head.weight.copy_(weight)
        network.kind_head.bias.copy_(bias)
    kinds = {
        "version": __version__, "pool": pool, "seed": seed, "drawn": dict(drawn), "real": list(real),
        "own": [one.name for one in own], "held_out": told,
        "rest": {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), "about": about},
    }  # fmt: skip
    return save_bone_network(out, network, kinds)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, required=True, help="folder of patients and pairs, as of train_bones")
    parser.add_argument("--data", type=Path, help="folder of the real CTs; without it only drawn patients are seen")
    parser.add_argument("--real", nargs="*", choices=list(REAL), default=list(REAL))
    parser.add_argument("--pool", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    told = parser.parse_args(given)
    with threads(told.threads):
        print(run(told.weights, told.out, told.shared, told.data, told.real if told.data else (), told.pool, told.seed))


if __name__ == "__main__":
    main()
