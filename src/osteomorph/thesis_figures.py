"""Figures of the thesis drawn from images and rows: 3.1, 3.3, 3.5, 4.1, 4.2. (4.3 to 4.5 are in `thesis_overlays`.)"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage
from scipy.stats import gaussian_kde

from osteomorph.compare import Measure, by_pair
from osteomorph.figures import OUTLINE, draw_slice
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.regularity import rigidity_parts
from osteomorph.slices import grey_slice, middle_of_bones, slice_plane

BONES = ("#0072b2", "#e69f00", "#d62728", "#009e73", "#cc79a7", "#56b4e9")
"""Blue, orange, red as in Figure 3.1, from the lowest labelled bone upwards; then colours that stay apart for most eyes."""

METHODS = ("#7f7f7f", "#56b4e9", "#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7")
"""One per method in the order they are drawn (Okabe and Ito)."""

DPI = 130


def canvas(width: float, height: float) -> Figure:
    """A figure of that many inches which draws without a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=DPI, format=path.suffix[1:] or "png")
    return path


def slice_pair(
    path: Path, moving: Image, fixed: Image, moving_labels: Labels, fixed_labels: Labels, titles: tuple[str, str] = ("CT", "MR")
) -> Path:
    """Figure 3.1: a sagittal slice of each image through the middle of its bones, with the labels named and coloured."""
    figure = canvas(8.0, 5.2)
    order = sorted(set(fixed_labels.ids()) | set(moving_labels.ids()), reverse=True)
    for ax, image, labels, title in zip(
        figure.subplots(1, 2), (moving, fixed), (moving_labels, fixed_labels), titles, strict=True
    ):
        at = middle_of_bones(labels.grid, [labels])
        shown = grey_slice(image, "sagittal", at)
        ids = slice_plane(labels.data[0], labels.grid, "sagittal", at).values
        draw_slice(ax, shown, "gray", 0.0, 1.0)
        for place, label in enumerate(order):
            mask = ids == label
            if not mask.any():
                continue
            colour = BONES[place % len(BONES)]
            red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
            ax.imshow(np.dstack([np.full(mask.shape, v) for v in (red, green, blue)] + [0.45 * mask]), aspect=ax.get_aspect())
            pieces, _ = ndimage.label(mask)
            row, column = np.argwhere(pieces == 1 + np.argmax(np.bincount(pieces[mask])[1:])).mean(0)
            name = fixed_labels.names.get(label, moving_labels.name(label))
            ax.text(column, row, name, color="white", ha="center", va="center", fontsize=10, path_effects=OUTLINE)
        ax.set_title(title, fontsize=11)
    return saved(figure, path)


def some_values(image: Image, count: int = 20_000, seed: int = 0) -> np.ndarray:
    """At most ``count`` voxels' intensities, drawn at random: enough for a density, and little to keep."""
    values = image.data[0].flatten().numpy()
    return np.random.default_rng(seed).choice(values, min(count, values.size), replace=False)


def intensities(path: Path, groups: Mapping[str, Sequence[np.ndarray]]) -> Path:
    """Figure 3.3: distribution of prepared intensities (kernel density estimate), one panel per group, one line per image.

    groups: name of a modality -> `some_values` of each image.
    """
    figure = canvas(4.2 * len(groups), 3.2)
    at = np.linspace(-0.25, 1.5, 350)
    axes = np.atleast_1d(figure.subplots(1, len(groups), sharey=True))
    for ax, (name, images) in zip(axes, groups.items(), strict=True):
        for values in images:
            if values.std() > 0:
                ax.plot(at, gaussian_kde(values, bw_method=0.05)(at), linewidth=0.8, alpha=0.6, color="#0072b2")
        ax.set_title(f"{name} ({len(images)} images)", fontsize=10)
        ax.set_xlabel("normalised intensity")
        ax.set_xlim(at[0], at[-1])
    axes[0].set_yscale("symlog", linthresh=1.0)  # air piles up at 0
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("probability density")
    return saved(figure, path)


def vector_fields(path: Path, seed: int = 0) -> Path:
    """Figure 3.5: 5 x 5 x 5 equal vectors and random ones (mm, 1 mm voxels), each with its rigidity penalty, computed."""
    grid = Grid((5, 5, 5), np.eye(4))
    generator = torch.Generator().manual_seed(seed)
    equal = torch.tensor([0.35, 0.35, 0.2], dtype=torch.float64)[:, None, None, None].expand(3, 5, 5, 5).clone()
    random = 0.35 * torch.randn(3, 5, 5, 5, dtype=torch.float64, generator=generator)
    figure = Figure(figsize=(8.8, 4.6))  # the constrained layout cuts titles and labels of 3-D axes off
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.0, right=0.94, bottom=0.06, top=0.86, wspace=0.12)
    everywhere = torch.ones(grid.shape, dtype=torch.bool)
    for place, (vectors, title) in enumerate(((equal, "(a) equal vectors"), (random, "(b) random vectors")), 1):
        penalty = float(rigidity_parts(vectors, grid, everywhere).total)
        ax = figure.add_subplot(1, 2, place, projection="3d")
        ax.quiver(*grid.points(torch.float64).flatten(1).numpy(), *vectors.flatten(1).numpy(), color="#0072b2", linewidth=0.9)
        figures = "0" if penalty < 1e-12 else f"{penalty:.3g}"
        ax.set_title(f"{title}\n" + r"$\mathcal{L}_{RP}$ = " + figures, fontsize=11)
        for name in "xyz":
            getattr(ax, f"set_{name}lim")(-0.6, 4.6)
            getattr(ax, f"set_{name}ticks")(range(5))
            getattr(ax, f"set_{name}label")(f"{name} (mm)", fontsize=8)
        ax.tick_params(labelsize=7)
    return saved(figure, path)


def folding(path: Path, values: Mapping[float, Sequence[float]]) -> Path:
    """Figure 4.1: share of voxels with det J <= 0 in percent, per regularisation weight: mean over pairs, and each pair.

    values: gamma1 -> percent per pair.
    """
    figure = canvas(5.6, 3.8)
    ax = figure.subplots()
    weights = sorted(values)
    for weight in weights:
        ax.plot([weight] * len(values[weight]), values[weight], "o", color="#56b4e9", markersize=4, alpha=0.7, zorder=2)
    ax.plot(weights, [float(np.mean(values[w])) for w in weights], "s-", color="#0072b2", zorder=3, label="mean over pairs")
    ax.plot([], [], "o", color="#56b4e9", label="a pair")
    found = [v for pairs in values.values() for v in pairs if v > 0]
    ax.set_xscale("log")
    ax.set_xticks(weights, [f"{weight:g}" for weight in weights])
    ax.minorticks_off()
    ax.set_yscale("symlog", linthresh=max(min(found, default=0.01), 1e-3))
    ax.set_ylim(bottom=0)
    ax.set_xlabel(r"regularisation weight $\gamma_1$")
    ax.set_ylabel("voxels that fold (%)")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=9)
    return saved(figure, path)


def violins(
    path: Path,
    rows: Sequence[Mapping[str, object]],
    methods: Sequence[str],
    bones: Sequence[str],
    pooled: str = "all",
    measures: Sequence[Measure] = (Measure("dice", "DSC"), Measure("msd_mm", "MSD (mm)"), Measure("hd99_mm", "HD99 (mm)")),
) -> Path:
    """Figure 4.2: a violin per bone and method, a dot per pair (mean over folds), a bar at the median. One row per measure."""
    figure = canvas(2.2 * len(bones) + 2.2, 2.5 * len(measures))
    axes = np.atleast_1d(figure.subplots(len(measures), 1, sharex=True))
    width = 0.8 / len(methods)
    for ax, measure in zip(axes, measures, strict=True):
        for group, bone in enumerate(bones):
            values = by_pair(rows, measure.key, bone)
            for place, method in enumerate(methods):
                found = np.array(list(values.get(method, {}).values()))
                if not found.size:
                    continue
                at, colour = group + (place - (len(methods) - 1) / 2) * width, METHODS[place % len(METHODS)]
                if np.ptp(found) > 0:
                    (body,) = ax.violinplot(found, [at], widths=0.9 * width, showextrema=False)["bodies"]
                    body.set(facecolor=colour, edgecolor="black", linewidth=0.5, alpha=0.6)
                ax.plot([at] * found.size, found, ".", color="black", markersize=2.5)
                ax.hlines(np.median(found), at - 0.35 * width, at + 0.35 * width, color="black", linewidth=1.6)
        ax.set_ylabel(measure.title)
        ax.grid(axis="y", alpha=0.3)
        for edge in range(1, len(bones)):
            ax.axvline(edge - 0.5, color="0.85", linewidth=0.8)
    axes[-1].set_xticks(range(len(bones)), [pooled if bone == "pooled" else bone for bone in bones])
    axes[-1].set_xlim(-0.5, len(bones) - 0.5)
    handles = [
        Patch(facecolor=METHODS[place % len(METHODS)], alpha=0.6, edgecolor="black", label=method)
        for place, method in enumerate(methods)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(methods), frameon=False, fontsize=9)
    return saved(figure, path)
