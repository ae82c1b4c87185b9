"""How far a registration is: a bar with the time left on a terminal, plain lines elsewhere, JSON lines for programs."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, final

from osteomorph import stopping

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

LINE_SECONDS = 5.0
"""Plain lines within a stage are at least this far apart."""


@final
class Reporter:
    """A context that is called with (stage, done, total); its exit closes the bar and the log. A call ends a stopped command.

    log: file of JSON lines ``{"stage", "done", "total", "seconds"}``, seconds since the start; the last line has the stage
        ``"done"`` or ``"failed"``, with the reason. It is opened at the first call, so that a refused input leaves none.
    terminal: a bar if true, lines if false; by default whether standard output is a terminal.
    """

    def __init__(self, log: Path | None = None, terminal: bool | None = None) -> None:
        self._path = log
        self._log: IO[str] | None = None
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._began = time.monotonic()
        self._stage = ""
        self._stage_began = 0.0
        self._stage_first = 0
        self._said = 0.0

    def __enter__(self) -> "Reporter":
        self._began = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._log is None:
            return
        if error is None:
            self._record("done", 1, 1)
        else:
            self._record("failed", 0, 1, reason=str(error) or type(error).__name__)
        self._log.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        stopping.check()
        now = time.monotonic()
        entered = stage != self._stage
        if entered:
            self._stage, self._stage_began, self._stage_first, self._said = stage, now, done, now
        if self._path is not None and self._log is None:
            self._log = self._path.open("w", encoding="utf-8")
        self._record(stage, done, total)
        if self._terminal:
            self._draw(stage, done, total)
        elif entered or done == total or now - self._said >= LINE_SECONDS:
            self._said = now
            print(self.line(stage, done, total, now), flush=True)

    def line(self, stage: str, done: int, total: int, now: float) -> str:
        """``refine 40/80, 12 s, about 11 s left``; the time left is that of the stage, once a step of it was seen."""
        words = [f"{stage} {done}/{total}", f"{now - self._began:.0f} s"]
        steps = done - self._stage_first
        if steps > 0 and done < total:
            words.append(f"about {(now - self._stage_began) / steps * (total - done):.0f} s left")
        return ", ".join(words)

    def _record(self, stage: str, done: int, total: int, **more: Any) -> None:
        if self._log is not None:
            seconds = round(time.monotonic() - self._began, 3)
            self._log.write(json.dumps({"stage": stage, "done": done, "total": total, "seconds": seconds, **more}) + "\n")
            self._log.flush()

    def _draw(self, stage: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = _bar()
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total)
        self._bar.update(self._tasks[stage], completed=done, total=total)


def _console() -> "Console":
    from rich.console import Console

    return Console()


def _bar() -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=_console(),
    )
