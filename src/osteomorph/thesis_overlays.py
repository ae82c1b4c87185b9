"""Figures 4.3 to 4.5 of the thesis: one pair under several methods, six rows from overlay to histogram."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from osteomorph import fields
from osteomorph.case import Case
from osteomorph.figures import draw_contours, draw_slice
from osteomorph.image import Image, Labels
from osteomorph.resampling import resample
from osteomorph.slices import STYLES, Plane, Slice, grey_slice, middle_of_bones, slice_plane
from osteomorph.thesis_figures import canvas, saved
from osteomorph.transforms import Transform

BIN_WIDTH = 0.01
"""Of the histograms of det J, as in the thesis."""

DETERMINANTS = (0.5, 1.5)
"""Range of the map of det J."""

HISTOGRAM = (0.6, 1.4)
"""Range of det J that the histograms show; what lies beyond is counted into the outer bins."""

ROWS = (
    "$I_F$ + $I_M$",
    r"$I_F$ + $I_M \circ T$",
    r"$|I_M - I_M \circ T|$",
    r"$S_F$, $S_M$, $S_M \circ T$",
    "det J",
    "det J in bone",
)


@final
@dataclass(frozen=True, eq=False)
class Column:
    """One method, everything on the fixed grid.

    determinant: det J of the transform. inside: its values in the fixed labels.
    """

    name: str
    moved: Image = field(repr=False)
    moved_labels: Labels | None
    determinant: Float[Tensor, "i j k"] = field(repr=False)
    inside: Float[Tensor, " n"] = field(repr=False)


def column(name: str, transform: Transform, case: Case) -> Column:
    """What a method did to a pair. transform: fixed mm -> moving mm; case: measured on its fixed grid."""
    grid = case.fixed.grid
    determinant = fields.jacobian_determinant(transform.displacement(grid), grid)
    labels = None if case.moving_labels is None else resample(case.moving_labels, transform, grid)
    bone = case.fixed_labels if case.fixed_labels is not None else labels
    inside = determinant[bone.mask()[0]] if bone is not None else determinant.flatten()
    return Column(name, resample(case.moving, transform, grid), labels, determinant, inside)


def methods_side_by_side(
    path: Path, case: Case, start: Transform, columns: Sequence[Column], plane: Plane = "sagittal", title: str = ""
) -> Path:
    """The figure: a column per method; rows as `ROWS`. Overlaid, the fixed image is green and the moving one magenta.

    start: the rigid start, before which and after which is compared. case: as in `column`.
    """
    grid = case.fixed.grid
    before = resample(case.moving, start, grid)
    before_labels = None if case.moving_labels is None else resample(case.moving_labels, start, grid)
    at = middle_of_bones(grid, [labels for labels in (case.fixed_labels, before_labels) if labels is not None])
    low, high = _window(before)

    def shade(image: Image) -> Slice:
        return slice_plane(((image.data[0] - low) / (high - low)).clamp(0, 1), grid, plane, at)

    fixed = grey_slice(case.fixed, plane, at)
    ratio = fixed.values.shape[0] * fixed.size_mm[0] / (fixed.values.shape[1] * fixed.size_mm[1])
    wide = 2.5
    figure = canvas(wide * len(columns) + 1.1, wide * (5 * ratio + 0.8) + 0.5)
    axes = figure.subplots(6, len(columns), squeeze=False, gridspec_kw={"height_ratios": [ratio] * 5 + [0.8]})
    first = shade(before)
    differences = [np.abs(first.values - shade(one.moved).values) for one in columns]
    most = max(0.05, max(float(np.percentile(part, 99.5)) for part in differences))
    shown: dict[int, object] = {}
    for place, one in enumerate(columns):
        ax = axes[:, place]
        _blend(ax[0], fixed, first)
        _blend(ax[1], fixed, shade(one.moved))
        shown[2] = draw_slice(ax[2], Slice(differences[place], fixed.size_mm, fixed.letters), "magma", 0.0, most)
        draw_slice(ax[3], fixed, "gray", 0.0, 1.0)
        for kind, labels in (("fixed", case.fixed_labels), ("moving", before_labels), ("moved", one.moved_labels)):
            draw_contours(ax[3], labels, plane, at, *STYLES[kind])
        map_ = slice_plane(one.determinant, grid, plane, at)
        shown[4] = draw_slice(ax[4], map_, "PuOr", *DETERMINANTS)
        draw_contours(ax[4], case.fixed_labels, plane, at, "black", "-")
        _histogram(ax[5], one.inside, place == 0)
        ax[0].set_title(f"{chr(97 + place)}) {one.name}", fontsize=11)
    for number, words in enumerate(ROWS):
        _row_name(axes[number, 0], words, number == 5)
    for number, unit in ((2, "normalised intensity"), (4, "det J (1: volume kept)")):
        bar = figure.colorbar(shown[number], ax=list(axes[number]), shrink=0.9, extend="max" if number == 2 else "both")  # type: ignore[arg-type]
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    handles = [
        Line2D([], [], color=STYLES[kind][0], linestyle=STYLES[kind][1], label=words)
        for kind, words in (("fixed", "$S_F$"), ("moving", "$S_M$"), ("moved", r"$S_M \circ T$"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return saved(figure, path)


def _window(image: Image) -> tuple[float, float]:
    """1st and 99th percentile, the thesis' 0 and 1."""
    data = image.data[0].flatten()
    low, high = np.percentile(data[:: max(1, data.numel() // 500_000)].numpy(), (1, 99))
    return float(low), max(float(high), float(low) + 1e-6)


def _blend(ax: Axes, fixed: Slice, moving: Slice) -> None:
    """Grey where both agree."""
    colours = np.stack([moving.values, fixed.values, moving.values], -1)
    draw_slice(ax, Slice(colours, fixed.size_mm, fixed.letters), "gray", 0.0, 1.0)


def _histogram(ax: Axes, values: Tensor, first: bool) -> None:
    data = values.double().numpy()
    edges = np.arange(HISTOGRAM[0] - BIN_WIDTH / 2, HISTOGRAM[1] + BIN_WIDTH, BIN_WIDTH)  # one bin is centred on 1
    if data.size:
        weights = np.full(data.size, 1 / data.size)
        ax.hist(data.clip(edges[0], edges[-1] - 1e-9), bins=list(edges), weights=weights, color="#0072b2")
        told = f"mean {data.mean():.3f}\nSD {data.std():.3f}"
        ax.text(0.97, 0.95, told, transform=ax.transAxes, ha="right", va="top", fontsize=8)
    ax.axvline(1.0, color="black", linewidth=0.6, linestyle=":")
    ax.set_xlim(*HISTOGRAM)
    ax.set_yscale("log")
    ax.set_ylim(1e-4, 1.5)
    ax.set_xlabel("det J (end bins: all beyond)", fontsize=8)
    ax.tick_params(labelsize=7)
    if first:
        ax.set_ylabel("share of voxels", fontsize=8)
    else:
        ax.set_yticklabels([])


def _row_name(ax: Axes, words: str, has_axis: bool) -> None:
    ax.text(-0.34 if has_axis else -0.06, 0.5, words, transform=ax.transAxes, rotation=90, ha="right", va="center", fontsize=9)
