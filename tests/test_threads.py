"""Items dealt out to threads, and memory that is kept between stages."""

import threading

import pytest
import torch

from osteomorph import allocation
from osteomorph.threads import spread, threads


@pytest.mark.parametrize("wanted", [1, 2])
def test_items_are_worked_on_in_order_whatever_the_threads(wanted):
    with threads(wanted):
        assert list(spread(lambda n: n * n, range(7))) == [n * n for n in range(7)]
        assert torch.get_num_threads() == wanted


def test_each_item_has_one_thread_and_the_caller_keeps_its_own():
    with threads(2):
        seen = list(spread(lambda _: (torch.get_num_threads(), threading.current_thread().name), range(4)))
        assert {count for count, _ in seen} == {1}
        assert threading.current_thread().name not in {name for _, name in seen}
        torch.ones(10).sum()
        assert torch.get_num_threads() == 2


def test_a_failure_comes_out_and_threads_are_as_before():
    with threads(2):
        with pytest.raises(ZeroDivisionError):
            list(spread(lambda n: 1 // n, [1, 0, 2]))
        assert torch.get_num_threads() == 2


def test_memory_is_trimmed_only_once_it_is_kept(monkeypatch):
    asked = []

    def libc(name):
        return lambda *given: asked.append((name, *given)) or 1

    monkeypatch.setattr(allocation, "_from_libc", libc)
    monkeypatch.setattr(allocation, "_kept", False)
    allocation.give_back_freed_memory()
    assert asked == []
    allocation.keep_freed_memory()
    allocation.give_back_freed_memory()
    assert [name for name, *_ in asked] == ["mallopt", "mallopt", "malloc_trim"]


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocation, "_from_libc", lambda name: None)
    monkeypatch.setattr(allocation, "_kept", False)
    allocation.keep_freed_memory()
    allocation.give_back_freed_memory()
