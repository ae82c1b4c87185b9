"""Ctrl-C and termination of a command: raised where they strike and, where a library swallows that, at the next step."""

import signal
from types import FrameType
from typing import final


@final
class Stopped(SystemExit):
    """The process was told to end; the exit code is 128 + the signal's number.

    No KeyboardInterrupt: CPython takes one that passed through ``exec`` (in libraries' imports) for unhandled.
    """

    def __str__(self) -> str:
        return "stopped"


_told: list[int] = []


def watch() -> None:
    """From now on SIGINT and SIGTERM raise Stopped in the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _strike)


def check() -> None:
    """Raises Stopped if a signal came in earlier and its exception got lost, as in an import within ``try``."""
    if _told:
        raise Stopped(128 + _told[0])


def _strike(number: int, frame: FrameType | None) -> None:
    _told.append(number)
    raise Stopped(128 + number)
