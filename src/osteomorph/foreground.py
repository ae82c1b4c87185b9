"""Where the patient is: so that air neither votes on nor drags a registration."""

import numpy as np
import torch
from scipy import ndimage

from osteomorph.geometry import sample
from osteomorph.image import Image
from osteomorph.kept import kept
from osteomorph.resampling import finer

SPACING_MM = 4.0
"""At which the body is told from air."""


@kept
def foreground(image: Image, margin_mm: float = 6.0) -> Image:
    """Weight 1 in the body and ``margin_mm`` around it, 0 in air: the largest bright region, holes filled.

    image: prepared, intensities about [0, 1]. Made once for as long as the image lives.
    """
    coarse = image.grid.resampled(np.maximum(SPACING_MM, image.grid.spacing_mm))
    values = sample(image.data, image.grid, coarse.points().flatten(1)).unflatten(-1, coarse.shape)[0].clamp(0, 1).numpy()
    bright = ndimage.gaussian_filter(values, 0.7, mode="nearest") > 0.25 * values[values > values.mean()].mean()
    parts, count = ndimage.label(bright)
    if count == 0:
        return image.with_data(torch.ones_like(image.data[:1]))
    sizes = np.bincount(parts.ravel())[1:]
    body = np.isin(parts, 1 + np.flatnonzero(sizes >= 0.1 * sizes.max()))
    body = _filled(body)
    reach = ndimage.distance_transform_edt(~body, sampling=coarse.spacing_mm) if not body.all() else np.zeros(coarse.shape)
    weight = torch.as_tensor((reach <= margin_mm).astype(np.float32))[None]
    return image.with_data((finer(weight, coarse, image.grid) >= 0.5).to(image.data.dtype))


def _filled(body: np.ndarray) -> np.ndarray:
    """Holes filled slice by slice along every axis: lungs and bowel gas may open at the border of the field of view."""
    out = body.copy()
    for axis in range(3):
        for k in range(body.shape[axis]):
            plane = (slice(None),) * axis + (k,)
            out[plane] |= ndimage.binary_fill_holes(body[plane])
    return out
