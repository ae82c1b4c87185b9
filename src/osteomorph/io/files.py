"""Files before they are opened: is it there, does the content match the name, and can a new one be written."""

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from osteomorph.errors import InputError

NIFTI = (".nii", ".nii.gz")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
DICOM = (".dcm", ".ima")

PathLike = str | os.PathLike[str]


def suffix(path: PathLike) -> str:
    """The name's ending in lower case, ``.nii.gz`` as a whole."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def existing(path: PathLike) -> Path:
    """The path of a readable file that is not empty.

    Raises InputError: missing, a folder, empty, no permission.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file. Give one file.")
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the path.")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path} is empty. Copy or export it again.")
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}). Check its permissions.") from None
    return path


def is_dicom(path: PathLike) -> bool:
    """Whether it is a folder, which may hold a series, or a file that begins like DICOM and is not named otherwise, or is named
    like DICOM: old exports lack the mark."""
    path = Path(path)
    if path.is_dir() or not path.is_file() or suffix(path) in NIFTI + ITK:
        return path.is_dir()
    return suffix(path) in DICOM or _content(existing(path)) == "DICOM"


def volume_format(path: PathLike) -> str:
    """``"nifti"`` or ``"itk"``, by the name's ending, checked against the first bytes; ``"dicom"`` for a folder, and for a file
    that begins like one, whatever its name.

    Raises InputError: as `existing`, or the name's ending is none we read, or the content is something else.
    """
    if is_dicom(path):
        return "dicom"
    path = existing(path)
    ending = suffix(path)
    content = _content(path)
    if ending not in NIFTI + ITK:
        hint = f"The content is {content}: rename it to end in {_ENDING[content]}." if content in _ENDING else _READABLE
        raise InputError(f"{path}: files that end in {ending or 'nothing'} are not read. {hint}")
    wanted = {".nii": ("NIfTI",), ".nii.gz": ("compressed NIfTI",), ".nrrd": ("NRRD",), ".nhdr": ("NRRD",)}.get(
        ending, ("MetaImage",)
    )
    if content not in wanted:
        hint = f"Rename it to end in {_ENDING[content]}." if content in _ENDING else "Copy or export it again."
        raise InputError(f"{path} is not {wanted[0]} although its name ends in {ending}; it is {content}. {hint}")
    return "nifti" if ending in NIFTI else "itk"


_READABLE = f"Give one of {', '.join(NIFTI + ITK)}, or a DICOM series (its folder, or one of its files)."
_ENDING = {"NIfTI": ".nii", "compressed NIfTI": ".nii.gz", "NRRD": ".nrrd", "MetaImage": ".mha"}


def _content(path: Path) -> str:
    """What the first bytes say a file is."""
    with path.open("rb") as file:
        start = file.read(512)
    compressed = start[:2] == b"\x1f\x8b"
    if compressed:
        try:
            with gzip.open(path) as file:
                start = file.read(352)
        except (OSError, EOFError, zlib.error):
            return "damaged gzip data"
    if len(start) >= 4 and {348, 540} & {struct.unpack(order + "i", start[:4])[0] for order in "<>"}:
        return "compressed NIfTI" if compressed else "NIfTI"
    if compressed:
        return "gzip data of another kind"
    if start[:4] == b"NRRD":
        return "NRRD"
    if start[128:132] == b"DICM":
        return "DICOM"
    if b"NDims" in start or start[:10] == b"ObjectType":
        return "MetaImage"
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return "text" if error.start > 500 else "data of an unknown kind"
    return "data of an unknown kind" if b"\0" in start else "text"


@contextmanager
def writing(path: PathLike) -> Iterator[Path]:
    """Around the writing of one file: where it fails nothing half-written stays.

    Raises InputError: the folder does not exist, or the system refuses to write.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: the folder {path.parent} does not exist. Make it first.")
    if path.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder. Choose another name.")
    try:
        yield path
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):
            reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[-1]
            raise InputError(f"{path} cannot be written ({reason}). Check the space left and the permissions.") from None
        raise
