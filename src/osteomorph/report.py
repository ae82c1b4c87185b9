"""A result that people look at: ``report.html``, one file that needs no network."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.resampling import resample
from osteomorph.transforms import Rigid, Transform

if TYPE_CHECKING:
    from osteomorph.result import Registration

REPORT = "report.html"


@final
@dataclass(frozen=True, eq=False)
class Material:
    """What a report is made of; every image and label map lies on the fixed grid.

    name: of the case. before, before_labels: the moving side under the rigid start alone. transform: T, fixed mm -> moving mm.
    record, bones: the contents of result.json and bones.json. notes: what the reader should know of this report.
    """

    name: str
    fixed: Image
    before: Image
    moved: Image
    transform: Transform
    start: Rigid
    record: Mapping[str, Any]
    bones: Sequence[Mapping[str, Any]] = ()
    fixed_labels: Labels | None = None
    before_labels: Labels | None = None
    moved_labels: Labels | None = None
    notes: tuple[str, ...] = ()

    def warp_on(self, grid: Grid) -> Float[Tensor, "3 i j k"]:
        """T without the rigid start, what deformed, as displacements in mm; computed once per grid."""
        if grid not in self._warps:
            self._warps[grid] = self.start.inverse().after(self.transform).displacement(grid)
        return self._warps[grid]

    @cached_property
    def _warps(self) -> dict[Grid, Tensor]:
        return {}


def material_of(
    registration: "Registration", name: str, record: Mapping[str, Any], bones: Sequence[Mapping[str, Any]]
) -> Material:
    """From a registration in memory."""
    case, (before, before_labels) = registration.case, registration.before
    return Material(
        name,
        case.fixed,
        before,
        registration.moved,
        registration.stored,
        registration.start.rigid,
        record,
        bones,
        case.fixed_labels,
        before_labels,
        registration.moved_labels,
        registration.notes,
    )


def material_from(
    folder: Path,
    fixed: Path | None = None,
    moving: Path | None = None,
    fixed_labels: Path | None = None,
    moving_labels: Path | None = None,
) -> Material:
    """From an output folder of ``register``.

    Inputs that are not given are taken from where the recorded command had them, if they are the same files still. Without the
    moving image, "before" is made of ``moved.nii.gz`` through the inverse. Raises InputError: no result, its fixed image
    cannot be found, or a file given is another one than the one that was registered.
    """
    from osteomorph.io import read_image, read_labels, read_transform

    record = read_record(folder)
    given = {"fixed": fixed, "moving": moving, "fixed_labels": fixed_labels, "moving_labels": moving_labels}
    paths = {name: _input(record, name, path) for name, path in given.items()}
    source = paths["fixed"]
    if source is None:
        raise InputError(f"{folder}: its fixed image is not where it was. Give it with -f.")
    image = read_image(source)
    grid, start = image.grid, Rigid(np.array(record["start"]["matrix"]))
    moved = read_image(folder / "moved.nii.gz")
    if not moved.grid.isclose(grid, 0.01):
        raise InputError(f"{source} lies on another grid than the result in {folder}. Give the fixed image it was made with.")
    content = _json(folder / "bones.json")["bones"]
    names = {bone["label"]: bone["name"] for bone in content}
    transform = read_transform(folder / "displacement.nii.gz")
    moved = Image(moved.data, grid, moved.stored)
    notes = [str(note) for note in record.get("notes", ())]
    back = None
    if paths["moving"] is None:
        back = read_transform(folder / "inverse.h5").after(start)
        before = resample(moved, back, grid)
        notes.append("The moving image was not at hand: “before” is made from the moved one.")
    else:
        before = resample(read_image(paths["moving"]), start, grid)
    moved_labels = before_labels = None
    if (folder / "moved_labels.nii.gz").is_file():
        moved_labels = _named(read_labels(folder / "moved_labels.nii.gz", like=grid), names)
        if paths["moving_labels"] is not None:
            before_labels = resample(_named(read_labels(paths["moving_labels"]), names), start, grid)
        else:
            back = back or read_transform(folder / "inverse.h5").after(start)
            before_labels = resample(moved_labels, back, grid)
    known = None if paths["fixed_labels"] is None else _named(read_labels(paths["fixed_labels"], like=grid), names)
    name = folder.resolve().name
    return Material(
        name, image, before, moved, transform, start, record, content, known, before_labels, moved_labels, tuple(notes)
    )


def write_report(path: Path, material: Material) -> Path:
    """The page, whole or not at all."""
    from osteomorph.io.files import writing
    from osteomorph.report_page import page

    content = page(material)
    with writing(path) as target:
        target.write_text(content, encoding="utf-8")
    return path


# -- records ------------------------------------------------------------------------------------------------------------------
def read_record(folder: Path) -> dict[str, Any]:
    """result.json of an output folder. Raises InputError where there is none."""
    if not (folder / "result.json").is_file():
        raise InputError(f"{folder} is no result of osteomorph register (no result.json inside). Give its output folder.")
    record = _json(folder / "result.json")
    if "start" not in record or "matrix" not in record["start"]:
        raise InputError(f"{folder / 'result.json'} is not what osteomorph register writes. Register again.")
    return record


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}). Register again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not what osteomorph register writes. Register again.")
    return content


OPTIONS = {
    "fixed": ("-f", "--fixed"),
    "moving": ("-m", "--moving"),
    "fixed_labels": ("--fixed-labels",),
    "moving_labels": ("--moving-labels",),
}


def commanded(record: Mapping[str, Any], name: str) -> str | None:
    """What the recorded command gave for an input."""
    words = [str(word) for word in record.get("command") or ()]
    for at, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in OPTIONS[name]:
            return value if equals else (words[at + 1] if at + 1 < len(words) else None)
    return None


def _input(record: Mapping[str, Any], name: str, given: Path | None) -> Path | None:
    from osteomorph.io import digest

    wanted = record.get("inputs", {}).get(name)
    if given is not None:
        if wanted is not None and digest(given) != wanted:
            raise InputError(f"{given} is not the {name.replace('_', ' ')} that was registered (another SHA-256). Give that.")
        return given
    word = commanded(record, name)
    found = None if word is None else Path(word)
    try:
        return found if found is not None and digest(found) == wanted else None
    except InputError:  # no longer there, or something else by now
        return None


def _named(labels: Labels, names: dict[int, str]) -> Labels:
    return Labels(labels.data, labels.grid, names, labels.stored)


FOLDERS = re.compile(r"""(?:(?<![\w.<])(?:[A-Za-z]:)?|(?<!\w)~|\\)(?:[\\/][^\\/\s'"]+)*[\\/](?=[^\\/\s'"])""")


def without_folders(words: str) -> str:
    """Text in which every absolute path has become a file's name: folders are often called after patients."""
    return FOLDERS.sub("", words)


def shown_command(record: Mapping[str, Any]) -> str | None:
    """The command with file names in the place of paths."""
    words = record.get("command")
    if not words:
        return None
    out = []
    for word in map(str, words):
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        out.append(option + equals + (PureWindowsPath(value).name or value))
    return " ".join(out)
