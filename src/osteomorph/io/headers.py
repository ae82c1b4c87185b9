"""What a file says about its voxels without loading them, and grids from headers that are not quite right."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.io.gantry import Tilt

SHEAR_KEPT = 1e-5
"""Largest dot product of two axes that passes as rounding of the header."""

REPAIR_LIMIT = 0.05
"""Largest repair of the directions, as a part of the longest side of the field of view."""


class HeaderWarning(UserWarning):
    """Geometry that a header leaves open, or that had to be repaired."""


@final
@dataclass(frozen=True, eq=False)
class Header:
    """What is known before voxels are loaded.

    path: the file, or a DICOM series' folder.
    shape: all axes as stored, also those beyond the third.
    dtype: of the voxels on disk, native byte order.
    grid: of the first three axes; None for a file with fewer.
    scaled: whether stored values are multiplied or shifted on reading.
    intent: NIfTI intent code; 1006 and 1007 are vectors. 0 for other formats.
    components: values per voxel.
    files, frames: of a DICOM series, in the order of its slices; frames, from 0, of one file that holds several.
    tilt: the gantry's, which ``shape`` and ``grid`` are without.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    grid: Grid | None
    scaled: bool = False
    intent: int = 0
    components: int = 1
    files: tuple[Path, ...] = ()
    frames: tuple[int, ...] = ()
    tilt: Tilt | None = None

    @property
    def voxels(self) -> int:
        """Voxels over all axes."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes(self) -> int:
        """Memory of the voxels in their own data type, uncompressed."""
        return self.voxels * self.components * self.dtype.itemsize

    @property
    def stored(self) -> np.dtype:
        """Data type results are written back in: the file's own; float32 where values are scaled or the type is rarely read."""
        if self.scaled or self.dtype.kind not in "iuf" or self.dtype.itemsize in (10, 12, 16) or self.dtype == np.float16:
            return np.dtype(np.float32)
        return np.dtype(np.int32) if self.dtype.kind in "iu" and self.dtype.itemsize == 8 else self.dtype


def warn(path: Path, text: str) -> None:
    """A HeaderWarning that names the file."""
    warnings.warn(f"{path}: {text}", HeaderWarning, stacklevel=2)


def repaired_grid(shape: tuple[int, ...], affine: np.ndarray, path: Path) -> Grid:
    """The grid of a header's shape and RAS+ mm affine, its axes made orthogonal where they are not.

    The directions become the nearest orthonormal ones (polar decomposition; Higham, 1986), the spacing along each axis and the
    centre of the field of view stay. Beyond 0.01 mm a HeaderWarning gives the largest displacement this causes.

    Raises InputError: not finite, spacing 0, or a repair of more than 5 % of the field of view.
    """
    size = (int(shape[0]), int(shape[1]), int(shape[2]))
    if not np.isfinite(affine).all():
        raise InputError(
            f"{path}: its header's geometry holds NaN or infinity. Write it again with the real spacing, origin and directions."
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < 1e-6:
        axis = int(spacing.argmin())
        raise InputError(
            f"{path}: its header gives a spacing of 0 mm along array axis {axis}. Write it again with the real spacing."
        )
    direction = affine[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() <= SHEAR_KEPT:
        return Grid(size, affine)
    left, stretch, right = np.linalg.svd(direction)
    columns = left @ right * spacing
    half = (np.array(size) - 1) / 2
    corners = np.stack(np.meshgrid(*zip(-half, half, strict=True), indexing="ij")).reshape(3, -1)
    largest = float(np.linalg.norm((columns - affine[:3, :3]) @ corners, axis=0).max())
    extent = float((spacing * size).max())
    if stretch.min() < 1e-3 or largest > REPAIR_LIMIT * extent:
        raise InputError(
            f"{path}: its axes are not orthogonal, and making them so would displace voxels by up to {largest:.1f} mm. "
            "Resample it onto a grid of orthogonal axes first, or give the DICOM series that it was made from."
        )
    if largest > 0.01:
        warn(path, f"axes that are not orthogonal were made so; this displaces voxels by up to {largest:.2f} mm.")
    repaired = np.eye(4)
    repaired[:3, :3] = columns
    repaired[:3, 3] = affine[:3, :3] @ half + affine[:3, 3] - columns @ half
    return Grid(size, repaired)
