"""The static pictures of a report: they show where the viewer cannot, on paper too."""

import base64
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image as Picture

from osteomorph import fields
from osteomorph.figures import VIEWS, Plane, draw_contours, draw_slice, middle_of_bones, overlay, slice_plane
from osteomorph.geometry import Grid
from osteomorph.report_volumes import CELL_MM, JACOBIAN_RANGE, MAP_MM, coarser
from osteomorph.resampling import resample
from osteomorph.transforms import Rigid, Transform

if TYPE_CHECKING:
    from osteomorph.report import Material

COLOURS = 200
"""Of a picture's palette: a third of the size, and nobody sees it."""


def overlay_picture(material: "Material") -> bytes:
    """PNG: fixed, before, moved, and both blended, with the bones' outlines."""
    with tempfile.TemporaryDirectory() as folder:
        path = overlay(
            Path(folder) / "overlay.png",
            material.fixed,
            material.before,
            material.moved,
            material.fixed_labels,
            material.before_labels,
            material.moved_labels,
        )
        return small(path.read_bytes())


def maps_picture(material: "Material") -> bytes:
    """PNG: displacement after the rigid start, local volume change, and a regular grid as the transform deforms it."""
    grid = coarser(material.fixed.grid, MAP_MM)
    warp = material.warp
    vectors = warp.displacement(grid)
    length, determinant = vectors.norm(dim=0), fields.jacobian_determinant(vectors, grid)
    maps = [labels for labels in (material.fixed_labels, material.moved_labels) if labels is not None]
    at_mm = middle_of_bones(material.fixed.grid, maps)
    outline = maps[-1] if maps else None
    if outline is not None:
        outline = resample(outline, Rigid.identity(), grid)
    sizes = [slice_plane(length, grid, plane, at_mm) for plane in VIEWS]
    ratios = [part.values.shape[0] * part.size_mm[0] / (part.values.shape[1] * part.size_mm[1]) for part in sizes]
    figure = Figure(figsize=(9.6, 0.5 + sum(2.5 * ratio for ratio in ratios)), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 3, gridspec_kw={"height_ratios": ratios})
    high = max(float(length.max()), 0.1)
    kinds = [
        ("displacement after the rigid start", length, "viridis", (0.0, high), "mm"),
        ("local volume change", determinant, "PuOr_r", JACOBIAN_RANGE, "det J (1: none)"),
    ]
    for column, (title, data, colours, (low, top), unit) in enumerate(kinds):
        for row, plane in enumerate(VIEWS):
            shown = draw_slice(axes[row, column], slice_plane(data, grid, plane, at_mm), colours, low, top)
            draw_contours(axes[row, column], outline, plane, at_mm, "white", "-")
        axes[0, column].set_title(title, color="white", fontsize=10)
        bar = figure.colorbar(shown, ax=list(axes[:, column]), shrink=0.6)
        bar.set_label(unit, color="white")
        bar.ax.tick_params(colors="white")
    axes[0, 2].set_title(f"deformed grid, {CELL_MM:g} mm", color="white", fontsize=10)
    for row, plane in enumerate(VIEWS):
        _lines(axes[row, 2], warp, grid, plane, at_mm)
        draw_contours(axes[row, 2], outline, plane, at_mm, "#ffd60a", "-")
    stream = io.BytesIO()
    figure.savefig(stream, dpi=100, format="png")
    return small(stream.getvalue())


def _lines(ax, warp: Transform, grid: Grid, plane: Plane, at_mm: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    """Where two coordinates of warp(x) pass multiples of 10 mm in a slice."""
    where = grid.points() + warp.displacement(grid)
    _, down, right = VIEWS[plane]
    draw_slice(ax, slice_plane(torch.zeros(grid.shape), grid, plane, at_mm), "gray", 0.0, 1.0)
    for ends in (down, right):
        axis = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[ends[0]]
        values = slice_plane(where[axis], grid, plane, at_mm).values
        levels = np.arange(np.ceil(values.min() / CELL_MM), values.max() / CELL_MM) * CELL_MM
        if len(levels):
            ax.contour(values, levels, colors=["#9fd0ff"], linewidths=0.7, linestyles="solid")


def thumbnail(picture: bytes, width: int = 240) -> bytes:
    """The blended columns of an overlay, small."""
    with Picture.open(io.BytesIO(picture)) as image:
        columns = image.width // 5
        part = image.convert("RGB").crop((3 * columns, 0, image.width, int(image.height * 0.42)))
        part.thumbnail((width, width))
        return _png(part)


def small(picture: bytes) -> bytes:
    """The same picture with a palette, and without whatever else a PNG can carry."""
    with Picture.open(io.BytesIO(picture)) as image:
        return _png(image.convert("RGB"))


def _png(image: Picture.Image) -> bytes:
    stream = io.BytesIO()
    image.quantize(COLOURS, dither=Picture.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
