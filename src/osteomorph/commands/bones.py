"""osteomorph bones: what the shipped network finds in one image, as labels to look at, correct and give to a registration."""

from pathlib import Path
from typing import Annotated

import typer

from osteomorph.commands import options

MARKER = "labels.json"
"""Id -> name; says that the folder may be replaced."""


def bones(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A CT or an MR.", show_default=False, readable=False)],
    output: options.Output,
    network: options.Network = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Find the bones of a CT or an MR: bones.nii.gz on the image's grid, one number each, and their names in labels.json.

    Look at them, correct them, and give both to register, as --moving-labels (or --fixed-labels) and --bone-labels.
    """
    options.check_output(output, overwrite, [image, network], marker=MARKER)

    import numpy as np

    from osteomorph import io
    from osteomorph.bone_network import load_bone_network
    from osteomorph.errors import InputError
    from osteomorph.found_bones import find_bones
    from osteomorph.unlabelled import LEAST_CONFIDENCE

    given = io.read_image(image)
    found = find_bones(given, None if network is None else load_bone_network(network)[0])
    sure = found.sure(LEAST_CONFIDENCE)
    ids = sure.ids()
    if not ids:
        raise InputError(
            f"No bone was found in {image} (confidence {LEAST_CONFIDENCE} or more). Give a CT or an MR of spine or pelvis."
        )
    with io.OutputFolder(output, overwrite, marker=MARKER) as folder:
        io.write_image(folder.path / "bones.nii.gz", sure)
        io.write_json(folder.path / MARKER, {str(label): sure.name(label) for label in ids})
    sizes = np.bincount(sure.data.numpy().ravel()) * float(np.prod(given.grid.spacing_mm)) / 1000
    typer.echo("id   name          confidence   ml")
    for label in ids:
        typer.echo(f"{label:<5}{sure.name(label):<14}{found.confidence[label]:<13.2f}{sizes[label]:.1f}")
    unsure = len(found.confidence) - len(ids)
    if unsure:
        typer.echo(f"left out: {unsure} with a confidence below {LEAST_CONFIDENCE}", err=True)
    typer.echo(f"files  bones.nii.gz, {MARKER}\n       in {output}")
