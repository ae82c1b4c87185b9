"""Slices of an image with the bones that were found in it."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from osteomorph.bone_network import unit_intensities
from osteomorph.image import Image, Labels

COLOURS = ListedColormap(["#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c"])

LEAST_SHOWN = 0.0015
"""Of a slice, is covered by a bone whose name is written."""


def overlay(image: Image, labels: Labels, path: Path) -> None:
    """A sagittal, a coronal and an axial slice through the most bone, with the bones in colour, and their names."""
    grid, order, flips = image.grid.canonical()
    data, found = (
        volume.permute(0, *(1 + a for a in order)).flip([1 + d for d in flips])[0].numpy()
        for volume in (unit_intensities(image.data[:1].float()), labels.data.int())
    )
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.6))
    for axis, panel in enumerate(axes):
        rest = tuple(d for d in range(3) if d != axis)
        at = int((found > 0).sum(rest).argmax()) if (found > 0).any() else found.shape[axis] // 2
        picture, numbers = data.take(at, axis).T, found.take(at, axis).T
        shape = picture.shape[::-1]
        extent = (0, grid.size_mm[rest[0]], 0, grid.size_mm[rest[1]])
        panel.imshow(picture, cmap="gray", origin="lower", extent=extent, vmin=0, vmax=1)
        shown = np.ma.masked_where(numbers == 0, (numbers - 1) % COLOURS.N)
        panel.imshow(shown, cmap=COLOURS, origin="lower", extent=extent, alpha=0.45, vmin=-0.5, vmax=COLOURS.N - 0.5)
        panel.set_axis_off()
        for number in np.unique(numbers[numbers > 0]).tolist():
            name, (row, column) = labels.name(number), np.argwhere(numbers == number).mean(0)
            place = (column + 0.5) * extent[1] / shape[0], (row + 0.5) * extent[3] / shape[1]
            if not name.isdigit() and (numbers == number).sum() > LEAST_SHOWN * numbers.size:
                panel.text(*place, name.replace("_", " "), color="white", fontsize=7, ha="center", va="center")
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=80)
    plt.close(figure)
