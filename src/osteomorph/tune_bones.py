"""The network in the box on CTs of one's own: a few hundred steps on their pairs and on drawn ones, then the head of kinds."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from osteomorph import train_bones, train_kinds
from osteomorph.bone_anatomies import OwnCt
from osteomorph.bone_network import SHIPPED, load_bone_network
from osteomorph.descent import Progress
from osteomorph.errors import InputError
from osteomorph.network import has_bf16
from osteomorph.shipped import FOLDER
from osteomorph.train_bones import Settings

DRAWN: Mapping[str, int] = {"trunk": 2, "lumbar": 4, "thorax": 2, "knee": 2, "hips": 3}
"""Patients by field of view, that what was learned before is not forgotten: others than those of the shipped training."""

SEED = 1000
STEPS = 300


def settings_of(steps: int, seed: int) -> Settings:
    """As in the last part of the shipped network's training, half of the steps on the CTs that are given."""
    return Settings(
        steps=steps,
        pool=300,
        seed=seed,
        learning_rate=3e-4,
        falling=1.0,
        patch=64,
        real_share=0.5,
        empty=0.1,
        every=50,
        bf16=has_bf16(torch.device("cpu")),
    )


def tune(
    folder: Path,
    own: Sequence[OwnCt],
    begin: Path | None = None,
    steps: int = STEPS,
    seed: int = SEED,
    shared: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Trains, or goes on in the same folder; returns the weights' path, ``bones.safetensors`` in it.

    own: CTs in HU with labels of their bones; what looks like bone and has none is not learned from. begin: weights of
    `osteomorph.train_bones` or of this, the shipped ones by default. shared: folder of patients and pairs, for several
    trainings. Raises InputError: files that cannot be learned from, or a folder that holds another training.
    """
    if not own:
        raise InputError("There is no CT to learn from. Give at least one, with labels of its bones.")
    first = FOLDER / SHIPPED if begin is None else begin
    settings, out, parts = settings_of(steps, seed), folder / SHIPPED, folder / "training"
    common = (shared or folder / "shared") / f"seed{seed}"  # patients and pairs are another seed's others
    rest = train_bones.run(parts, settings, None, (), first, common, own=own, drawn=DRAWN, progress=progress)
    digest = hashlib.sha256(rest.read_bytes()).hexdigest()
    if out.is_file() and load_bone_network(out)[1].get("rest", {}).get("sha256") == digest:
        return out
    train_kinds.run(rest, out, common, None, (), settings.pool, seed, own, DRAWN, progress)
    return out
