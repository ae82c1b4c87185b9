"""Where two found bones touch in a CT, the border between them is put where the image is darkest."""

import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, Float, Int
from scipy import ndimage

REACH_MM = 5.0
"""How far from where two bones touch the border between them is looked for. Votes at 2 mm put it wrong by as much."""

BLUR_MM = 0.7
"""Of the image, against noise."""

LEAST_ANCHORED = 0.5
"""Share of a bone that has to lie beyond the reach of a contact for the contact to be settled anew."""


def parted(
    numbers: Int[np.ndarray, "i j k"], image: Float[np.ndarray, "i j k"], spacing_mm: Float[np.ndarray, "3"]
) -> Int[np.ndarray, "i j k"]:
    """The same voxels of bone, those near a contact given to the bone that they hang on through the brightest voxels.

    That is a watershed (Meyer, 1994) of the image from what of both bones lies further away: cortex is bright, a joint space
    dark. Contacts are settled one after the other, in the order of the bones' numbers.
    """
    out = numbers.copy()
    sizes = np.bincount(numbers.ravel())
    for (one, other), box in _contacts(numbers, spacing_mm).items():
        found = _settled(out[box], image[box], one, other, spacing_mm, sizes)
        if found is not None:
            out[box] = found
    return out


def _contacts(
    numbers: Int[np.ndarray, "i j k"], spacing_mm: Float[np.ndarray, "3"]
) -> dict[tuple[int, int], tuple[slice, ...]]:
    """Pairs of bones with faces of voxels in common, and the box around what is to be looked at."""
    ends: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    for axis in range(3):
        before, after = (
            numbers[tuple(part if d == axis else slice(None) for d in range(3))] for part in (slice(None, -1), slice(1, None))
        )
        leaps = np.flatnonzero(before != after)
        places = np.stack(np.unravel_index(leaps, before.shape))
        values = np.sort(np.stack([before[tuple(places)], after[tuple(places)]]), axis=0)
        places, values = places[:, values[0] > 0], values[:, values[0] > 0]
        for pair in np.unique(values, axis=1).T:
            here = places[:, (values == pair[:, None]).all(0)]
            low, high = ends.get((int(pair[0]), int(pair[1])), (here.min(1), here.max(1)))
            ends[int(pair[0]), int(pair[1])] = np.minimum(low, here.min(1)), np.maximum(high, here.max(1))
    wide = np.ceil(REACH_MM / spacing_mm).astype(int) + 2
    return {
        pair: tuple(
            slice(max(0, a - w), min(n, b + w + 1)) for a, b, w, n in zip(*ends[pair], wide, numbers.shape, strict=True)
        )
        for pair in sorted(ends)
    }


def _settled(
    numbers: Int[np.ndarray, "i j k"],
    image: Float[np.ndarray, "i j k"],
    one: int,
    other: int,
    spacing_mm: Float[np.ndarray, "3"],
    sizes: Int[np.ndarray, " n"],
) -> Int[np.ndarray, "i j k"] | None:
    """A box with the contact of two bones settled; None where too little of either would be certain."""
    both = (numbers == one) | (numbers == other)
    touching = _touching(numbers, one, other)
    if not touching.any():
        return None
    open_ = both & (ndimage.distance_transform_edt(~touching, sampling=spacing_mm) <= REACH_MM)
    if any((open_ & (numbers == k)).sum() > (1 - LEAST_ANCHORED) * sizes[k] for k in (one, other)):
        return None
    smooth = ndimage.gaussian_filter(image, BLUR_MM / spacing_mm)
    height = np.where(both, -smooth, float(-smooth.min()) + 1.0)  # what is no bone comes last
    markers = np.where(both & ~open_, numbers, 0)
    if not {one, other} <= set(np.unique(markers).tolist()):
        return None
    found = sitk.GetArrayFromImage(
        sitk.MorphologicalWatershedFromMarkers(
            sitk.GetImageFromArray(height.astype(np.float32)),
            sitk.GetImageFromArray(markers.astype(np.uint16)),
            markWatershedLine=False,
            fullyConnected=False,
        )
    )
    return np.where(open_, found, numbers).astype(numbers.dtype)


def _touching(numbers: Int[np.ndarray, "i j k"], one: int, other: int) -> Bool[np.ndarray, "i j k"]:
    """Voxels of either bone with a face in common with the other."""
    faces = ndimage.generate_binary_structure(3, 1)
    a, b = numbers == one, numbers == other
    return (a & ndimage.binary_dilation(b, faces)) | (b & ndimage.binary_dilation(a, faces))
