"""What a command costs: wall time, CPU time and peak memory of its process and all its children."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import psutil

EVERY_S = 0.05
"""Between two looks at the memory."""


@final
@dataclass(frozen=True)
class Spent:
    """code: exit status. cpu_s: user and system. peak_gb: largest sum of resident memory (2^30 bytes) that was seen."""

    code: int
    wall_s: float
    cpu_s: float
    peak_gb: float


def run(command: Sequence[str], log: Path, environment: Mapping[str, str], limit_s: float) -> Spent:
    """Runs a command to its end, with its output in ``log``; it is killed after ``limit_s`` and then has code 124."""
    peak, code = 0, 0
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=dict(environment))
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            peak = max(peak, _resident(process.pid))
            if time.perf_counter() - began > limit_s and code == 0:
                code = 124
                for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                    child.kill()
            time.sleep(EVERY_S)
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    return Spent(code or process.returncode, wall, usage.ru_utime + usage.ru_stime, peak / 2**30)


def _resident(pid: int) -> int:
    """Bytes of a process and its children. Not ru_maxrss, which begins at what the parent had when it forked."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.Error:  # one ended while we looked
        pass
    return total
