"""DICOM series, given as their folder or one of their files, through SimpleITK (GDCM). Their world is LPS, like ITK's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import final

import numpy as np
import SimpleITK as sitk

from osteomorph.errors import InputError
from osteomorph.io.enhanced import frames
from osteomorph.io.files import is_dicom
from osteomorph.io.gantry import LARGEST_DEG, Tilt
from osteomorph.io.headers import Header, repaired_grid, warn
from osteomorph.io.itk import DTYPES, FLIP

FEWEST = 4
"""Images of a series that may be a volume; localisers, and files without an image (structures, plans), are fewer."""

UNEVEN = 0.02
"""Part of the step between two slices, and mm, by which steps may differ; headers round."""

SAME = 1e-3
"""By which directions (cosines) and spacings (mm) may."""

MOST_LISTED = 6

CLASS = b"\2\0\2\0UI"
"""Before a file's class (media storage SOP class UID) and its length, at its beginning."""

SERIES, DESCRIPTION, MODALITY = "0020|000e", "0008|103e", "0008|0060"
BITS, SIGNED, INTERCEPT, SLOPE = "0028|0101", "0028|0103", "0028|1052", "0028|1053"


@final
@dataclass(frozen=True, eq=False)
class _Plane:
    """One slice: its file, its size in voxels, spacing in mm and directions (columns) of its axes, its first voxel's centre in
    LPS mm, and its tags; a frame's number where its file holds several."""

    file: Path
    size: tuple[int, ...]
    spacing_mm: np.ndarray
    direction: np.ndarray
    corner_mm: np.ndarray
    pixel: int
    components: int
    tags: dict[str, str]
    frame: int | None = None

    @classmethod
    def where_readable(cls, file: Path) -> "_Plane | None":
        """None of a file without an image, and of one that is damaged."""
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(file))
        try:
            with _quietly():
                reader.ReadImageInformation()
        except RuntimeError:
            return None
        tags = {key: _readable(reader.GetMetaData(key)) for key in reader.GetMetaDataKeys() if key in _TAGS}
        return cls(
            file,
            tuple(reader.GetSize()),
            np.array(reader.GetSpacing())[:2],
            np.reshape(reader.GetDirection(), (reader.GetDimension(),) * 2)[:3, :3],
            np.array(reader.GetOrigin())[:3],
            reader.GetPixelID(),
            reader.GetNumberOfComponents(),
            tags,
        )

    @property
    def name(self) -> str:
        return self.file.name if self.frame is None else f"frame {self.frame + 1}"

    @property
    def count(self) -> int:
        """Slices in the file."""
        return int(self.size[2]) if len(self.size) > 2 else 1

    def frames(self) -> "list[_Plane]":
        """Of a file of several: each of them.

        Raises InputError: the file does not tell where they lie.
        """
        return [
            replace(
                self,
                size=(*self.size[:2], 1),
                spacing_mm=frame.spacing_mm,
                direction=frame.direction,
                corner_mm=frame.corner_mm,
                tags={**self.tags, SLOPE: str(frame.slope), INTERCEPT: str(frame.intercept)},
                frame=number,
            )
            for number, frame in enumerate(frames(self.file))
        ]

    def parallel(self, other: "_Plane") -> bool:
        """Whether both are slices of one volume, as far as their axes go."""
        return (
            self.size == other.size
            and bool(np.abs(self.spacing_mm - other.spacing_mm).max() < SAME)
            and bool(np.abs(self.direction - other.direction).max() < SAME)
        )

    @property
    def dtype(self) -> np.dtype:
        """Of its values as they are read: whole numbers that fit take 16 bits, which ITK does not see."""
        dtype = np.dtype(DTYPES[self.pixel])
        if dtype.kind == "f":
            return np.dtype(np.float32)
        slope, bits = float(self.tags.get(SLOPE) or 1), int(self.tags.get(BITS) or 16)
        ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if self.tags.get(SIGNED) == "1" else [0, 2**bits - 1])
        ends = ends * slope + float(self.tags.get(INTERCEPT) or 0)
        fits = ends.min() >= -(2**15) and ends.max() < 2**15
        return np.dtype(np.int16) if fits and dtype.itemsize > 2 else dtype


_TAGS = (SERIES, DESCRIPTION, MODALITY, BITS, SIGNED, INTERCEPT, SLOPE)


def files(path: Path) -> list[Path]:
    """Of the series that a file belongs to, or of the only one in a folder that may be a volume, by name.

    Raises InputError: no DICOM, several such series, or a file that is damaged.
    """
    return [plane.file for plane in _series(path)]


def header(path: Path) -> Header:
    """Of a series as a volume, its slices in the order of their places.

    Where the gantry was tilted, of the upright volume, with a HeaderWarning.

    Raises InputError: as `files`; several values per voxel or frames per file, slices that are not parallel, more than one at a
    place, or uneven steps between them.
    """
    planes = _series(path)
    if planes[0].count > 1:
        if len(planes) > 1:
            raise InputError(f"{path} holds {len(planes)} files of several frames each. Give one of them.")
        planes = planes[0].frames()
    first = planes[0]
    if (other := next((plane for plane in planes if not plane.parallel(first)), None)) is not None:
        raise InputError(
            f"{path}: {first.name} and {other.name} differ in size, spacing or orientation. Give a series of parallel slices."
        )
    normal = np.cross(first.direction[:, 0], first.direction[:, 1])
    planes.sort(key=lambda plane: float(plane.corner_mm @ normal))
    affine = np.eye(4)
    affine[:3, :2] = first.direction[:, :2] * first.spacing_mm
    affine[:3, 2] = _step(path, planes, normal)
    affine[:3, 3] = planes[0].corner_mm
    affine, shape = FLIP @ affine, (first.size[0], first.size[1], len(planes))
    tilt = Tilt.of(affine[:3, :3], len(planes))
    if tilt is not None:
        if tilt.angle_deg > LARGEST_DEG:
            raise InputError(
                f"{path}: its slices lie beside each other, {tilt.angle_deg:.0f} degrees from upright. Give one stack."
            )
        warn(path, f"slices are shifted in their planes to take out a gantry tilt of {tilt.angle_deg:.1f} degrees.")
        affine, shape = tilt.upright(affine, shape)
    kinds = {plane.dtype for plane in planes}
    dtype = first.dtype if len(kinds) == 1 else np.dtype(np.float32)
    names = tuple(plane.file for plane in planes) if first.frame is None else (first.file,)
    order = tuple(plane.frame for plane in planes if plane.frame is not None)
    grid = repaired_grid(shape, affine, path)
    return Header(path, shape, dtype, grid, components=first.components, files=names, frames=order, tilt=tilt)


def voxels(head: Header) -> np.ndarray:
    """Voxels (i, j, k) of a series, rescaled as its files say (CT: Hounsfield units).

    Raises InputError: damaged.
    """
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in head.files])
    reader.SetImageIO("GDCMImageIO")
    reader.SetOutputPixelType(next(pixel for pixel, dtype in DTYPES.items() if dtype == head.dtype))
    try:
        with _quietly():
            stack = sitk.GetArrayFromImage(reader.Execute()).T
    except RuntimeError:
        raise InputError(f"{head.path}: a file of the series is truncated or damaged. Copy or export it again.") from None
    if head.frames:
        stack = stack.reshape(*stack.shape[:2], -1)[:, :, list(head.frames)]
    return stack if head.tilt is None else head.tilt.corrected(stack)


# -- helpers ------------------------------------------------------------------------------------------------------------
def _series(path: Path) -> list[_Plane]:
    """See `files`. Every file is read by itself: GDCM's own scan of a folder stops at one that it cannot parse."""
    folder = path if path.is_dir() else path.parent
    found: dict[str, list[_Plane]] = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and (plane := _Plane.where_readable(file)) is not None:
            found.setdefault(plane.tags.get(SERIES, ""), []).append(plane)
    known = {plane.file for planes in found.values() for plane in planes}
    series = list(found.values())
    if folder != path:
        series = [planes for planes in series if path.name in {plane.file.name for plane in planes}]
        if not series:
            raise InputError(
                f"{path} holds no DICOM image, or is truncated or damaged. Give a file of the series of a CT or an MR."
            )
    if not series:
        raise InputError(f"{path} is a folder without DICOM images. Give a file, or the folder that holds one DICOM series.")
    volumes = [planes for planes in series if sum(plane.count for plane in planes) >= FEWEST] or series
    if len(volumes) > 1:
        listed = ", ".join(map(_told, volumes[:MOST_LISTED]))
        more = f" and {len(volumes) - MOST_LISTED} more" if len(volumes) > MOST_LISTED else ""
        raise InputError(f"{path} holds {len(volumes)} DICOM series: {listed}{more}. Give one file of the one that is meant.")
    _check_whole(volumes[0][0].file, known)
    return volumes[0]


def _check_whole(first: Path, known: set[Path]) -> None:
    """Raises InputError where a file beside a series says that it is of its kind, or no longer what it is, and could not be
    read. Structures and plans, which lie there too, are of another kind. first: of the series. known: what could be read."""
    kind = _class(first)
    for file in sorted(first.parent.iterdir()):
        if file.is_file() and file not in known and is_dicom(file) and _class(file) in (kind, b""):
            raise InputError(f"{file} is truncated or damaged, and may be a slice of the series. Copy or export it again.")


def _class(file: Path) -> bytes:
    """What a file says it is; empty where its beginning is lost."""
    with file.open("rb") as opened:
        start = opened.read(1024)
    at = start.find(CLASS)
    end = at + len(CLASS) + 2
    return b"" if at < 0 else start[end : end + int.from_bytes(start[end - 2 : end], "little")]


def _readable(text: str) -> str:
    """A tag without padding; letters of another encoding than UTF-8, which many files have, become question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text.strip(" \0"))


def _told(planes: list[_Plane]) -> str:
    tags, count = planes[0].tags, len(planes)
    what = f"{tags.get(DESCRIPTION) or 'without a name'} ({tags.get(MODALITY) or 'no image'}"
    return f"{what}, {count} file{'s' * (count > 1)}, {planes[0].file.name})"


def _step(path: Path, planes: list[_Plane], normal: np.ndarray) -> np.ndarray:
    """From one slice to the next, LPS mm."""
    if len(planes) == 1:
        return normal
    steps = np.diff([float(plane.corner_mm @ normal) for plane in planes])
    usual = float(np.median(steps))
    at = int(steps.argmin())
    if steps[at] < UNEVEN * max(usual, 1.0):
        raise InputError(
            f"{path} holds several images of one place ({planes[at].name}, {planes[at + 1].name}): echoes, times or "
            "diffusion weights, or headers without places. Convert it with dcm2niix and give one of its volumes."
        )
    at = int(np.abs(steps - usual).argmax())
    if abs(steps[at] - usual) > UNEVEN * max(usual, 1.0):
        raise InputError(
            f"{path}: its slices lie {usual:.4g} mm apart, but {planes[at].name} and {planes[at + 1].name} "
            f"{steps[at]:.4g} mm. A file may be missing; export the series again, or resample it to even steps."
        )
    return np.asarray((planes[-1].corner_mm - planes[0].corner_mm) / (len(planes) - 1))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what GDCM prints of files that it leaves out, which is one switch for all threads."""
    with _switch:
        _shown.append(sitk.ProcessObject.GetGlobalWarningDisplay())
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        with _switch:  # the last one out leaves it as the first one found it
            sitk.ProcessObject.SetGlobalWarningDisplay(_shown.pop())


_switch, _shown = Lock(), list[bool]()
