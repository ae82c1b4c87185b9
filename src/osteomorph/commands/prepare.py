"""osteomorph prepare: the canonical case that a registration would begin with, as files."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from osteomorph.commands import options

if TYPE_CHECKING:
    from osteomorph.case import Case

MARKER = "prepared.json"
"""Says what was done, and that the folder may be replaced."""


def prepare(
    fixed: options.Fixed,
    moving: options.Moving,
    output: options.Output,
    fixed_labels: options.FixedLabels = None,
    moving_labels: options.MovingLabels = None,
    fixed_mask: options.FixedMask = None,
    moving_mask: options.MovingMask = None,
    plan: options.PlanName = "default",
    overwrite: options.Overwrite = False,
) -> None:
    """Write both images as a registration sees them: isotropic, cropped or padded, intensities from 0 to 1."""
    options.check_output(
        output, overwrite, [fixed, moving, fixed_labels, moving_labels, fixed_mask, moving_mask], marker=MARKER
    )

    from osteomorph import __version__, io
    from osteomorph.inputs import read_case
    from osteomorph.prepare import affordable
    from osteomorph.prepare import prepare as canonical
    from osteomorph.registration import as_plan

    chosen = as_plan(plan)
    case, hashes = read_case(fixed, moving, fixed_labels, moving_labels, fixed_mask, moving_mask, chosen)
    settings = affordable(chosen.prepare, case.fixed.grid)
    prepared = canonical(case, settings)
    with io.OutputFolder(output, overwrite, marker=MARKER) as folder:
        names = _write(prepared, folder.path)
        record = {
            "version": __version__,
            "inputs": hashes,
            "prepare": settings.model_dump(mode="json"),
            "files": names,
        }
        io.write_json(folder.path / MARKER, record)
    for side, image in (("fixed", prepared.fixed), ("moving", prepared.moving)):
        shape, spacing = " x ".join(map(str, image.grid.shape)), " x ".join(f"{s:.3g}" for s in image.grid.spacing_mm)
        typer.echo(f"{side:<7}{shape} voxels of {spacing} mm, axes {image.grid.axcodes}")
    typer.echo(f"files  {', '.join([*names, MARKER])}\n       in {output}")


def _write(case: "Case", folder: Path) -> list[str]:
    from dataclasses import replace

    import numpy as np

    from osteomorph.image import Image
    from osteomorph.io import write_image

    names = []
    for name in ("fixed", "moving", "fixed_labels", "moving_labels", "fixed_mask", "moving_mask"):
        part = getattr(case, name)
        if part is None:
            continue
        if isinstance(part, Image):
            part = replace(part, stored=np.dtype(np.float32))  # values between 0 and 1 would be rounded in the file's own type
        write_image(folder / f"{name}.nii.gz", part)
        names.append(f"{name}.nii.gz")
    return names
