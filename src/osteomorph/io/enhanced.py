"""Where the frames of an enhanced (multi-frame) CT or MR lie, which pydicom reads; ITK knows the first one's place alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float64

from osteomorph.errors import InputError


@final
@dataclass(frozen=True, eq=False)
class Frame:
    """spacing_mm, direction: of its two axes; columns of the latter, and the normal, in LPS. corner_mm: centre of its first
    voxel, LPS. slope, intercept: of its values."""

    spacing_mm: Float64[np.ndarray, "2"]
    direction: Float64[np.ndarray, "3 3"]
    corner_mm: Float64[np.ndarray, "3"]
    slope: float
    intercept: float


def frames(file: Path) -> list[Frame]:
    """All of a file, in its order.

    Raises InputError: it does not say where they lie (films, doses), or they are rescaled differently.
    """
    from pydicom import dcmread

    read = dcmread(file, stop_before_pixels=True, force=True)  # old files lack the mark
    try:
        shared = read.SharedFunctionalGroupsSequence[0] if "SharedFunctionalGroupsSequence" in read else None
        found = [_frame(own, shared) for own in read.PerFrameFunctionalGroupsSequence]
    except (AttributeError, IndexError, TypeError, ValueError):
        raise InputError(
            f"{file} holds {read.get('NumberOfFrames', 'several')} frames and does not say where each lies. "
            "Give a series of a CT or an MR, or convert it to NIfTI first."
        ) from None
    if len({(frame.slope, frame.intercept) for frame in found}) > 1:
        raise InputError(f"{file}: its frames are rescaled differently. Convert it with dcm2niix first.")
    return found


def _frame(own: Any, shared: Any) -> Frame:
    """Of what is said of it alone, or of all frames."""
    place = _said(own, shared, "PlanePositionSequence").ImagePositionPatient
    rows, columns = np.reshape(_said(own, shared, "PlaneOrientationSequence").ImageOrientationPatient, (2, 3)).astype(float)
    spacing = _said(own, shared, "PixelMeasuresSequence").PixelSpacing  # between rows first
    try:
        values = _said(own, shared, "PixelValueTransformationSequence")
        slope, intercept = float(values.RescaleSlope), float(values.RescaleIntercept)
    except AttributeError:
        slope, intercept = 1.0, 0.0
    return Frame(
        np.array(spacing[::-1], dtype=float),
        np.stack([rows, columns, np.cross(rows, columns)], 1),
        np.array(place, dtype=float),
        slope,
        intercept,
    )


def _said(own: Any, shared: Any, group: str) -> Any:
    return getattr(own if group in own or shared is None else shared, group)[0]
