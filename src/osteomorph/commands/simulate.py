"""osteomorph simulate: a cohort of CT-MR pairs with known motion."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from osteomorph.commands import options


class Difficulty(StrEnum):
    thesis = "thesis"
    hard = "hard"


class Soft(StrEnum):
    harmonic = "harmonic"
    elastic = "elastic"
    flow = "flow"
    mixed = "mixed"


def simulate(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pairs and cohort.json.", show_default=False)],
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="Pairs.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same pairs.")] = 0,
    ct: Annotated[
        Path | None, typer.Option("--ct", help="Take anatomy and texture from this CT; needs --labels.", show_default=False)
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Bones, of the CT or alone.", show_default="a drawn patient"),
    ] = None,
    label_names: Annotated[
        Path | None,
        typer.Option("--label-names", help="JSON {id: name}. Default: found beside or in the label map.", show_default=False),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option("--view", help="lumbar, thorax, pelvis, knee; of a CT: whole, spine.", show_default="the usual one"),
    ] = None,
    difficulty: Annotated[Difficulty, typer.Option("--difficulty", help="How far things move.")] = Difficulty.thesis,
    soft: Annotated[Soft, typer.Option("--soft", help="Generator of soft tissue's motion.")] = Soft.harmonic,
    contrast: Annotated[
        str, typer.Option("--contrast", help="Of the MR: gre, gre-in, gre-out, t1, t2, water, random, mixed.")
    ] = "gre",
    spacing: Annotated[
        float | None,
        typer.Option("--spacing", min=0.2, help="Edge in mm of a voxel, were it a cube.", show_default="0.66"),
    ] = None,
    truth_spacing: Annotated[
        float | None,
        typer.Option("--truth-spacing", min=0.2, help="Of displacement.nii.gz, mm.", show_default="the fixed grid"),
    ] = None,
    overwrite: options.Overwrite = False,
    json_log: options.JsonLog = None,
) -> None:
    """Simulate CT-MR pairs with the true displacement at every voxel. A run that was stopped goes on where it was."""
    from osteomorph import io
    from osteomorph.errors import InputError
    from osteomorph.progress import Reporter
    from osteomorph.simulate.motion import DIFFICULTIES
    from osteomorph.simulate.pair import Settings
    from osteomorph.simulate.subjects import PROCEDURAL, from_files, procedural
    from osteomorph.simulate.write import simulate_cohort

    if ct is not None and labels is None:
        raise InputError(f"--ct {ct} needs --labels: a label map of its bones on the CT's grid.")
    if labels is None:
        view = view or PROCEDURAL[0]
        if view not in PROCEDURAL:
            raise InputError(f"No drawn patient has a view {view!r}. Choose from {', '.join(PROCEDURAL)}.")
        subject = procedural(view, seed)
    else:
        subject, notes = from_files(ct, labels, None if label_names is None else io.read_names(label_names))
        for note in notes:
            typer.echo(f"note: {note}", err=True)
    settings = Settings(view=view, motion=DIFFICULTIES[difficulty.value])
    if spacing is not None:
        settings = settings.coarser(spacing)
    with Reporter(json_log) as progress:
        cohort = simulate_cohort(
            output,
            number,
            seed,
            subject,
            settings,
            contrast=contrast,
            soft=soft.value,
            truth_spacing_mm=truth_spacing,
            overwrite=overwrite,
            progress=progress,
        )
    folds = ", ".join(f"{len(f.train)}/{len(f.validation)}/{len(f.test)}" for f in cohort.folds) or "none (too few pairs)"
    typer.echo(f"pairs   {len(cohort.pairs)} in {output}\nfolds   {folds} (train/validation/test)")
    typer.echo(f"file    {output / 'cohort.json'}")
