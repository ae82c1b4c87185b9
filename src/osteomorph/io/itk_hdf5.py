"""ITK's composite transforms as HDF5, written straight from our arrays.

SimpleITK turns a field into float64 and copies it twice on the way: 5 times its memory, and twice its size on disk. ITK reads
either precision into whichever it computes with.
"""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from osteomorph.geometry import Grid
from osteomorph.transforms import Displacement, Rigid, Transform, Velocity

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS <-> LPS, for points and for vectors; it is its own inverse."""

PLANES = 8
"""Of a field that are turned round at a time: they stay in the cache."""


def write_composite(path: Path, steps: Sequence[Transform]) -> None:
    """A composite of rigid steps (float64, as affine transforms: other readers know no Euler angles) and of displacements
    (float32), fixed -> moving points in LPS mm. steps: in the order they are applied; ITK applies the last of a file first."""
    with h5py.File(path, "w") as file:
        for name, value in (
            ("ITKVersion", "5.4"),
            ("HDFVersion", h5py.version.hdf5_version),
            ("OSName", ""),
            ("OSVersion", ""),
        ):
            _text(file, name, value)
        group = file.create_group("TransformGroup")
        _text(group.create_group("0"), "TransformType", "CompositeTransform_double_3_3")
        for number, step in enumerate(reversed(steps), 1):
            _write_step(group.create_group(str(number)), step)


def _write_step(group: h5py.Group, step: Transform) -> None:
    if isinstance(step, Rigid):
        lps = FLIP @ step.matrix @ FLIP
        _text(group, "TransformType", "AffineTransform_double_3_3")
        group["TransformFixedParameters"] = np.zeros(3)
        group["TransformParameters"] = np.concatenate([lps[:3, :3].ravel(), lps[:3, 3]])
        return
    field = step.flow if isinstance(step, Velocity) else step
    if not isinstance(field, Displacement):
        raise ValueError(f"No ITK form of {type(step).__name__}. Sample it: Displacement(transform.displacement(grid), grid).")
    _text(group, "TransformType", "DisplacementFieldTransform_float_3_3")
    group["TransformFixedParameters"] = _placed(field.grid)
    ours = field.vectors.detach().cpu().numpy()
    flat = group.create_dataset("TransformParameters", (ours.size,), np.float32)
    plane = ours[..., 0].size
    for first in range(0, ours.shape[-1], PLANES):
        part = ours[..., first : first + PLANES].transpose(3, 2, 1, 0) * FLIP.diagonal()[:3].astype(np.float32)
        flat[first * plane : first * plane + part.size] = part.ravel()


def _placed(grid: Grid) -> np.ndarray:
    """(18,): shape, origin, spacing and direction of a grid in LPS mm."""
    lps = FLIP @ grid.affine
    spacing = grid.spacing_mm
    return np.concatenate([grid.shape, lps[:3, 3], spacing, (lps[:3, :3] / spacing).ravel()]).astype(np.float64)


def _text(group: h5py.Group, name: str, value: str) -> None:
    group.create_dataset(name, (1,), h5py.string_dtype("ascii"), data=value)
