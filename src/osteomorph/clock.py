"""Seconds per stage of a registration."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from osteomorph.allocation import give_back_freed_memory
from osteomorph.descent import Progress


@final
class Clock:
    """Seconds per stage; tells the progress listener when a stage begins and ends. now: the seconds that are counted."""

    def __init__(self, progress: Progress | None, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self.progress = progress
        self.now = now

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = self.now()
        stepped = stage in ("refine", "guess", "soft")  # these tell every step
        if self.progress is not None and not stepped:
            self.progress(stage, 0, 1)
        yield
        give_back_freed_memory()
        self.seconds[stage] = self.now() - began
        if self.progress is not None and not stepped:
            self.progress(stage, 1, 1)

    def told(self, stage: str) -> Progress | None:
        """The listener, told under the name of a stage."""
        tell = self.progress
        return None if tell is None else lambda _, done, total: tell(stage, done, total)
