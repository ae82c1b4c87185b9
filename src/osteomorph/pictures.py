"""Pictures of a registration: sheets of panels drawn in pixels, without a plotting library, which took seconds."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image as Picture
from PIL import ImageColor, ImageDraw, ImageFont
from torch import Tensor

from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.slices import STYLES, VIEWS, Plane, Slice, grey_slice, middle_of_bones, slice_plane

GAP = 6
"""Pixels between panels."""

LINE = 22
"""Pixels of a line of text."""

BAR = 56
"""Pixels of a colour bar with its numbers."""

SQUARE_MM = 20.0
"""Side of a checkerboard's squares."""

DASHES = {"-": (1, 1), ":": (3, 6), "--": (8, 12)}
"""Pixels drawn of how many, along a line."""

COLOURS = 200
"""Of a picture's palette: a third of the size, and nobody sees it."""

SCALES: dict[str, tuple[str, ...]] = {
    "grey": ("#000000", "#ffffff"),
    "viridis": (
        *("#440154", "#482878", "#3e4a89", "#31688e", "#26828e"),
        *("#1f9e89", "#35b779", "#6dcd59", "#b4de2c", "#fde725"),
    ),
    "purple-orange": (
        *("#2d004b", "#542788", "#8073ac", "#b2abd2", "#d8daeb", "#f7f7f7"),
        *("#fee0b6", "#fdb863", "#e08214", "#b35806", "#7f3b08"),
    ),
}
"""Colours at equal steps of a scale; linear in between."""

RGB = UInt8[np.ndarray, "rows columns 3"]


def coloured(values: Float[np.ndarray, "rows columns"], scale: str, low: float, high: float) -> RGB:
    """Values on a colour scale from low to high."""
    stops = np.array([ImageColor.getrgb(colour) for colour in SCALES[scale]], dtype=np.float64)
    steps = np.linspace(0, len(stops) - 1, 256)
    table = np.stack([np.interp(steps, np.arange(len(stops)), stops[:, c]) for c in range(3)], 1).round().astype(np.uint8)
    share = (np.asarray(values, dtype=np.float64) - low) / max(high - low, 1e-12)
    return table[(share.clip(0, 1) * 255).round().astype(np.uint8)]


def enlarged(values: Shaped[np.ndarray, "r c"], shape: tuple[int, int]) -> Shaped[np.ndarray, "rows columns"]:
    """Each pixel as the nearest of a slice's."""
    rows, columns = ((np.arange(n) + 0.5) * m // n for n, m in zip(shape, values.shape[:2], strict=True))
    return values[rows.astype(int)][:, columns.astype(int)]


def outlines(values: Shaped[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    """Pixels beside another value, on both sides."""
    out = np.zeros(values.shape, dtype=bool)
    for axis in (0, 1):
        one, other = np.moveaxis(values, axis, 0)[:-1], np.moveaxis(values, axis, 0)[1:]
        marks = np.moveaxis(out, axis, 0)
        marks[:-1] |= one != other
        marks[1:] |= one != other
    return out


@final
@dataclass(eq=False)
class Sheet:
    """Panels in rows, one per anatomical plane, and columns; black around them.

    heights: pixels of each row. titles: one per column. bars: pixels kept on the right of each column for a colour bar.
    """

    width: int
    heights: Sequence[int]
    titles: Sequence[str]
    bars: Sequence[int] = ()
    heading: str = ""
    footer: int = 0
    canvas: Picture.Image = field(init=False)

    def __post_init__(self) -> None:
        self.bars = self.bars or (0,) * len(self.titles)
        columns = [self.width + bar for bar in self.bars]
        wide = sum(columns) + GAP * (len(columns) + 1)
        self._top = LINE * (1 + bool(self.heading))
        high = self._top + sum(self.heights) + GAP * len(self.heights) + self.footer
        self.canvas = Picture.new("RGB", (wide, high))
        self._left = [GAP + sum(columns[:k]) + GAP * k for k in range(len(columns))]
        for left, column, title in zip(self._left, columns, self.titles, strict=True):
            self.write(title, left + column / 2, self._top - LINE / 2)
        if self.heading:
            self.write(self.heading, wide / 2, LINE / 2, 14)

    @classmethod
    def of(cls, grid: Grid, width: int, titles: Sequence[str], **settings: object) -> "Sheet":
        """Rows as high as the planes of a grid ask for."""
        heights = []
        for _, down, right in VIEWS.values():
            high, wide = (float(grid.size_mm[grid.axis(ends)]) for ends in (down, right))
            heights.append(max(1, round(width * high / wide)))
        return cls(width, heights, titles, **settings)  # type: ignore[arg-type]

    def shape(self, row: int) -> tuple[int, int]:
        """Pixels of a panel."""
        return self.heights[row], self.width

    def place(self, row: int, column: int) -> tuple[int, int]:
        """Left and top of a panel."""
        return self._left[column], self._top + sum(self.heights[:row]) + GAP * row

    def draw(self, row: int, column: int, panel: RGB, letters: str) -> None:
        """A panel and what lies at its top, bottom, left and right."""
        left, top = self.place(row, column)
        self.canvas.paste(Picture.fromarray(np.ascontiguousarray(panel)), (left, top))
        high, wide = panel.shape[:2]
        for letter, x, y in zip(letters, (wide / 2, wide / 2, 8, wide - 8), (9, high - 9, high / 2, high / 2), strict=True):
            self.write(letter, left + x, top + y, 11, "#8ecbff")

    def bar(self, row: int, column: int, scale: str, low: float, high: float, unit: str) -> None:
        """The colours of a column on its right, over one row."""
        left, top = self.place(row, column)
        tall = self.heights[row]
        ramp = coloured(np.linspace(high, low, tall)[:, None].repeat(10, 1), scale, low, high)
        self.canvas.paste(Picture.fromarray(ramp), (left + self.width + GAP, top))
        for share in (0.0, 0.5, 1.0):
            y = top + min(max((1 - share) * tall, 7), tall - 7)
            self.write(f"{low + share * (high - low):.3g}", left + self.width + 2 * GAP + 8, y, 11, anchor="lm")
        self.write(unit, left + self.width + BAR / 2, top + tall + GAP + 6, 11)

    def write(
        self, text: str, x: float | int, y: float | int, size: int = 12, colour: str = "white", anchor: str = "mm"
    ) -> None:
        pen = ImageDraw.Draw(self.canvas)
        font = ImageFont.load_default(size)
        pen.text((x, y), text, colour, font, anchor, stroke_width=1, stroke_fill="black")

    def png(self, palette: bool = True) -> bytes:
        return png(self.canvas, palette)


def png(picture: Picture.Image, palette: bool = True) -> bytes:
    """A PNG, with a palette unless colours are to be read off; without whatever else one can carry."""
    stream = io.BytesIO()
    (picture.quantize(COLOURS, dither=Picture.Dither.NONE) if palette else picture).save(stream, "PNG")
    return stream.getvalue()


def outlined(panel: RGB, labels: Labels | None, plane: Plane, at_mm: np.ndarray, colour: str, line: str) -> RGB:
    """A panel with the outline of every label of a slice."""
    if labels is None:
        return panel
    edge = outlines(enlarged(slice_plane(labels.data[0], labels.grid, plane, at_mm).values, panel.shape[:2]))
    drawn, of = DASHES[line]
    row, column = (np.arange(n) for n in edge.shape)
    out = panel.copy()
    out[edge & ((row[:, None] + column) % of < drawn)] = ImageColor.getrgb(colour)
    return out


# -- fixed, before, moved -------------------------------------------------------------------------------------------------
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
    """Writes `overlay_sheet` as a PNG."""
    sheet = overlay_sheet(fixed, before, moved, fixed_labels, before_labels, moved_labels, displacement, title)
    path.write_bytes(sheet.png(palette=displacement is None))
    return path


def overlay_sheet(
    fixed: Image,
    before: Image,
    moved: Image,
    fixed_labels: Labels | None = None,
    before_labels: Labels | None = None,
    moved_labels: Labels | None = None,
    displacement: Float[Tensor, "3 i j k"] | None = None,
    title: str = "",
) -> Sheet:
    """Three planes through the middle of the bones: fixed, before, moved, both blended, displacement.

    All on the fixed grid. ``before`` is the moving image after the rigid start. Blends are checkerboards of squares of 20 mm.
    Fixed labels are drawn solid green, moving ones (before) dotted red, moved ones dashed yellow.
    """
    grid = fixed.grid
    for other in (before, moved, fixed_labels, before_labels, moved_labels):
        if other is not None and not other.grid.isclose(grid):
            raise ValueError("A figure needs every image and label map on the fixed grid; resample them first.")
    maps = {"fixed": fixed_labels, "moving": before_labels, "moved": moved_labels}
    drawn = [kind for kind, labels in maps.items() if labels is not None]
    at_mm = middle_of_bones(grid, [labels for labels in maps.values() if labels is not None])
    shown = {"fixed": fixed, "before": before, "moved": moved}
    columns: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
        ("fixed", ("fixed",), ("fixed",)),
        ("moving, before", ("before",), ("moving",)),
        ("moved", ("moved",), ("moved",)),
        ("fixed | before", ("fixed", "before"), ("fixed", "moving")),
        ("fixed | moved", ("fixed", "moved"), ("fixed", "moved")),
    ]
    titles, bars = [name for name, _, _ in columns], [0] * len(columns)
    length = None if displacement is None else displacement.double().norm(dim=0)
    if length is not None:
        titles, bars = [*titles, "displacement"], [*bars, BAR]
    sheet = Sheet.of(grid, 286, titles, bars=bars, heading=title, footer=LINE if drawn or length is not None else 0)
    for row, plane in enumerate(VIEWS):
        for column, (_, images, contours) in enumerate(columns):
            parts = [grey_slice(shown[image], plane, at_mm) for image in images]
            panel = coloured(enlarged(_blend(parts), sheet.shape(row)), "grey", 0.0, 1.0)
            for kind in contours:
                panel = outlined(panel, maps[kind], plane, at_mm, *STYLES[kind])
            sheet.draw(row, column, panel, parts[0].letters)
    if length is not None:
        _lengths(sheet, len(columns), length, grid, at_mm)
    for kind, share in zip(drawn, (0.3, 0.5, 0.7), strict=False):
        colour, line = STYLES[kind]
        words = f"{kind} {'- - -' if line == '--' else '. . .' if line == ':' else '-----'}"
        sheet.write(words, share * sheet.canvas.width, sheet.canvas.height - LINE / 2, 12, colour)
    return sheet


def _blend(parts: list[Slice]) -> Float[np.ndarray, "rows columns"]:
    """One slice, or two as a checkerboard."""
    values = parts[0].values
    if len(parts) == 2:
        row, column = (np.arange(n) * size // SQUARE_MM for n, size in zip(values.shape, parts[0].size_mm, strict=True))
        values = np.where((row[:, None] + column) % 2 == 0, values, parts[1].values)
    return values


def _lengths(sheet: Sheet, column: int, length: Float[Tensor, "i j k"], grid: Grid, at_mm: np.ndarray) -> None:
    """Displacement magnitude, one scale for the three planes."""
    parts = [slice_plane(length, grid, plane, at_mm) for plane in VIEWS]
    high = max(1e-3, *(float(part.values.max()) for part in parts))
    for row, part in enumerate(parts):
        sheet.draw(row, column, coloured(enlarged(part.values, sheet.shape(row)), "viridis", 0.0, high), part.letters)
    sheet.bar(len(parts) - 1, column, "viridis", 0.0, high, "mm")
