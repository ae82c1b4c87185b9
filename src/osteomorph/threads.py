"""How many CPU threads torch takes, for the length of a block."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

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


Item = TypeVar("Item")
Made = TypeVar("Made")


def spread(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """``map(work, items)`` in order, as many items at a time as torch has threads; each on one thread alone.

    For many short operations per item, which do not gain from threads of their own.
    """
    take_what_is_free()
    given, before = list(items), torch.get_num_threads()
    if min(before, len(given)) < 2:
        yield from map(work, given)
        return
    try:
        with ThreadPoolExecutor(min(before, len(given)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, given)
    finally:
        torch.set_num_threads(before)  # a thread's number is what later threads begin with


def beside(work: Callable[[], Made]) -> Future[Made]:
    """What work returns, or raises, once it is asked for; until then it goes on beside what comes next, on half the threads."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(1)
    try:
        pool.submit(_take, max(1, before // 2)).result()
        return pool.submit(work)
    finally:
        torch.set_num_threads(before)
        pool.shutdown(wait=False)


def other_half() -> int:
    """Threads that `beside` leaves: two that share a processor would wait for each other at every operation."""
    count = torch.get_num_threads()
    return max(1, count - count // 2)


@contextmanager
def sharing(done: Callable[[], bool]) -> Iterator[None]:
    """The block takes half of the threads while something goes on `beside` it, and all from the first `spread` after that is
    done."""
    token = _SHARED.set((done, torch.get_num_threads()))
    try:
        with threads(other_half()):
            take_what_is_free()
            yield
    finally:
        _SHARED.reset(token)


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Work goes on beside the block, which is `sharing` threads with it; at the end both are done. On one thread it comes
    first."""
    if torch.get_num_threads() < 2:
        work()
        yield
        return
    other = beside(work)
    try:
        with sharing(other.done):
            yield
    finally:
        wait([other])
    other.result()


_SHARED: ContextVar[tuple[Callable[[], bool], int] | None] = ContextVar("shared", default=None)


def take_what_is_free() -> None:
    """All threads, where those of a block that is `sharing` them are no longer shared."""
    shared = _SHARED.get()
    if shared is not None and shared[0]():
        torch.set_num_threads(shared[1])


def _take(count: int) -> None:
    torch.set_num_threads(count)
    torch.get_num_threads()  # or the thread would still begin with what another one sets meanwhile
