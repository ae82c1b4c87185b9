"""What a process that registers does before torch is imported: the command line does, and Python programs may."""

import os
import sys

from osteomorph.allocation import keep_freed_memory

SPINS = 3000
"""Looks of a waiting OpenMP thread before it sleeps, some microseconds."""

SWITCH_S = 5e-5
"""For which threads wait for Python's lock before they ask for it; by default a hundred times that."""


def settle() -> None:
    """Waiting threads sleep, freed memory is kept for the next step, Python's lock changes hands soon.

    It holds for the whole process, and as far as OpenMP goes only where it comes before ``import torch``. What the user set in
    the environment is left alone. torch's threads spin while they wait by default, which on a busy machine takes several times
    as long; some microseconds of it are quicker than none on an idle one.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    sys.setswitchinterval(SWITCH_S)
    keep_freed_memory()
