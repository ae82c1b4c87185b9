"""Items dealt out to threads, and memory that is kept between stages."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from osteomorph import allocation
from osteomorph.threads import beside, meanwhile, other_half, sharing, spread, threads


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


@pytest.mark.parametrize(("given", "taken"), [(1, 1), (2, 1), (4, 2)])
def test_work_goes_on_beside_what_comes_next_on_half_the_threads(given, taken):
    with threads(given):
        go_on = threading.Event()
        made = beside(lambda: (go_on.wait(10), torch.get_num_threads(), threading.current_thread().name))
        assert torch.get_num_threads() == given
        assert other_half() == max(1, given - taken)
        assert not made.done()
        go_on.set()
        told, count, name = made.result()
        assert (told, count) == (True, taken)
        assert name != threading.current_thread().name
        with pytest.raises(ZeroDivisionError):
            beside(lambda: 1 // 0).result()


def test_threads_are_shared_until_the_other_work_is_done_and_then_taken():
    with threads(2):
        go_on = threading.Event()
        other = beside(lambda: go_on.wait(10))
        with sharing(other.done):
            assert torch.get_num_threads() == 1
            assert list(spread(lambda n: n, range(3))) == [0, 1, 2]
            assert torch.get_num_threads() == 1
            go_on.set()
            other.result()
            assert list(spread(lambda n: n, range(3))) == [0, 1, 2]
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
        with sharing(lambda: True):
            assert torch.get_num_threads() == 2
        list(spread(lambda n: n, range(3)))  # outside nothing is shared
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("count", [1, 2])
def test_work_beside_a_block_is_done_at_its_end_whatever_happens_in_it(count):
    made = []
    with threads(count):
        with meanwhile(lambda: made.append(threading.get_ident())):
            assert torch.get_num_threads() == 1
        assert len(made) == 1
        assert (made[0] == threading.get_ident()) == (count == 1)
        with pytest.raises(KeyError), meanwhile(lambda: (time.sleep(0.1), made.append(0))):
            raise KeyError
        assert made[1:] == [0]
        with pytest.raises(ZeroDivisionError), meanwhile(lambda: 1 // 0):
            pass
        assert torch.get_num_threads() == count


@pytest.mark.parametrize(
    ("free", "used", "much"),
    [
        (allocation.HELD_BYTES - 1, allocation.USED_BYTES - 1, False),
        (allocation.HELD_BYTES, 0, True),
        (0, allocation.USED_BYTES, True),
    ],
)
def test_memory_is_trimmed_only_once_it_is_kept_and_much(monkeypatch, free, used, much):
    asked = []

    def libc(name):
        def call(*given):
            asked.append(name)
            return SimpleNamespace(fordblks=free, uordblks=used - used // 3, hblkhd=used // 3) if name == "mallinfo2" else 1

        return call

    monkeypatch.setattr(allocation, "_from_libc", libc)
    monkeypatch.setattr(allocation, "_kept", False)
    allocation.give_back_freed_memory()
    assert asked == []
    allocation.keep_freed_memory()
    allocation.give_back_freed_memory()
    trimmed = ["malloc_trim"] if much else []
    assert asked == ["mallopt", "mallopt", "mallopt", "mallinfo2", *trimmed]


@pytest.mark.skipif(allocation._from_libc("mallinfo2") is None, reason="not glibc 2.33 or later")
def test_freed_memory_is_told_in_bytes():
    blocks = [ctypes.create_string_buffer(50_000) for _ in range(400)]
    used, free = allocation._used_and_free_bytes()
    assert used > 20_000_000
    del blocks[::2]
    after_used, after_free = allocation._used_and_free_bytes()
    assert after_used < used - 5_000_000
    assert after_free > free + 5_000_000


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocation, "_from_libc", lambda name: None)
    monkeypatch.setattr(allocation, "_kept", False)
    allocation.keep_freed_memory()
    allocation.give_back_freed_memory()


SETTLED = """
import os, sys
from osteomorph.process import settle
settle()
said = [os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")]
print(*said, sys.getswitchinterval() < 1e-3, "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "PASSIVE 3000 True False"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None True False"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7 True False"),
    ],
)
def test_a_process_settles_before_torch_and_leaves_alone_what_the_user_set(given, expected):
    around = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    ran = subprocess.run([sys.executable, "-c", SETTLED], env=around | given, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == expected
