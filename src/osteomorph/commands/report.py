"""osteomorph report: the page of a result, or of a cohort."""

from pathlib import Path
from typing import Annotated

import typer

from osteomorph.commands import options


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Output folders of register.", show_default=False)],
    fixed: Annotated[
        Path | None,
        typer.Option("-f", "--fixed", help="Fixed image.", show_default="where the command had it", readable=False),
    ] = None,
    moving: Annotated[
        Path | None,
        typer.Option("-m", "--moving", help="Moving image.", show_default="where the command had it", readable=False),
    ] = None,
    fixed_labels: options.FixedLabels = None,
    moving_labels: options.MovingLabels = None,
    cohort: Annotated[bool, typer.Option("--cohort", help="One table over all cases, worst first.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The page.", show_default="DIR/report.html; DIR/cohort.html", readable=False),
    ] = None,
) -> None:
    """Write the page of a result, or with --cohort of many: one file that opens offline in any browser."""
    from osteomorph.errors import InputError
    from osteomorph.report import REPORT, material_from, write_report
    from osteomorph.report_cohort import write_cohort

    sides = (fixed, moving, fixed_labels, moving_labels)
    if cohort:
        if any(side is not None for side in sides):
            raise InputError("--cohort takes no images. Write each case's report first, then the cohort's.")
        if output is None and len(folders) > 1:
            raise InputError("--cohort over several folders needs -o PAGE.html.")
        path = output or folders[0] / "cohort.html"
        count = write_cohort(folders, path, folders[0].resolve().name if len(folders) == 1 else path.resolve().parent.name)
        typer.echo(f"cases   {count}\nreport  {path}")
        return
    if len(folders) > 1 and (output is not None or any(side is not None for side in sides)):
        raise InputError("-o, -f, -m and labels go with one folder. Give the folders one by one, or --cohort.")
    for folder in folders:
        path = write_report(output or folder / REPORT, material_from(folder, *sides))
        typer.echo(f"report  {path} ({path.stat().st_size / 1e6:.1f} MB)")
