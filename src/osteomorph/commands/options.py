"""Options that several commands share, and how their text is read."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from osteomorph.errors import InputError


def _file(*names: str, text: str) -> Any:
    """An option that is a file; whether it can be read is said by who reads it, in one line."""
    return typer.Option(*names, help=text, show_default=False, readable=False)


Fixed = Annotated[Path, _file("-f", "--fixed", text="Fixed image, or a DICOM series; results lie on its grid.")]
Moving = Annotated[Path, _file("-m", "--moving", text="Moving image, or a DICOM series; carried onto the fixed one.")]
Output = Annotated[Path, _file("-o", "--output", text="Folder to write, whole or not at all.")]
FixedLabels = Annotated[Path | None, _file("--fixed-labels", text="Label map on the fixed image's grid.")]
MovingLabels = Annotated[Path | None, _file("--moving-labels", text="Label map on the moving image's grid.")]
FixedMask = Annotated[Path | None, _file("--fixed-mask", text="Weights from 0 to 1 for the similarity, fixed side.")]
MovingMask = Annotated[Path | None, _file("--moving-mask", text="Weights from 0 to 1 for the similarity, moving side.")]
Network = Annotated[
    Path | None, _file("--network", text="Finds bones in place of the one in the box: what a training of yours wrote.")
]
JsonLog = Annotated[Path | None, _file("--json-log", text="Progress as JSON lines into this file.")]
Transform = Annotated[Path, _file("-t", "--transform", text="transform.h5 of a registration, or its folder.")]
Results = Annotated[Path, _file("-o", "--output", text="Folder; results keep their names.")]
Reference = Annotated[Path | None, _file("--reference", text="File whose grid results lie on. Default: the target image's.")]
PlanName = Annotated[str, typer.Option("--plan", help="A recipe's name, or a TOML or JSON file.", metavar="NAME|FILE")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")]


class Bones(StrEnum):
    auto = "auto"
    moving = "moving"
    fixed = "fixed"
    both = "both"
    none = "none"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Interpolation(StrEnum):
    linear = "linear"
    bspline = "bspline"
    nearest = "nearest"


class Frame(StrEnum):
    RAS = "RAS"
    LPS = "LPS"


def bone_labels(text: str | None) -> list[int] | dict[int, str] | None:
    """``20,21``, ``20=L1,21=L2``, or a JSON file ``{"20": "L1"}``."""
    if text is None:
        return None
    if text.lower().endswith(".json"):
        from osteomorph.io import read_names

        return read_names(text)
    ids: list[int] = []
    names: dict[int, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        number, equals, name = (piece.strip() for piece in part.partition("="))
        if not number.isdecimal() or int(number) == 0 or (equals and not name):
            raise InputError(f"--bone-labels: {part!r} is no label. Give 20,21 or 20=L1,21=L2 or a JSON file.")
        if int(number) in ids:
            raise InputError(f"--bone-labels names label {int(number)} twice. Name it once.")
        ids.append(int(number))
        if equals:
            names[int(number)] = name
    if not ids:
        raise InputError("--bone-labels is empty. Give 20,21 or 20=L1,21=L2 or a JSON file.")
    return {i: names.get(i, str(i)) for i in ids} if names else ids


def check_output(
    folder: Path, overwrite: bool, inputs: list[Path | None], log: Path | None = None, marker: str = "result.json"
) -> None:
    """Before any work. Raises InputError where the output or the log cannot be written, or would replace an input."""
    from osteomorph.io import OutputFolder

    OutputFolder(folder, overwrite, marker)
    target, read = folder.resolve(), [given.resolve() for given in inputs if given is not None]
    for given in read:
        if target in given.parents:
            raise InputError(f"{given} lies in {folder}, which is to be replaced. Give the output another folder.")
    if log is None:
        return
    if target in (log.resolve(), *log.resolve().parents):
        raise InputError(f"--json-log {log} lies in the output folder, which appears at the end. Put it elsewhere.")
    if not log.parent.is_dir():
        raise InputError(f"--json-log: there is no folder {log.parent}. Make it first.")
    if log.exists() and not (overwrite and log.is_file() and log.resolve() not in read):
        raise InputError(f"--json-log: {log} exists. Give another name, or add --overwrite.")
