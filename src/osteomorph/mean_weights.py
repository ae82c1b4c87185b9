"""The mean of several networks trained from one trunk: ``python -m osteomorph.mean_weights OUT WEIGHTS [WEIGHTS ...]``.

Networks that part late lie in one basin, where their mean is better than most of them (Wortsman et al., 2022).
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from osteomorph import __version__
from osteomorph.bone_network import load_bone_network, save_bone_network
from osteomorph.errors import InputError


@torch.no_grad()
def mean_of(weights: Sequence[Path], out: Path) -> str:
    """Writes the mean of bone networks; its header says of which. Returns the file's SHA-256.

    Raises InputError: no file, one that holds no bone network, or networks of other widths.
    """
    if not weights:
        raise InputError("There are no weights to take the mean of. Give one file or more.")
    read = [load_bone_network(path) for path in weights]
    mean = read[0][0]
    other = next((path for path, (network, _) in zip(weights, read, strict=True) if network.widths != mean.widths), None)
    if other is not None:
        raise InputError(f"{other} is a network of other widths than {weights[0]}. Give networks of one kind.")
    states = [network.state_dict() for network, _ in read]
    mean.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    parts = [
        {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "about": about}
        for path, (_, about) in zip(weights, read, strict=True)
    ]
    return save_bone_network(out, mean, {"version": __version__, "mean_of": parts})


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("weights", type=Path, nargs="+")
    told = parser.parse_args(given)
    print(mean_of(told.weights, told.out))


if __name__ == "__main__":
    main()
