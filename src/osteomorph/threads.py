"""How many CPU threads torch takes, for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from osteomorph.errors import InputError


@contextmanager
def threads(wanted: int | None) -> Iterator[None]:
    """``with threads(1):`` for many short operations, which on more threads only wait for each other; None leaves it."""
    if wanted is not None and wanted < 1:
        raise InputError(f"--threads takes a number from 1 on, not {wanted}.")
    before = torch.get_num_threads()
    try:
        if wanted is not None:
            torch.set_num_threads(wanted)
        yield
    finally:
        torch.set_num_threads(before)
