"""Slices and outlines on matplotlib's axes, for figures of a study."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from osteomorph.image import Labels
from osteomorph.slices import Plane, Slice, slice_plane

OUTLINE = [withStroke(linewidth=2, foreground="black")]
"""Keeps letters legible on bright tissue."""


def draw_slice(ax: Axes, part: Slice, colours: str, low: float, high: float):  # type: ignore[no-untyped-def]
    """A slice with its letters, on a colour map from low to high, or as RGB; returns what a colour bar needs."""
    shown = ax.imshow(
        part.values, cmap=colours, vmin=low, vmax=high, aspect=part.size_mm[0] / part.size_mm[1], interpolation="nearest"
    )
    ax.set_axis_off()
    for letter, x, y in zip(part.letters, (0.5, 0.5, 0.03, 0.97), (0.97, 0.03, 0.5, 0.5), strict=True):
        ax.text(
            x, y, letter, transform=ax.transAxes, color="#8ecbff", fontsize=8, ha="center", va="center", path_effects=OUTLINE
        )
    return shown


def draw_contours(ax: Axes, labels: Labels | None, plane: Plane, at_mm: np.ndarray, colour: str, line: str) -> None:
    """Outline of every label in a slice; `slices.STYLES` has the colours and lines."""
    if labels is None:
        return
    part = slice_plane(labels.data[0], labels.grid, plane, at_mm)
    for label in np.unique(part.values[part.values != 0]):
        mask = np.pad((part.values == label).astype(np.float32), 1)
        row, column = (np.arange(n) - 1 for n in mask.shape)
        ax.contour(column, row, mask, [0.5], colors=[colour], linestyles=[line], linewidths=1.1)
    ax.set_xlim(-0.5, part.values.shape[1] - 0.5)
    ax.set_ylim(part.values.shape[0] - 0.5, -0.5)
