"""The static pictures of a report: they show where the viewer cannot, on paper too."""

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image as Picture
from torch import Tensor

from osteomorph import fields
from osteomorph.geometry import Grid
from osteomorph.pictures import BAR, LINE, Sheet, coloured, enlarged, outlined, outlines, overlay_sheet, png
from osteomorph.report_volumes import CELL_MM, JACOBIAN_RANGE, MAP_MM, coarser
from osteomorph.resampling import resample
from osteomorph.slices import VIEWS, Plane, middle_of_bones, slice_plane
from osteomorph.transforms import Rigid

if TYPE_CHECKING:
    from osteomorph.report import Material

WORLD_AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


def overlay_picture(material: "Material") -> bytes:
    """PNG: fixed, before, moved, and both blended, with the bones' outlines."""
    return overlay_sheet(
        material.fixed,
        material.before,
        material.moved,
        material.fixed_labels,
        material.before_labels,
        material.moved_labels,
    ).png()


def maps_picture(material: "Material") -> bytes:
    """PNG: displacement after the rigid start, local volume change, and a regular grid as the transform deforms it."""
    grid = coarser(material.fixed.grid, MAP_MM)
    vectors = material.warp_on(grid)
    length, determinant = vectors.norm(dim=0), fields.jacobian_determinant(vectors, grid)
    maps = [labels for labels in (material.fixed_labels, material.moved_labels) if labels is not None]
    at_mm = middle_of_bones(material.fixed.grid, maps)
    outline = None if not maps else resample(maps[-1], Rigid.identity(), grid)
    titles = ["displacement after the rigid start", "local volume change", f"deformed grid, {CELL_MM:g} mm"]
    sheet = Sheet.of(grid, 290, titles, bars=(BAR, BAR, 0), footer=LINE)
    kinds = [
        (length, "viridis", (0.0, max(float(length.max()), 0.1)), "mm"),
        (determinant, "purple-orange", JACOBIAN_RANGE, "det J"),
    ]
    last = len(VIEWS) - 1
    for column, (data, scale, (low, high), unit) in enumerate(kinds):
        for row, plane in enumerate(VIEWS):
            part = slice_plane(data, grid, plane, at_mm)
            panel = coloured(enlarged(part.values, sheet.shape(row)), scale, low, high)
            sheet.draw(row, column, outlined(panel, outline, plane, at_mm, "white", "-"), part.letters)
        sheet.bar(last, column, scale, low, high, unit)
    where = grid.points() + vectors
    for row, plane in enumerate(VIEWS):
        panel = _lines(where, grid, plane, at_mm, sheet.shape(row))
        letters = slice_plane(length, grid, plane, at_mm).letters
        sheet.draw(row, 2, outlined(panel, outline, plane, at_mm, "#ffd60a", "-"), letters)
    return sheet.png(palette=False)


def _lines(where: Float[Tensor, "3 i j k"], grid: Grid, plane: Plane, at_mm: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Where two coordinates of warp(x) pass multiples of 10 mm in a slice."""
    _, down, right = VIEWS[plane]
    panel = np.zeros((*shape, 3), dtype=np.uint8)
    for ends in (down, right):
        values = slice_plane(where[WORLD_AXES[ends[0]]], grid, plane, at_mm).values
        smooth = Picture.fromarray(np.ascontiguousarray(values)).resize(shape[::-1], Picture.Resampling.BILINEAR)
        panel[outlines(np.floor(np.asarray(smooth) / CELL_MM))] = (159, 208, 255)
    return panel


def thumbnail(picture: bytes, width: int = 240) -> bytes:
    """The blended columns of an overlay, small."""
    with Picture.open(io.BytesIO(picture)) as image:
        columns = image.width // 5
        part = image.convert("RGB").crop((3 * columns, 0, image.width, int(image.height * 0.42)))
        part.thumbnail((width, width))
        return png(part)


def small(picture: bytes) -> bytes:
    """The same picture with a palette, and without whatever else a PNG can carry."""
    with Picture.open(io.BytesIO(picture)) as image:
        return png(image.convert("RGB"))


def data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
