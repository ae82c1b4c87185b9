"""Slices of images as radiologists look at them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels

Plane = Literal["sagittal", "coronal", "axial"]

VIEWS: dict[Plane, tuple[str, str, str]] = {
    "sagittal": ("LR", "SI", "AP"),
    "coronal": ("PA", "SI", "RL"),
    "axial": ("IS", "AP", "RL"),
}
"""Axis across the plane; then top to bottom and left to right as radiologists look (the patient's right, or front, is left)."""

STYLES: dict[str, tuple[str, Literal["-", ":", "--"]]] = {
    "fixed": ("#1fbf3f", "-"),
    "moving": ("#ff3b30", ":"),
    "moved": ("#ffd60a", "--"),
}
"""Colour and line of each label map: colours of the thesis, lines for those who cannot tell the colours apart."""


@final
@dataclass(frozen=True, eq=False)
class Slice:
    """One array slice as it is drawn.

    values: (rows, columns), first row at the top.
    size_mm: height and width of a pixel.
    letters: what lies at the top, bottom, left and right, e.g. ``"SIAP"``.
    """

    values: np.ndarray
    size_mm: tuple[float, float]
    letters: str


def slice_plane(data: Shaped[Tensor, "i j k"], grid: Grid, plane: Plane, at_mm: Sequence[float] | np.ndarray) -> Slice:
    """The array slice nearest to an anatomical plane, through a world point, turned to the radiological convention."""
    across, down, right = VIEWS[plane]
    normal, row, column = (grid.axis(ends) for ends in (across, down, right))
    index = grid.index(torch.as_tensor(np.asarray(at_mm, dtype=np.float64))[:, None])[normal, 0]
    nearest = min(max(round(float(index)), 0), grid.shape[normal] - 1)
    values = data.permute(normal, row, column)[nearest].numpy()
    if grid.axcodes[row] != down[1]:
        values = values[::-1]
    if grid.axcodes[column] != right[1]:
        values = values[:, ::-1]
    return Slice(values, (float(grid.spacing_mm[row]), float(grid.spacing_mm[column])), down + right)


def middle_of_bones(grid: Grid, maps: Sequence[Labels]) -> np.ndarray:
    """World mm of the centroid of the first map that has a label; the grid's centre without any."""
    for labels in maps:
        mask = labels.mask()[0].numpy()
        counts = [mask.sum(axis) for axis in ((1, 2), (0, 2), (0, 1))]
        if counts[0].any():
            middle = torch.tensor([np.average(np.arange(len(n)), weights=n) for n in counts], dtype=torch.float64)
            return grid.world(middle[:, None])[:, 0].numpy()
    return grid.centre_mm


def grey_slice(image: Image, plane: Plane, at_mm: Sequence[float] | np.ndarray) -> Slice:
    """A slice as grey from 0 to 1, between the 1st and the 99.5th percentile of the image."""
    data = image.data[0]
    some = data.flatten()[:: max(1, data.numel() // 500_000)].float().numpy()
    low, high = (float(v) for v in np.percentile(some, (1, 99.5)))
    found = slice_plane(data, image.grid, plane, at_mm)
    return replace(found, values=((found.values - low) / max(high - low, 1e-6)).clip(0, 1))
