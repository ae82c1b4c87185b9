"""NIfTI through nibabel: headers exactly as they are, RAS+ mm."""

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from osteomorph.errors import InputError
from osteomorph.geometry import SLAB_VOXELS, Grid
from osteomorph.io.files import PathLike, suffix, writing
from osteomorph.io.headers import Header, repaired_grid, warn
from osteomorph.transforms import Transform

VECTORS_RAS, VECTORS_LPS = 1006, 1007

NiftiImage = Any
"""nibabel's Nifti1Image or Nifti2Image, whose annotations say too little."""

_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_DEFLATE_LIMIT = 1032
"""Deflate shrinks data by no more than this."""

ROUNDED_MM = 2.0**-16
"""Written displacements are multiples of this, 15 nm: the bits below hold nothing, and take a seventh of the file."""

QFORM_MM = 0.01
"""Where a corner by the qform is further than this from itself by the sform, only the sform is written."""


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """nibabel finds damage late and in many ways."""
    try:
        yield
    except InputError:
        raise
    except (ImageFileError, HeaderDataError, EOFError, zlib.error, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is truncated or damaged ({reason}). Copy or export it again.") from None


def _open(path: Path) -> NiftiImage:
    with _damage(path):
        image: NiftiImage = nib.load(path, mmap=False)
        header = image.header
        needed = int(np.prod(header.get_data_shape(), dtype=np.float64)) * header.get_data_dtype().itemsize
        if needed > path.stat().st_size * (_DEFLATE_LIMIT if suffix(path) == ".nii.gz" else 1):
            raise EOFError(f"{needed} bytes of voxels expected")
        return image


def header(path: Path) -> Header:
    """Header of a NIfTI file.

    Raises InputError: damaged, or its geometry cannot be used.
    """
    return _header(path, _open(path))


def _header(path: Path, image: NiftiImage) -> Header:
    with _damage(path):
        head = image.header
        shape = tuple(int(n) for n in head.get_data_shape())
        scaled = (image.dataobj.slope, image.dataobj.inter) != (1.0, 0.0)  # nibabel clears them in the header
        dtype = head.get_data_dtype().newbyteorder("=")
        spacing = _spacing_as_stored(path, image)
    grid = repaired_grid(shape[:3], _affine(path, image, spacing), path) if len(shape) >= 3 and min(shape) > 0 else None
    return Header(path, shape, dtype, grid, scaled, int(head["intent_code"]))


def _affine(path: Path, image: NiftiImage, spacing: np.ndarray) -> np.ndarray:
    """Index -> RAS+ mm: the sform where its code is above 0, else the qform, else what the spacing alone gives."""
    head = image.header
    sform, qform = int(head["sform_code"]), int(head["qform_code"])
    if sform > 0:
        affine = head.get_sform()
        apart = _disagreement_mm(image) if qform > 0 and spacing.min() > 0 else 0.0
        if apart > 0.1:
            warn(path, f"its sform and qform disagree by up to {apart:.1f} mm; the sform is used, other tools may differ.")
    else:
        if spacing.min() <= 0:
            axis = int(spacing.argmin())
            raise InputError(
                f"{path}: its header gives a spacing of 0 mm along array axis {axis}. Write it again with the real spacing."
            )
        with _damage(path):
            affine = head.get_best_affine()
        if qform <= 0:
            warn(path, "its header has no orientation or position; array axes are assumed to run left, anterior, superior.")
    unit = _spatial_unit(image)
    if unit in ("meter", "micron"):
        warn(path, f"its header is in {unit}s; it is converted to mm.")
    return np.vstack([affine[:3] * _MM[unit], [[0, 0, 0, 1]]])


def _disagreement_mm(image: NiftiImage) -> float:
    """Largest distance of a corner voxel by the sform from itself by the qform; a qform that is none counts as agreeing."""
    head = image.header
    try:
        apart = (head.get_sform() - head.get_qform())[:3]
    except (HeaderDataError, ValueError):
        return 0.0
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in image.shape[:3]], [1], indexing="ij")).reshape(4, -1)
    return float(np.linalg.norm(apart @ corners, axis=0).max())


def _spatial_unit(image: NiftiImage) -> str:
    try:
        unit = image.header.get_xyzt_units()[0]
    except KeyError:
        return "unknown"
    return unit if unit in _MM else "unknown"


def _spacing_as_stored(path: Path, image: NiftiImage) -> np.ndarray:
    """nibabel sets a spacing of 0 to 1 on loading; here it is as it stands."""
    with ImageOpener(str(path)) as file:
        return np.abs(np.asarray(type(image.header).from_fileobj(file, check=False)["pixdim"][1:4], dtype=np.float64))


def voxels(head: Header) -> np.ndarray:
    """Voxels of the file a header is of: in the data type on disk, or floating where the header scales them.

    Raises InputError: damaged.
    """
    kind = type(_open(head.path))
    opened = gzip.open if suffix(head.path) == ".nii.gz" else open
    with _damage(head.path), opened(head.path, "rb") as file:
        image = kind.from_stream(file)
        data = image.get_fdata("unchanged", np.float32) if head.scaled else image.dataobj.get_unscaled()
        while file.read(2**20):  # only at its end does a gzip file prove its checksum
            pass
        return data


def write_voxels(path: PathLike, data: np.ndarray, grid: Grid) -> None:
    """Voxels (i, j, k) in their own data type; sform and, where it can say the same, qform are scanner (code 1), mm."""
    with writing(path) as target:
        _save(target, nib.Nifti1Image(data, grid.affine, dtype=data.dtype))


def _save(path: Path, image: NiftiImage, parts: Iterable[bytes] | None = None) -> None:
    """With gzip at its quickest and no time stamp: the same image gives the same bytes.

    parts: the voxels in the order of the file, where the image has none of its own.
    """
    image.header.set_xyzt_units("mm", "unknown")
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    if _disagreement_mm(image) > QFORM_MM:  # its three floats fix turns near 180 degrees to a milliradian only
        image.set_qform(None, code=0)
    with path.open("wb") as file, _stream(file, path, image) as stream:
        if parts is None:
            image.to_stream(stream)
            return
        image.header.write_to(stream)
        for part in parts:
            stream.write(part)


def _stream(file: IO[bytes], path: Path, image: NiftiImage) -> AbstractContextManager[Any]:
    if suffix(path) != ".nii.gz":
        return nullcontext(file)
    return _Deflating(file, image.get_data_dtype().kind == "f")


class _Deflating(io.RawIOBase):
    """gzip at level 1. Mantissas of floats repeat nothing: of them only runs of one byte are looked for, in a third of the time
    and to the same size."""

    def __init__(self, file: IO[bytes], floats: bool) -> None:
        strategy = zlib.Z_RLE if floats else zlib.Z_DEFAULT_STRATEGY
        self._file, self._at = file, 0
        self._deflate = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Forward alone, over zeros."""
        if whence != io.SEEK_SET or offset < self._at:
            raise io.UnsupportedOperation("what is compressed cannot be written over")
        self.write(bytes(offset - self._at))
        return self._at

    def write(self, data: Any) -> int:
        self._file.write(self._deflate.compress(data))
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.write(self._deflate.flush())
        super().close()


def write_displacement(path: PathLike, transform: Transform, grid: Grid) -> None:
    """u(x) = T(x) - x at the voxel centres of ``grid`` (fixed space), as ITK, ANTs and Slicer read it.

    5-D (i, j, k, 1, 3) float32, intent 1006 (displacement vectors), components along RAS axes in mm.
    """
    if suffix(path) not in (".nii", ".nii.gz"):
        raise InputError(f"{path}: a displacement is written as .nii or .nii.gz. Give a name that ends so.")
    image = nib.Nifti1Image(np.broadcast_to(np.float32(0), (*grid.shape, 1, 3)), grid.affine)
    image.header.set_slope_inter(1.0, 0.0)
    image.header.set_intent("displacement vector")
    image.header["descrip"] = b"T(x)-x at fixed x, fixed to moving, mm along RAS axes"
    with writing(path) as target:
        _save(target, image, _components(transform, grid, target.parent))


def _components(transform: Transform, grid: Grid, folder: Path) -> Iterator[bytes]:
    """Displacements in the order of a file, one component after the other, the first array axis fastest. They are computed once
    and a few planes at a time; two components wait in files of their own, so that a large field never lies in memory."""
    planes = max(1, SLAB_VOXELS * grid.shape[2] // grid.voxels)
    with TemporaryFile(dir=folder) as second, TemporaryFile(dir=folder) as third:
        for start in range(0, grid.shape[2], planes):
            part = grid.padded((0, 0, -start), (0, 0, min(start + planes - grid.shape[2], 0)))
            moved = transform.displacement(part).div_(ROUNDED_MM).round_().mul_(ROUNDED_MM)
            first, *others = (component.T.tobytes() for component in moved.numpy())
            yield first
            for file, component in zip((second, third), others, strict=True):
                file.write(component)
        for file in (second, third):
            file.seek(0)
            while block := file.read(1 << 22):
                yield block


def vectors(path: Path) -> tuple[np.ndarray, Grid, int]:
    """(3, i, j, k) float32 displacements in mm of a 5-D NIfTI, with their grid and intent, which says their frame.

    Raises InputError: damaged, an image, or vectors whose unit and frame the header does not say.
    """
    head = header(path)
    if head.grid is None or len(head.shape) != 5 or head.shape[3:] != (1, 3):
        vectors_of_some_kind = len(head.shape) >= 4 and head.shape[-1] == 3
        what = "does not say the unit and frame of its vectors" if vectors_of_some_kind else "holds an image"
        raise InputError(
            f"{path} {what}, so it is no transform. "
            "Give a transform.h5, or displacements in mm as 5-D NIfTI (i, j, k, 1, 3) with intent 1006 or 1007."
        )
    name = _open(path).header["intent_name"]
    if head.intent not in (VECTORS_RAS, VECTORS_LPS) or name.item().startswith(b"NREG"):
        raise InputError(
            f"{path}: its vectors are of a kind that is not read (intent {head.intent}). "
            "Convert them to displacements in mm with intent 1006 (RAS) or 1007 (LPS)."
        )
    return voxels(head)[:, :, :, 0].astype(np.float32).transpose(3, 0, 1, 2), head.grid, head.intent
