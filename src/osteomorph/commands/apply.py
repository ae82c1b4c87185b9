"""osteomorph apply: a finished transform on more images, label maps and points."""

from pathlib import Path
from typing import Annotated

import typer

from osteomorph.commands import options


def apply(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT", help="Images, label maps, or points in .csv.", show_default=False, readable=False),
    ],
    transform: options.Transform,
    output: options.Results,
    inverse: Annotated[bool, typer.Option("--inverse", help="Carry things of the fixed image into moving space.")] = False,
    reference: options.Reference = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Every voxel input is a label map. Default: detected, and said.")
    ] = False,
    interpolation: Annotated[
        options.Interpolation | None, typer.Option("--interpolation", help="Of images. Default: as for moved.nii.gz.")
    ] = None,
    frame: Annotated[options.Frame | None, typer.Option("--frame", help="Of points in columns x,y,z. Default: RAS.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results of the same name.")] = False,
) -> None:
    """Carry things of the moving image into fixed space (or back, with --inverse): images, label maps, points.

    The direction each kind needs is chosen and said. CSV columns x,y,z are mm; other columns are kept.
    """
    from osteomorph.apply import apply_transform

    done = apply_transform(
        transform,
        inputs,
        output,
        inverse=inverse,
        reference=reference,
        labels=labels,
        interpolation=None if interpolation is None else interpolation.value,
        frame=None if frame is None else frame.value,
        overwrite=overwrite,
    )
    for one in done:
        typer.echo(f"{one.source}: {one.words}\n  -> {one.target}")
