"""osteomorph demo: a simulated pair, registered and measured against its truth."""

from pathlib import Path
from typing import Annotated

import typer

from osteomorph.commands import options


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the simulated pair.")] = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Simulate a lumbar spine in CT and MR, register them, and measure the result against the truth."""
    from osteomorph.demo import MARKER, run_demo, table
    from osteomorph.progress import Reporter

    options.check_output(output, overwrite, [], marker=MARKER)

    from rich.console import Console

    with Reporter() as progress:
        shown = run_demo(output, seed, overwrite, progress)
    Console(highlight=False).print(table(shown))
    typer.echo(f"The moved image on the fixed one: {output / 'overlay.png'}")
    typer.echo(f"The table: {output / 'table.md'} and {output / MARKER}; the registration: {output / 'result'}")
