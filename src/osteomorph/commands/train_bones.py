"""osteomorph train-bones: the network that finds bones, on CTs of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from osteomorph.commands import options
from osteomorph.commands.guard import STOPPED


def train_bones(
    ct: Annotated[
        list[Path],
        typer.Option("--ct", metavar="FILE", help="A CT in HU; may be repeated.", show_default=False, readable=False),
    ],
    labels: Annotated[
        list[Path],
        typer.Option(
            "--labels",
            metavar="FILE",
            help="Of its bones, one number each, on its grid; in the order of --ct.",
            show_default=False,
            readable=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the training; the same command goes on in it.", show_default=False)
    ],
    weights: Annotated[
        Path | None, typer.Option("--from", help="Begin from these weights.", show_default="those in the box", readable=False)
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of one pair each.")] = 300,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of drawn patients, pairs and patches.")] = 1000,
    shared: Annotated[
        Path | None, typer.Option("--shared", help="Folder for patients and pairs, to be shared.", show_default="OUTPUT/shared")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads. Default: torch decides.")] = None,
    json_log: options.JsonLog = None,
) -> None:
    """Go on training the network that finds bones, on labelled CTs of your own: for `register` and `bones --network`.

    Pairs are simulated from them and from drawn patients. Bone without a label is not learned from. What was stopped goes on
    by the same command.
    """
    from osteomorph.bone_anatomies import OwnCt
    from osteomorph.errors import InputError
    from osteomorph.progress import Reporter
    from osteomorph.threads import threads as limited
    from osteomorph.tune_bones import tune

    if len(ct) != len(labels):
        raise InputError(f"There are {len(ct)} CTs and {len(labels)} label maps. Give one --labels for every --ct.")
    own = [OwnCt(*files) for files in zip(ct, labels, strict=True)]
    try:
        with limited(threads), Reporter(json_log) as progress:
            path = tune(output, own, weights, steps, seed, shared, progress)
    except (KeyboardInterrupt, SystemExit) as error:
        typer.echo(f"osteomorph: stopped; run the same command again to go on in {output}.", err=True)
        raise typer.Exit(STOPPED if isinstance(error, KeyboardInterrupt) else int(error.code or STOPPED)) from None
    typer.echo(f"files  {path.name}, training/log.csv\n       in {output}")
    typer.echo(f"use    osteomorph register ... --network {path}")
