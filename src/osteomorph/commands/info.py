"""osteomorph info: what a file holds, in words."""

from pathlib import Path
from typing import Annotated

import typer


def info(
    file: Annotated[
        Path,
        typer.Argument(
            help="Image, label map, transform, displacement, plan, points, or a result's folder.",
            show_default=False,
            readable=False,
        ),
    ],
) -> None:
    """Say what FILE holds: its grid, data type, range and labels; or a transform's steps, frame and size."""
    from osteomorph.describe import describe

    facts = describe(file)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        typer.echo(f"{name:<{width}}  {value}")
