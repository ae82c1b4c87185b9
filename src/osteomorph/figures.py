"""Pictures of a registration, drawn from images on the fixed grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
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

OUTLINE = [withStroke(linewidth=2, foreground="black")]
"""Keeps letters legible on bright tissue."""


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


def overlay(
    path: Path,
    fixed: Image,
    before: Image,
    moved: Image,
    fixed_labels: Labels | None = None,
    before_labels: Labels | None = None,
    moved_labels: Labels | None = None,
    displacement: Float[Tensor, "3 i j k"] | None = None,
    title: str = "",
) -> Path:
    """Writes a PNG with three planes through the middle of the bones: fixed, before, moved, both blended, displacement.

    All on the fixed grid. ``before`` is the moving image after the rigid start. Blends are checkerboards of squares of 20 mm.
    Fixed labels are drawn solid green, moving ones (before) dotted red, moved ones dashed yellow.
    """
    grid = fixed.grid
    for other in (before, moved, fixed_labels, before_labels, moved_labels):
        if other is not None and not other.grid.isclose(grid):
            raise ValueError("A figure needs every image and label map on the fixed grid; resample them first.")
    maps = {"fixed": fixed_labels, "moving": before_labels, "moved": moved_labels}
    at_mm = middle_of_bones(grid, [labels for labels in maps.values() if labels is not None])
    shades = {"fixed": grey(fixed), "before": grey(before), "moved": grey(moved)}
    columns: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
        ("fixed", ("fixed",), ("fixed",)),
        ("moving, before", ("before",), ("moving",)),
        ("moved", ("moved",), ("moved",)),
        ("fixed | before", ("fixed", "before"), ("fixed", "moving")),
        ("fixed | moved", ("fixed", "moved"), ("fixed", "moved")),
    ]
    length = displacement.double().norm(dim=0) if displacement is not None else None
    count = len(columns) + (length is not None)
    heights = [_extent(slice_plane(fixed.data[0], grid, plane, at_mm)) for plane in VIEWS]
    figure = Figure(
        figsize=(2.6 * count + 0.6, 0.5 + sum(2.6 * h / w for h, w in heights)), facecolor="black", layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, count, gridspec_kw={"height_ratios": [h / w for h, w in heights]})
    for row, plane in enumerate(VIEWS):
        for place, (name, images, contours) in enumerate(columns):
            ax = axes[row, place]
            _blend(ax, [(slice_plane(*shades[image], plane, at_mm)) for image in images])
            for contour in contours:
                draw_contours(ax, maps[contour], plane, at_mm, *STYLES[contour])
            if row == 0:
                ax.set_title(name, color="white", fontsize=10)
    if length is not None:
        _lengths(figure, axes[:, -1], length, grid, at_mm)
    drawn = [kind for kind, labels in maps.items() if labels is not None]
    if drawn:
        handles = [Line2D([], [], color=STYLES[kind][0], linestyle=STYLES[kind][1], label=kind) for kind in drawn]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, labelcolor="white", fontsize=9)
    if title:
        figure.suptitle(title, color="white", fontsize=11)
    figure.savefig(path, dpi=110, format="png")
    return path


def middle_of_bones(grid: Grid, maps: Sequence[Labels]) -> np.ndarray:
    """World mm of the centroid of the first map that has a label; the grid's centre without any."""
    for labels in maps:
        found = labels.mask()[0].nonzero().double()
        if len(found):
            return grid.world(found.mean(0)[:, None])[:, 0].numpy()
    return grid.centre_mm


def grey(image: Image) -> tuple[Tensor, Grid]:
    """Intensities as grey from 0 to 1, between the 1st and the 99.5th percentile."""
    data = image.data[0].float()
    sample = data.flatten()[:: max(1, data.numel() // 500_000)].numpy()
    low, high = np.percentile(sample, (1, 99.5))
    return ((data - float(low)) / max(float(high - low), 1e-6)).clamp(0, 1), image.grid


def _extent(part: Slice) -> tuple[float, float]:
    return part.values.shape[0] * part.size_mm[0], part.values.shape[1] * part.size_mm[1]


def _blend(ax: Axes, parts: list[Slice]) -> None:
    """One slice, or two as a checkerboard."""
    values = parts[0].values
    if len(parts) == 2:
        row, column = (np.arange(n) * size // 20.0 for n, size in zip(values.shape, parts[0].size_mm, strict=True))
        values = np.where((row[:, None] + column) % 2 == 0, values, parts[1].values)
    draw_slice(ax, Slice(values, parts[0].size_mm, parts[0].letters), "gray", 0.0, 1.0)


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
    """Outline of every label in a slice; ``STYLES`` has the colours and lines."""
    if labels is None:
        return
    part = slice_plane(labels.data[0], labels.grid, plane, at_mm)
    for label in np.unique(part.values[part.values != 0]):
        mask = np.pad((part.values == label).astype(np.float32), 1)
        row, column = (np.arange(n) - 1 for n in mask.shape)
        ax.contour(column, row, mask, [0.5], colors=[colour], linestyles=[line], linewidths=1.1)
    ax.set_xlim(-0.5, part.values.shape[1] - 0.5)
    ax.set_ylim(part.values.shape[0] - 0.5, -0.5)


def _lengths(figure: Figure, axes: np.ndarray, length: Tensor, grid: Grid, at_mm: np.ndarray) -> None:
    """Displacement magnitude, one scale for the three planes."""
    parts = [slice_plane(length, grid, plane, at_mm) for plane in VIEWS]
    high = max(float(part.values.max()) for part in parts)
    shown = [draw_slice(ax, part, "viridis", 0.0, max(high, 1e-3)) for ax, part in zip(axes, parts, strict=True)]
    axes[0].set_title("displacement", color="white", fontsize=10)
    bar = figure.colorbar(shown[0], ax=list(axes), shrink=0.6)
    bar.set_label("mm", color="white")
    bar.ax.tick_params(colors="white")
