"""Every way a command can end badly, as one line and an exit code."""

import errno
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import typer
from typer.core import TyperGroup

from osteomorph.stopping import Stopped

BAD_INPUT, UNEXPECTED, FLAGGED, STOPPED = 2, 1, 3, 130
"""Exit codes besides 0: bad input or usage, a fault of the program, done but the quality check warns, Ctrl-C."""


class GuardedGroup(TyperGroup):
    """Commands under which an exception becomes one line on standard error; ``--debug`` shows where it came from."""

    def invoke(self, ctx: Any) -> Any:
        debug = bool(ctx.params.get("debug"))
        with _warnings_as_lines(debug):
            try:
                return super().invoke(ctx)
            except (Exception, KeyboardInterrupt, Stopped) as error:
                if hasattr(error, "exit_code") or isinstance(error, typer.Abort) or _is_closed_pipe(error):
                    raise  # usage errors and plain exits: typer's own
                if debug:
                    traceback.print_exc()
                message, code = explain(error)
                typer.echo(f"osteomorph: {_one_line(message)}", err=True)
                raise typer.Exit(code) from None


def explain(error: BaseException) -> tuple[str, int]:
    """What to say of an exception, and the exit code."""
    from osteomorph.errors import InputError

    if isinstance(error, Stopped):
        return "stopped; nothing was written.", int(str(error.code))
    if isinstance(error, KeyboardInterrupt):
        return "stopped; nothing was written.", STOPPED
    if isinstance(error, InputError):
        return f"error: {error}", BAD_INPUT
    if is_out_of_memory(error):
        hint = "use --device cpu, " if "CUDA" in str(error) else "close other programs, "
        return f"error: Not enough memory. Crop the images, {hint}or give a plan with a larger prepare.spacing_mm.", BAD_INPUT
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "error: The disk is full. Make room, or give an output folder on another disk.", BAD_INPUT
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {error.filename}: {error.strerror}. Check the path and its permissions.", BAD_INPUT
    told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"error: Unexpected {told} (osteomorph --debug COMMAND shows where).", UNEXPECTED


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in Python, numpy or torch."""
    text = str(error)
    said = "can't allocate memory" in text or "not enough memory" in text or "out of memory" in text
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and said)


def _is_closed_pipe(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _one_line(text: str) -> str:
    return " ".join(text.split())


@contextmanager
def _warnings_as_lines(debug: bool) -> Iterator[None]:
    """This package's warnings as one line each; those of libraries with ``--debug`` alone."""

    said: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category.__module__.partition(".")[0] == "osteomorph":
            text = f"warning: {_one_line(str(message))}"
            if text not in said:  # headers are read more than once
                said.add(text)
                typer.echo(text, err=True)
        elif debug:
            sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
