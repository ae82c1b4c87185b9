"""Seconds per stage of a registration."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from osteomorph.descent import Progress


@final
class Clock:
    """Seconds per stage; tells the progress listener when a stage begins and ends."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self.progress = progress

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        stepped = stage in ("refine", "guess", "soft")  # these tell every step
        if self.progress is not None and not stepped:
            self.progress(stage, 0, 1)
        yield
        self.seconds[stage] = time.perf_counter() - began
        if self.progress is not None and not stepped:
            self.progress(stage, 1, 1)

    def told(self, stage: str) -> Progress | None:
        """The listener, told under the name of a stage."""
        tell = self.progress
        return None if tell is None else lambda _, done, total: tell(stage, done, total)
