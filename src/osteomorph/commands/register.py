"""osteomorph register: two images in, a folder with the transform out."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osteomorph.commands import options
from osteomorph.commands.guard import FLAGGED

if TYPE_CHECKING:
    from rich.table import Table

    from osteomorph.result import Registration


def register(
    fixed: options.Fixed,
    moving: options.Moving,
    output: options.Output,
    fixed_labels: options.FixedLabels = None,
    moving_labels: options.MovingLabels = None,
    bone_labels: Annotated[
        str | None,
        typer.Option(
            "--bone-labels", metavar="IDS|FILE", help="Which are bone: 20,21 or 20=L1,21=L2 or a JSON file. Default: all."
        ),
    ] = None,
    bones: Annotated[
        options.Bones, typer.Option("--bones", help="Label map that says where bone is; none: hold nothing rigid.")
    ] = options.Bones.auto,
    fixed_mask: options.FixedMask = None,
    moving_mask: options.MovingMask = None,
    plan: Annotated[
        str | None,
        typer.Option(
            "--plan",
            metavar="NAME|FILE",
            help="A recipe's name, or a TOML or JSON file.",
            show_default="default, or the weights'",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="NAME|FILE",
            help="A network of train finds the field: a file, or thesis-ws-rp.",
            show_default=False,
        ),
    ] = None,
    network: options.Network = None,
    refine: Annotated[
        bool | None,
        typer.Option(
            "--refine/--no-refine",
            help="Optimise on these images, or one shot: a search, then linear steps for bones and tissue.",
            show_default="refine without --weights",
        ),
    ] = None,
    initial: Annotated[
        str | None,
        typer.Option(
            "--initial",
            metavar="TRANSFORM|none|centres",
            help="Rigid start: a file, none (aligned already), or from the centres of both images. Default: found.",
        ),
    ] = None,
    device: Annotated[options.Device, typer.Option("--device", help="Where to compute.")] = options.Device.auto,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads. Default: torch decides.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Default: the plan's.")] = None,
    overwrite: options.Overwrite = False,
    json_log: options.JsonLog = None,
) -> None:
    """Register MOVING onto FIXED: bones rigid, soft tissue smooth. Without labels a network finds the bones.

    Exit codes: 0 done, 2 bad input or usage (nothing written), 3 done but the quality check warns (written all the same).
    """
    read = [fixed, moving, fixed_labels, moving_labels, fixed_mask, moving_mask, network]
    options.check_output(output, overwrite, read, json_log)
    ids = options.bone_labels(bone_labels)

    from osteomorph import registration
    from osteomorph.progress import Reporter
    from osteomorph.threads import threads as limited

    with limited(threads), Reporter(json_log) as progress:
        result = registration.register(
            fixed,
            moving,
            fixed_labels=fixed_labels,
            moving_labels=moving_labels,
            fixed_mask=fixed_mask,
            moving_mask=moving_mask,
            bone_labels=ids,
            bones=bones.value,
            plan=plan,
            weights=weights,
            network=network,
            initial=initial,
            refine=refine,
            device=device.value,
            seed=seed,
            progress=progress,
        )
        progress("write", 0, 1)
        result.write(output, overwrite, command=["osteomorph", *sys.argv[1:]])
        progress("write", 1, 1)
    show(result, output)
    if not result.passed:
        raise typer.Exit(FLAGGED)


def show(result: "Registration", folder: Path) -> None:
    """What came out, in short: standard output for figures, standard error for warnings."""
    from rich.console import Console

    from osteomorph.memory import peak_bytes

    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.seconds.items())
    typer.echo(f"\nrigid start  {result.start.method}")
    if result.found_in is not None and (sure := result.found_in.confidence):
        least, most = min(sure.values()), max(sure.values())
        typer.echo(f"bones        {len(sure)} found in the {result.found_in.side} image, confidence {least:.2f} to {most:.2f}")
    typer.echo(f"seconds      {sum(result.seconds.values()):.1f} ({stages})")
    typer.echo(f"memory       {peak_bytes() / 2**30:.2f} GB at the peak")
    metrics = result.metrics
    before, after = metrics["mutual_information_start"], metrics["mutual_information"]
    typer.echo(f"similarity   {before:.4f} -> {after:.4f} nats of mutual information")
    if "dice" in metrics:
        typer.echo(f"Dice         {', '.join(f'{name} {value:.3f}' for name, value in metrics['dice'].items())}")
    if result.bones:
        Console(highlight=False).print(bone_table(result))
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    for warning in result.warnings:
        typer.echo(f"warning: {' '.join(warning.split())}", err=True)
    typer.echo(f"files        {', '.join(sorted(path.name for path in folder.iterdir()))}")
    typer.echo(f"             in {folder}")


def bone_table(result: "Registration") -> "Table":
    """One row per bone: its motion, in all and after the rigid start, and how far it is from rigid."""
    from math import hypot

    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("bone")
    for heading in ("rotation\ndeg", "shift\nmm", "after the start\ndeg", "after the start\nmm", "not rigid\nmm (largest)"):
        table.add_column(heading, justify="right")
    for bone in result.bones:
        total, after = hypot(*bone.shift_mm), hypot(*bone.shift_after_start_mm)
        values = (bone.rotation_deg, total, bone.rotation_after_start_deg, after, bone.residual_mm)
        table.add_row(bone.name, *(f"{value:.2f}" for value in values))
    return table
