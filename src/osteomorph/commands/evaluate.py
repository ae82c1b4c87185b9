"""osteomorph evaluate: what a transform, a network or a plan is worth, as a table of numbers."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osteomorph.commands import options

if TYPE_CHECKING:
    from osteomorph.evaluate import Row


class Part(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"


def evaluate(
    result: Annotated[
        Path | None,
        typer.Argument(metavar="[OUT|TRANSFORM]", help="Folder of a registration, or a transform.", show_default=False),
    ] = None,
    fixed: Annotated[Path | None, typer.Option("-f", "--fixed", help="Fixed image of that result.", show_default=False)] = None,
    moving: Annotated[Path | None, typer.Option("-m", "--moving", help="Its moving image.", show_default=False)] = None,
    fixed_labels: options.FixedLabels = None,
    moving_labels: options.MovingLabels = None,
    truth: Annotated[
        Path | None, typer.Option("--truth", help="True displacement, fixed -> moving, NIfTI or transform.", show_default=False)
    ] = None,
    body: Annotated[Path | None, typer.Option("--body", help="Mask of the body, fixed grid.", show_default=False)] = None,
    cohort: Annotated[
        Path | None, typer.Option("-c", "--cohort", help="Cohort to evaluate over, instead of one result.", show_default=False)
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="A trained network.", show_default=False)] = None,
    plan: Annotated[
        str | None, typer.Option("--plan", help="Without weights: register each pair so; rigid for the start alone.")
    ] = None,
    fold: Annotated[int, typer.Option("--fold", min=0, help="Of the cohort.")] = 0,
    part: Annotated[Part, typer.Option("--part", help="Of the fold.")] = Part.test,
    exact_labels: Annotated[bool, typer.Option("--exact-labels", help="Exact labels, not those as segmented.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="FILE.csv or .json; with a cohort a folder.", show_default=False),
    ] = None,
    device: Annotated[options.Device, typer.Option("--device", help="Where the network runs.")] = options.Device.cpu,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads. Default: torch decides.")] = None,
    overwrite: options.Overwrite = False,
    json_log: options.JsonLog = None,
) -> None:
    """Overlap, surface distances, Jacobian, rigidity and (with a truth) target registration error: a row per bone, one pooled.

    Either one result with its images, or a network (--weights) or a plan (--plan) over a part of a cohort (-c).
    """
    from osteomorph.errors import InputError
    from osteomorph.threads import threads as limited

    with limited(threads):
        if cohort is not None:
            if result is not None or (weights is None) == (plan is None):
                raise InputError("With -c give either --weights or --plan, and no result.")
            if output is None:
                raise InputError("With -c results go into a folder. Give -o DIR.")
            options.check_output(output, overwrite, [cohort, weights], json_log)
            _cohort(cohort, weights, plan, fold, part, not exact_labels, output, device, overwrite, json_log)
            return
        if result is None or fixed is None or moving is None:
            raise InputError("Give a result with -f FIXED and -m MOVING, or a cohort with -c and --weights or --plan.")
        if output is not None and output.exists() and not overwrite:
            raise InputError(f"{output} exists. Give another name, or add --overwrite.")
        _one(result, fixed, moving, fixed_labels, moving_labels, truth, body, output)


def _one(
    result: Path,
    fixed: Path,
    moving: Path,
    fixed_labels: Path | None,
    moving_labels: Path | None,
    truth: Path | None,
    body: Path | None,
    output: Path | None,
) -> None:
    from osteomorph import io
    from osteomorph.case import Case
    from osteomorph.evaluate import check_name, write_rows
    from osteomorph.evaluate import evaluate as measured
    from osteomorph.image import Labels

    if output is not None:
        check_name(output)
    images = [io.read_image(path) for path in (fixed, moving)]
    labels = [
        None if path is None else io.read_labels(path, like=image.grid)
        for path, image in zip((fixed_labels, moving_labels), images, strict=True)
    ]
    case = Case(images[0], images[1], labels[0], labels[1])
    inside = None
    if body is not None:
        mask = io.read_mask(body, images[0].grid)
        inside = Labels((mask.data > 0.5).short(), mask.grid)
    rows = measured(
        io.read_transform(result / "transform.h5" if result.is_dir() else result),
        case,
        None if truth is None else io.read_transform(truth),
        inside,
    )
    show(rows)
    if output is not None:
        typer.echo(f"file    {write_rows(output, rows)}")


def _cohort(
    manifest: Path,
    weights: Path | None,
    name: str | None,
    fold: int,
    part: Part,
    observed: bool,
    output: Path,
    device: options.Device,
    overwrite: bool,
    json_log: Path | None,
) -> None:
    from osteomorph import io
    from osteomorph.cohort import read_cohort
    from osteomorph.compare import MORE_MEASURES, THESIS_MEASURES, markdown, table
    from osteomorph.evaluate import write_rows
    from osteomorph.evaluate_cohort import evaluate_pairs, network_method, part_of, plan_method, rigid_method
    from osteomorph.progress import Reporter
    from osteomorph.registration import as_plan, chosen_device

    cohort = read_cohort(manifest)
    ids = part_of(cohort, fold, part.value)
    where = str(chosen_device(device.value))
    if weights is not None:
        from osteomorph.network import load_network

        plan = load_network(weights)[1]
        method = network_method(cohort, weights, observed=observed, device=where)
    else:
        plan = as_plan(name or "rigid")
        alone = plan.bones != "exact" and not plan.refine.levels
        method = rigid_method(cohort, plan, None, observed) if alone else plan_method(cohort, plan, observed, where)
    shown = plan.name
    with io.OutputFolder(output, overwrite) as folder, Reporter(json_log) as progress:
        rows = evaluate_pairs(cohort, ids, method, shown, plan.prepare, fold, observed, progress)
        write_rows(folder.path / "rows.csv", rows)
        bones = list(dict.fromkeys(row["bone"] for row in rows if row["role"] == "labelled"))
        cells = table(rows, [shown], [*reversed(bones), "pooled"], [*THESIS_MEASURES, *MORE_MEASURES], ())
        text = markdown(cells, "+".join(reversed(bones)))
        (folder.path / "table.md").write_text(text, encoding="utf-8")
        about = {"cohort": manifest, "weights": weights, "plan": plan.model_dump(mode="json"), "fold": fold, "part": part.value}
        io.write_json(folder.path / "result.json", {**about, "pairs": list(ids), "observed_labels": observed})
    typer.echo(text)
    typer.echo(f"files   rows.csv (a row per pair and bone), table.md, result.json in {output}")


def show(rows: list["Row"]) -> None:
    """Bones as lines, the measures that were taken as columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns = [
        ("dice", "Dice", 3),
        ("msd_mm", "MSD\nmm", 3),
        ("hd99_mm", "HD99\nmm", 2),
        ("det_mean", "det J\nmean", 3),
        ("det_sd", "det J\nSD", 4),
        ("tre_mean_mm", "TRE\nmm", 2),
        ("rigidity_max_mm", "not rigid\nmm (largest)", 3),
    ]
    columns = [column for column in columns if any(column[0] in row for row in rows)]
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("bone")
    for _, heading, _ in columns:
        shown.add_column(heading, justify="right")
    for row in rows:
        shown.add_row(str(row["bone"]), *(f"{row[key]:.{digits}f}" if key in row else "" for key, _, digits in columns))
    Console(highlight=False).print(shown)
    pooled = rows[-1]
    for key in ("folding_percent", "folding_body_percent", *(k for k in pooled if k.startswith("tre_soft"))):
        if key in pooled:
            typer.echo(f"{key:<24}{pooled[key]:.4g}")
