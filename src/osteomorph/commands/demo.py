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
        rows, warnings = run_demo(output, seed, overwrite, progress)
    Console(highlight=False).print(table(rows))
    for warning in warnings:
        typer.echo(f"warning: {' '.join(warning.split())}", err=True)
    typer.echo(f"picture  {output / 'overlay.png'} (fixed, moving before and after, displacement)")
    typer.echo(f"table    {output / 'table.md'}, {output / MARKER}")
    typer.echo(f"files    {output / 'pair'}, {output / 'result'}")
