"""How this process gets memory from the system and gives it back. Nothing here imports torch: it is set before."""

import ctypes
from collections.abc import Callable
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of glibc's ``mallopt``."""

KEPT_BYTES = 1 << 28
"""Freed memory at the end of the heap from which on it goes back to the system at once."""

LARGEST_BYTES = 1 << 28
"""Blocks from this size on are given back as soon as they are freed."""

_kept = False


def keep_freed_memory() -> None:
    """From now on freed memory is used again rather than given back, large blocks too: the page faults of large blocks took a
    quarter of a registration's processor time. Does nothing where the C library is not glibc."""
    global _kept
    mallopt = _from_libc("mallopt")
    if mallopt is not None:
        _kept = bool(mallopt(MMAP_THRESHOLD, LARGEST_BYTES)) and bool(mallopt(TRIM_THRESHOLD, KEPT_BYTES))


def give_back_freed_memory() -> None:
    """What was kept goes back, so that holes between blocks that are in use do not add up from one stage to the next."""
    trim = _from_libc("malloc_trim") if _kept else None
    if trim is not None:
        trim(0)


def _from_libc(name: str) -> Callable[..., Any] | None:
    try:
        found: Callable[..., Any] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return found
