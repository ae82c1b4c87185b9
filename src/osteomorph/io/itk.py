"""The RAS/LPS border: MHA and NRRD volumes, and ITK transforms, through SimpleITK.

ITK's world is LPS: x and y have the other sign. Its arrays come as (k, j, i). Both stay here and in `itk_hdf5`.

One difference remains: outside a displacement field's grid (beyond the outer voxel faces) ITK leaves points where they
are, and `Displacement` goes on with the border's vector. So give a field a grid that holds the points asked for.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.io import nifti
from osteomorph.io.files import ITK, NIFTI, PathLike, existing, suffix, volume_format, writing
from osteomorph.io.headers import Header, repaired_grid, warn
from osteomorph.io.itk_hdf5 import FLIP, write_composite
from osteomorph.transforms import Chain, Displacement, Rigid, Transform

TRANSFORMS = (".h5", ".hdf5", ".tfm", ".txt", ".mat")
"""Endings of ITK transform files."""

RIGID_TOLERANCE = 1e-4
"""How far from orthonormal a rotation read from a file may be; text files round."""

DTYPES = {
    sitk.sitkUInt8: np.uint8,
    sitk.sitkInt8: np.int8,
    sitk.sitkUInt16: np.uint16,
    sitk.sitkInt16: np.int16,
    sitk.sitkUInt32: np.uint32,
    sitk.sitkInt32: np.int32,
    sitk.sitkUInt64: np.uint64,
    sitk.sitkInt64: np.int64,
    sitk.sitkFloat32: np.float32,
    sitk.sitkFloat64: np.float64,
    sitk.sitkComplexFloat32: np.complex64,
    sitk.sitkComplexFloat64: np.complex128,
    sitk.sitkVectorUInt8: np.uint8,
    sitk.sitkVectorInt8: np.int8,
    sitk.sitkVectorUInt16: np.uint16,
    sitk.sitkVectorInt16: np.int16,
    sitk.sitkVectorUInt32: np.uint32,
    sitk.sitkVectorInt32: np.int32,
    sitk.sitkVectorUInt64: np.uint64,
    sitk.sitkVectorInt64: np.int64,
    sitk.sitkVectorFloat32: np.float32,
    sitk.sitkVectorFloat64: np.float64,
}


# -- volumes ------------------------------------------------------------------------------------------------------------
def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is truncated or damaged, or the data file it names is missing. Copy or export it again.")


def header(path: Path) -> Header:
    """Header of an MHA or NRRD file.

    Raises InputError: damaged, or its geometry cannot be used.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise _damaged(path) from None
    shape = tuple(int(n) for n in reader.GetSize())
    if suffix(path) in (".nrrd", ".nhdr") and not reader.HasMetaDataKey("NRRD_space"):
        warn(path, "its header names no anatomical space; its geometry is assumed to be in LPS.")
    grid = None
    if len(shape) >= 3:
        grid = repaired_grid(shape[:3], _affine(reader.GetDirection(), reader.GetSpacing(), reader.GetOrigin()), path)
    dtype = np.dtype(DTYPES[reader.GetPixelID()])
    return Header(path, shape, dtype, grid, components=reader.GetNumberOfComponents())


def voxels(head: Header) -> np.ndarray:
    """Voxels (i, j, k) of the file a header is of, one value each, in the data type on disk.

    Raises InputError: damaged.
    """
    return sitk.GetArrayFromImage(_read(head.path)).T


def _read(path: Path, pixel: int = sitk.sitkUnknown) -> sitk.Image:
    try:
        return sitk.ReadImage(str(path), pixel)
    except RuntimeError:
        raise _damaged(path) from None


def write_voxels(path: PathLike, data: np.ndarray, grid: Grid) -> None:
    """Voxels (i, j, k) in their own data type as MHA or NRRD, compressed."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    _place(image, grid)
    with writing(path) as target:
        sitk.WriteImage(image, str(target), useCompression=True, compressionLevel=1)


def _affine(direction: Sequence[float], spacing: Sequence[float], origin: Sequence[float]) -> np.ndarray:
    """RAS affine of the first three axes of ITK's geometry."""
    n = len(spacing)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(direction, (n, n))[:3, :3] * np.asarray(spacing)[:3]
    affine[:3, 3] = origin[:3]
    return FLIP @ affine


def _place(image: sitk.Image, grid: Grid) -> None:
    """Give an image the geometry of a grid."""
    lps = FLIP @ grid.affine
    image.SetSpacing(grid.spacing_mm.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / grid.spacing_mm).ravel().tolist())


# -- transforms, out ----------------------------------------------------------------------------------------------------
def write_transform(path: PathLike, transform: Transform) -> None:
    """A transform as ITK, ANTs and Slicer read it: fixed -> moving points, LPS mm.

    ``.h5`` holds a composite; ``.tfm`` (text) one affine, for a rigid transform alone. A velocity is written as the
    displacement it integrates to.

    Raises InputError: another ending, or a field into ``.tfm``.
    """
    ending = suffix(path)
    if ending not in (".h5", ".hdf5", ".tfm"):
        raise InputError(f"{path}: transforms are written as .h5, or as .tfm where they are rigid. Give a name that ends so.")
    steps = _flat(transform)
    with writing(path) as target:
        if ending != ".tfm":
            write_composite(target, steps)
        elif len(steps) == 1 and isinstance(steps[0], Rigid):
            sitk.WriteTransform(_affine_transform(steps[0]), str(target))
        else:
            raise InputError(f"{path}: .tfm holds a rigid transform alone, and this one is more. Give a name that ends in .h5.")


def _flat(transform: Transform) -> list[Transform]:
    if isinstance(transform, Chain):
        return [part for step in transform.steps for part in _flat(step)]
    return [transform]


def _affine_transform(step: Rigid) -> sitk.Transform:
    lps = FLIP @ step.matrix @ FLIP
    affine = sitk.AffineTransform(3)  # other readers know no Euler angles
    affine.SetMatrix(lps[:3, :3].ravel().tolist())
    affine.SetTranslation(lps[:3, 3].tolist())
    return affine


# -- transforms, in -----------------------------------------------------------------------------------------------------
def read_transform(path: PathLike) -> Transform:
    """A transform of points, fixed -> moving, from an ITK transform file or a displacement field in mm.

    ITK files (.h5, .tfm, .txt, .mat) may nest rigid, translation and affine-but-rigid transforms and displacement fields.
    Fields may also be NIfTI (5-D, intent 1006 or 1007) or MHA and NRRD of 3-vectors, which are LPS.

    Raises InputError: no transform, scale or shear, or a kind that is not rigid and not a field.
    """
    path = existing(path)
    ending = suffix(path)
    if ending in NIFTI + ITK:
        return _read_field(path)
    if ending not in TRANSFORMS:
        raise InputError(
            f"{path} is no transform: files that end in {ending or 'nothing'} are not read as one. "
            f"Give {', '.join(TRANSFORMS + NIFTI)}."
        )
    with path.open("rb") as file:
        start = file.read(8)
    known = {".h5": b"\x89HDF\r\n\x1a\n", ".hdf5": b"\x89HDF\r\n\x1a\n", ".tfm": b"#Insight", ".txt": b"#Insight"}.get(
        ending, start
    )
    try:
        if start != known:
            raise RuntimeError("other content")
        read = sitk.ReadTransform(str(path))
    except RuntimeError:
        raise InputError(
            f"{path} is not a transform written by ITK, or it is damaged. "
            "Give a transform.h5 of this program, or one of ITK, ANTs or Slicer."
        ) from None
    if read.GetDimension() != 3:
        raise InputError(f"{path} transforms {read.GetDimension()}-D points. Give a 3-D transform.")
    result: Transform = Rigid.identity()
    for step in _from_itk(read, path):
        result = step if isinstance(result, Rigid) and np.array_equal(result.matrix, np.eye(4)) else step.after(result)
    return result


def _from_itk(transform: sitk.Transform, path: Path) -> list[Transform]:
    """Steps in the order they are applied."""
    part = transform.Downcast()
    if isinstance(part, sitk.CompositeTransform):
        parts = [part.GetNthTransform(n) for n in range(part.GetNumberOfTransforms())]
        return [step for nested in reversed(parts) for step in _from_itk(nested, path)]
    if isinstance(part, sitk.DisplacementFieldTransform):
        return [_field(part.GetDisplacementField(), path)]
    if not part.IsLinear():
        raise InputError(f"{path} holds a {part.GetName()}, which is not read. Convert it to a displacement field in mm first.")
    offset = np.array(part.TransformPoint((0.0, 0.0, 0.0)))
    lps = np.eye(4)
    lps[:3, :3] = np.stack([part.TransformPoint(axis) for axis in np.eye(3).tolist()], -1) - offset[:, None]
    lps[:3, 3] = offset
    left, scales, right = np.linalg.svd(lps[:3, :3])
    if np.abs(scales - 1).max() > RIGID_TOLERANCE or np.linalg.det(left @ right) < 0:
        raise InputError(
            f"{path} holds an affine transform with scale, shear or reflection "
            f"(scales {scales.min():.4f} to {scales.max():.4f}). "
            "Give a rigid one; for one patient both images have the same size."
        )
    lps[:3, :3] = left @ right
    return [Rigid(FLIP @ lps @ FLIP)]


def _read_field(path: Path) -> Displacement:
    if volume_format(path) == "nifti":
        vectors, grid, intent = nifti.vectors(path)
        return _displacement(vectors, grid, intent == nifti.VECTORS_LPS, path)
    head = header(path)
    if len(head.shape) != 3 or head.components != 3:
        raise InputError(f"{path} holds an image, so it is no transform. Give a transform.h5, or a field of 3-vectors in mm.")
    return _field(_read(path, sitk.sitkVectorFloat64), path)


def _field(image: sitk.Image, path: Path) -> Displacement:
    if image.GetNumberOfPixels() == 0:
        raise InputError(f"{path} holds an empty displacement field. Write it again.")
    grid = repaired_grid(image.GetSize(), _affine(image.GetDirection(), image.GetSpacing(), image.GetOrigin()), path)
    return _displacement(sitk.GetArrayViewFromImage(image).transpose(3, 2, 1, 0), grid, True, path)


def _displacement(vectors: np.ndarray, grid: Grid, lps: bool, path: Path) -> Displacement:
    ours = np.array(vectors, dtype=np.float32, order="C")
    if lps:
        ours[:2] *= -1
    if not np.isfinite(ours).all():
        raise InputError(f"{path}: its displacements hold NaN or infinity. Write them again, with 0 where nothing is known.")
    return Displacement(torch.from_numpy(ours), grid)
