"""Signals end a command even where a library swallows their exception."""

import os
import signal
import subprocess
import sys

import pytest

from osteomorph import stopping
from osteomorph.progress import Reporter

SWALLOWS = """
import contextlib, os, signal
from osteomorph import stopping
from osteomorph.progress import Reporter
stopping.watch()
with contextlib.suppress(BaseException):  # as imports within try do
    os.kill(os.getpid(), signal.{name})
print("went on")
with Reporter() as progress:
    progress("refine", 1, 9)
print("not reached")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_swallowed_signal_ends_the_command_at_its_next_step(name, code):
    done = subprocess.run([sys.executable, "-c", SWALLOWS.format(name=name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "went on\n"), done.stderr


def test_without_a_signal_nothing_stops():
    stopping.check()
    assert not issubclass(stopping.Stopped, Exception)
    assert str(stopping.Stopped(128 + signal.SIGINT)) == "stopped"
    Reporter()("refine", 1, 9)
