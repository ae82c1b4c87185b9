"""Images, labels and masks from files, checked; and back. The format follows from the name's ending."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.io import dicom, itk, nifti
from osteomorph.io.files import ITK, NIFTI, PathLike, existing, suffix, volume_format
from osteomorph.io.headers import Header

THINNEST = 4
"""Fewest voxels along an axis."""

SAME_GRID = 0.05
"""Part of a voxel by which the grids of an image and its labels may differ; headers round."""

MOST_LABELS = 4096

_READERS: dict[str, ModuleType] = {"nifti": nifti, "itk": itk, "dicom": dicom}
"""By `volume_format`."""


def read_header(path: PathLike) -> Header:
    """What the file says of itself; no voxels are loaded.

    Raises InputError: missing, unsupported or damaged, or its geometry cannot be used.
    """
    path = Path(path)
    return _READERS[volume_format(path)].header(path)


def digest(path: PathLike) -> str:
    """SHA-256 of a volume's file; of a DICOM series, of its files by name, one after the other.

    Raises InputError: missing, or no volume.
    """
    path, found = Path(path), hashlib.sha256()
    for file in dicom.files(path) if volume_format(path) == "dicom" else [path]:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def read_image(path: PathLike) -> Image:
    """An image as (1, i, j, k) float32, with its grid and the data type it was stored in.

    Raises InputError: as `read_header`; not 3-D, colour or complex, thinner than 4 voxels, NaN or infinity, constant, or a
    label map.
    """
    voxels, grid, head = _volume(Path(path))
    data = np.array(voxels, dtype=np.float32, order="C")
    with np.errstate(invalid="ignore"):
        low, high = float(data.min()), float(data.max())
    _check_finite(data, low, high, head.path)
    if low == high:
        what = "0 everywhere" if low == 0 else f"{low:g} everywhere"
        raise InputError(f"{head.path}: the image is {what}, so there is nothing to register. Export it again.")
    if low >= 0 and _looks_like_labels(data, int(min(high, 2**31))):
        raise InputError(
            f"{head.path} looks like a label map (few whole numbers, mostly 0), not an image. "
            "Give the image here and this file as labels."
        )
    return Image(torch.from_numpy(data)[None], grid, head.stored)


def read_labels(path: PathLike, like: Grid | None = None) -> Labels:
    """A label map as (1, i, j, k) int16 or int32; whole numbers stored as float are taken too.

    like: grid of the image the labels belong to; they then take that very grid.

    Raises InputError: as `read_header`; not 3-D, no whole numbers, negative, an image, empty, or on another grid than ``like``.
    """
    voxels, grid, head = _volume(Path(path), whole=True)
    if head.dtype.kind == "f" or head.scaled:
        _check_finite(voxels, float(voxels.min()), float(voxels.max()), head.path)
        if not np.array_equal(voxels, np.rint(voxels)):
            raise InputError(
                f"{head.path} holds fractions, so it is an image and no label map. Give whole numbers, one per structure."
            )
    low, high = int(voxels.min()), int(voxels.max())
    if low < 0:
        raise InputError(
            f"{head.path} holds negative values (down to {low}), so it is an image and no label map. "
            "Give ids from 1 up, 0 for background."
        )
    if high == 0:
        raise InputError(f"{head.path}: the label map holds background (0) alone. Check that the segmentation was saved.")
    if high >= 2**31:
        raise InputError(f"{head.path}: label ids go up to {high}, and the largest allowed is {2**31 - 1}. Renumber them.")
    data = np.array(voxels, dtype=np.int16 if high < 2**15 else np.int32, order="C")
    distinct = _distinct(data)
    if distinct > MOST_LABELS or (distinct > 64 and _flatness(data) < 0.65):
        raise InputError(
            f"{head.path} holds {distinct} different values and looks like an image, not a label map. Give a label map here."
        )
    if like is not None:
        grid = _on_grid(head.path, "labels", grid, like)
    whole = head.dtype.kind in "iu" and head.dtype.itemsize < 8 and not head.scaled
    return Labels(torch.from_numpy(data)[None], grid, {}, head.dtype if whole else np.min_scalar_type(high))


def read_mask(path: PathLike, grid: Grid) -> Image:
    """A mask as weights in [0, 1] on the grid of its image.

    Raises InputError: as `read_header`; values outside [0, 1], 0 everywhere, or on another grid.
    """
    voxels, own, head = _volume(Path(path))
    data = np.array(voxels, dtype=np.float32, order="C")
    low, high = float(data.min()), float(data.max())
    _check_finite(data, low, high, head.path)
    if low < -1e-3 or high > 1 + 1e-3:
        raise InputError(
            f"{head.path}: a mask holds weights from 0 to 1, and this one goes from {low:g} to {high:g}. Divide or binarise it."
        )
    if high <= 0:
        raise InputError(
            f"{head.path}: the mask is 0 everywhere, so nothing would count. Give one that is 1 where the image is to be used."
        )
    return Image(torch.from_numpy(data.clip(0, 1))[None], _on_grid(head.path, "mask", own, grid), head.stored)


def read_names(path: PathLike) -> dict[int, str]:
    """Names of label ids from a JSON file such as ``{"1": "vertebrae_L5", "8": "sacrum"}``.

    Raises InputError: missing, no JSON, or not ids with names.
    """
    path = existing(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {int(key): str(name) for key, name in content.items()}
    except (UnicodeDecodeError, ValueError, AttributeError):
        raise InputError(
            f'{path} does not hold label names. Give JSON such as {{"1": "vertebrae_L5", "8": "sacrum"}}.'
        ) from None


def check_ids(labels: Labels, ids: Iterable[int], name: str = "the label map") -> None:
    """Raises InputError where an id does not occur in ``labels`` (called ``name`` in the message)."""
    present = labels.ids()
    absent = sorted(set(ids) - set(present))
    if absent:
        some = ", ".join(labels.name(p) if labels.name(p) == str(p) else f"{p} ({labels.name(p)})" for p in present[:20])
        more = f" and {len(present) - 20} more" if len(present) > 20 else ""
        raise InputError(
            f"No voxel of {name} has label {', '.join(map(str, absent))}. It holds {some}{more}; name some of these."
        )


def write_image(path: PathLike, image: Image | Labels) -> None:
    """An image or labels in the data type they are stored in, as NIfTI, MHA or NRRD by the name's ending.

    Intensities are rounded and clipped to the range of that type; label ids that do not fit take a wider one.

    Raises InputError: another ending, no such folder, or the system refuses to write.
    """
    if image.data.shape[0] != 1:
        raise ValueError(f"Only images of one channel are written, and this one has {image.data.shape[0]}.")
    ending = suffix(path)
    if ending not in NIFTI + ITK:
        raise InputError(
            f"{path}: images are not written with this ending. Give a name that ends in one of {', '.join(NIFTI + ITK)}."
        )
    data = image.data[0].detach().cpu().numpy()
    data = _fitting(data, image.stored) if isinstance(image, Labels) else _rounded(data, image.stored)
    (nifti if ending in NIFTI else itk).write_voxels(path, data, image.grid)


# -- helpers ------------------------------------------------------------------------------------------------------------
def _volume(path: Path, whole: bool = False) -> tuple[np.ndarray, Grid, Header]:
    """Voxels of a file that holds one scalar 3-D volume. whole: numbers, which are not to be interpolated."""
    head = read_header(path)
    shape = head.shape
    text = " x ".join(map(str, shape))
    if head.dtype.kind == "c":
        raise InputError(f"{path} holds complex numbers. Give the magnitude image.")
    if head.dtype.fields is not None or head.components > 1:
        raise InputError(f"{path} holds colour or several values per voxel. Give an image of one value per voxel.")
    if len(shape) < 3 or head.grid is None:
        raise InputError(f"{path} is {len(shape)}-D ({text} voxels). Give a 3-D volume.")
    if int(np.prod(shape[3:])) != 1:
        raise InputError(f"{path} is {len(shape)}-D ({text} voxels). Give one 3-D volume; pick one of them and save it alone.")
    if min(shape[:3]) < THINNEST:
        axis = int(np.argmin(shape[:3]))
        raise InputError(
            f"{path} is {shape[axis]} voxel(s) thin along array axis {axis} ({text} voxels). "
            f"Give a volume of at least {THINNEST} along every axis."
        )
    if whole and head.tilt is not None:
        raise InputError(
            f"{path} holds labels on slices of a tilted gantry, and setting these upright would mix them. "
            "Draw the labels on the image as it is read, or resample them onto its grid."
        )
    voxels = _READERS[volume_format(path)].voxels(head)
    return voxels.reshape(shape[:3]), head.grid, head


def _check_finite(data: np.ndarray, low: float, high: float, path: Path) -> None:
    if not np.isfinite([low, high]).all():
        count = data.size - int(np.count_nonzero(np.isfinite(data)))
        raise InputError(
            f"{path} holds NaN or infinity in {count} voxel{'s' * (count != 1)}. "
            "Replace them first, for example by the background's value."
        )


def _looks_like_labels(data: np.ndarray, high: int) -> bool:
    """Few whole numbers, mostly 0, and neighbours alike: what an image with its noise is not."""
    some = data.ravel()[:: max(1, data.size // 100_000)]
    if high > 65535 or not np.array_equal(some, np.rint(some)) or len(np.unique(some)) > 256:
        return False
    if np.count_nonzero(data) > data.size / 2 or not np.array_equal(data, np.rint(data)):
        return False
    distinct = _distinct(data)
    return distinct <= 256 and _flatness(data) > (0.4 if distinct <= 64 else 0.7)


def _distinct(data: np.ndarray) -> int:
    """Number of different values, whole and at least 0."""
    inside = data[data > 0].astype(np.int64)
    if inside.size and inside.max() >= 2**20:
        return len(np.unique(inside)) + 1
    return int(np.count_nonzero(np.bincount(inside))) + 1


def _flatness(data: np.ndarray) -> float:
    """Part of the neighbouring voxel pairs, those of zeros left out, whose values are equal."""
    stride = max(1, round((data.size / 2e6) ** 0.5))
    pairs = equal = 0
    for axis in range(3):
        lines = np.moveaxis(data, axis, 0)[:, ::stride, ::stride]
        seen = (lines[:-1] != 0) | (lines[1:] != 0)
        pairs += int(np.count_nonzero(seen))
        equal += int(np.count_nonzero(seen & (lines[:-1] == lines[1:])))
    return equal / max(pairs, 1)


def _on_grid(path: Path, what: str, grid: Grid, like: Grid) -> Grid:
    """``like``, where ``grid`` is the same but for rounding."""
    if grid.isclose(like, SAME_GRID * float(like.spacing_mm.min())):
        return like
    verb, possessive = ("are", "their") if what == "labels" else ("is", "its")
    raise InputError(
        f"{path}: {what} {verb} on another grid ({_described(grid)}) than {possessive} image ({_described(like)}). "
        f"Resample {'them' if what == 'labels' else 'it'} onto the image's grid first, with nearest-neighbour interpolation."
    )


def _described(grid: Grid) -> str:
    spacing = " x ".join(f"{s:.2f}" for s in grid.spacing_mm)
    shape = " x ".join(map(str, grid.shape))
    centre = ", ".join(f"{c:.1f}" for c in grid.centre_mm)
    return f"{spacing} mm, {shape} voxels, axes {grid.axcodes}, centre {centre}"


def _rounded(data: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind not in "iu":
        return data.astype(dtype)
    limits, out = np.iinfo(dtype), np.empty(data.shape, dtype)
    for plane, values in zip(out, data, strict=True):  # never the whole image several times over
        exact = np.nan_to_num(np.rint(values.astype(np.float64 if dtype.itemsize > 2 else data.dtype)))
        plane[:] = exact.clip(limits.min, limits.max)
    return out


def _fitting(data: np.ndarray, dtype: np.dtype) -> np.ndarray:
    low, high = int(data.min()), int(data.max())
    fits = dtype.kind in "iu" and np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max
    return data.astype(dtype if fits else np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high)))
