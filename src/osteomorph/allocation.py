"""How this process gets memory from the system and gives it back. Nothing here imports torch: it is set before."""

import ctypes
from collections.abc import Callable
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Of glibc's ``mallopt``."""

KEPT_BYTES = 1 << 28
"""Freed memory at the end of the heap from which on it goes back to the system at once."""

LARGEST_BYTES = 1 << 28
"""Blocks from this size on are given back as soon as they are freed."""

HELD_BYTES = 3 << 28
"""Freed memory from which on what was kept goes back between stages: fetching it again took a twentieth of a registration."""

USED_BYTES = 2 << 30
"""Memory in use from which on it goes back in any case."""

_kept = False


class _Usage(ctypes.Structure):
    """glibc's ``struct mallinfo2``; bytes in blocks of their own, in use in its heaps, and free there."""

    _fields_ = (
        ("before", ctypes.c_size_t * 4),
        ("hblkhd", ctypes.c_size_t),
        ("between", ctypes.c_size_t * 2),
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    )


def keep_freed_memory() -> None:
    """From now on freed memory is used again rather than given back, large blocks too: the page faults of large blocks took a
    quarter of a registration's processor time. Threads share one heap, since what they free on heaps of their own goes back all
    the same. Does nothing where the C library is not glibc."""
    global _kept
    mallopt = _from_libc("mallopt")
    if mallopt is not None:
        settings = ((MMAP_THRESHOLD, LARGEST_BYTES), (TRIM_THRESHOLD, KEPT_BYTES), (ARENA_MAX, 1))
        _kept = all([bool(mallopt(which, value)) for which, value in settings])


def give_back_freed_memory() -> None:
    """What was kept goes back where it or what is in use is much, so that holes between blocks do not add up from stage to
    stage."""
    trim = _from_libc("malloc_trim") if _kept else None
    if trim is None:
        return
    used, free = _used_and_free_bytes()
    if free >= HELD_BYTES or used >= USED_BYTES:
        trim(0)


def _used_and_free_bytes() -> tuple[float, float]:
    """Memory in use, and freed memory that was kept; infinite where the C library does not tell."""
    usage: Any = _from_libc("mallinfo2")
    if usage is None:
        return float("inf"), float("inf")
    usage.restype = _Usage
    told = usage()
    return float(told.hblkhd + told.uordblks), float(told.fordblks)


def _from_libc(name: str) -> Callable[..., Any] | None:
    try:
        found: Callable[..., Any] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return found
