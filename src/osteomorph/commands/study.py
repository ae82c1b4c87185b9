"""osteomorph study: the thesis, or one of its open questions, from simulation to report."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from osteomorph.commands import options


class Name(StrEnum):
    thesis = "thesis"
    resolution = "resolution"
    width = "width"
    misalignment = "misalignment"
    unlabelled = "unlabelled"
    frame = "frame"


class Size(StrEnum):
    tiny = "tiny"
    small = "small"
    full = "full"


def study(
    name: Annotated[Name, typer.Argument(help="thesis, or one of its open questions.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder; a stopped study goes on.", show_default=False)],
    size: Annotated[Size, typer.Option("--size", help="tiny: a minute. small: hours. full: for a GPU.")] = Size.small,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the patients, the folds and the training.")] = 1,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="STEP", help="simulate, start, train, evaluate, ... alone."),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads. Default: torch decides.")] = None,
    device: Annotated[options.Device, typer.Option("--device", help="Where networks run.")] = options.Device.auto,
    json_log: options.JsonLog = None,
) -> None:
    """Simulate a cohort, train every variant, evaluate it, and write report.md with tables, tests and figures.

    Every part is done once; the same command goes on where it was stopped.
    """
    from osteomorph.progress import Reporter
    from osteomorph.registration import chosen_device
    from osteomorph.study import claim, run_units
    from osteomorph.study_arms import SIZES, Context
    from osteomorph.study_questions import question_units
    from osteomorph.study_thesis import thesis_units
    from osteomorph.threads import threads as limited

    context = Context(output, SIZES[size.value], seed, str(chosen_device(device.value)))
    units = thesis_units(context) if name is Name.thesis else question_units(context, name.value)
    claim(output, {"study": name.value, "size": size.value, "seed": seed})
    try:
        with limited(threads), Reporter(json_log) as progress:
            ran = run_units(output, units, only, progress, lambda text: typer.echo(text))
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from here.", err=True)
        raise
    report = output / "report.md"
    typer.echo("everything was done already" if not ran else f"{len(ran)} units done")
    typer.echo(f"report  {report}" if report.is_file() else f"folder  {output}")
