"""Figures of the thesis show the data that they are given: read back from the drawn artists and pixels."""

import numpy as np
import pytest
import torch
from conftest import oblique_grid
from matplotlib.figure import Figure
from matplotlib.image import imread

from osteomorph import thesis_figures, thesis_overlays
from osteomorph.case import Case
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.transforms import Displacement, Rigid


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, still to be looked into."""
    figures: list[Figure] = []
    monkeypatch.setattr(thesis_figures, "DPI", 70)
    for module in (thesis_figures, thesis_overlays):
        kept = module.saved
        monkeypatch.setattr(module, "saved", lambda figure, path, kept=kept: (figures.append(figure), kept(figure, path))[1])
    return figures


def blocks(grid):
    """Two labelled boxes, brighter than the rest."""
    data = torch.zeros(1, *grid.shape, dtype=torch.int16)
    n = grid.shape
    data[0, n[0] // 4 : 3 * n[0] // 4, n[1] // 4 : 3 * n[1] // 4, n[2] // 8 : 3 * n[2] // 8] = 24
    data[0, n[0] // 4 : 3 * n[0] // 4, n[1] // 4 : 3 * n[1] // 4, 5 * n[2] // 8 : 7 * n[2] // 8] = 23
    image = Image((data > 0).float() * 0.6 + 0.3 * torch.rand(1, *grid.shape), grid)
    return image, Labels(data, grid, {23: "L4", 24: "L5"})


def test_slice_pair_names_the_bones(drawn, tmp_path):
    grid = oblique_grid((24, 20, 24), (1.0, 1.0, 1.0))
    image, labels = blocks(grid)
    path = thesis_figures.slice_pair(tmp_path / "f.png", image, image, labels, labels)
    for ax, title in zip(drawn[0].axes, ("CT", "MR"), strict=True):
        assert ax.get_title() == title
        assert {"L4", "L5"} <= {text.get_text() for text in ax.texts}
    assert imread(path).std() > 0.05


def test_intensities_draw_a_line_per_image_that_integrates_to_one(drawn, tmp_path):
    image, _ = blocks(oblique_grid())
    values = thesis_figures.some_values(image, 500)
    assert values.shape == (500,)
    thesis_figures.intensities(tmp_path / "f.png", {"CT": [values, values + 0.1], "MR": [values]})
    assert [len(ax.lines) for ax in drawn[0].axes] == [2, 1]
    for line in drawn[0].axes[0].lines:
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(1, abs=0.01)


def test_vector_fields_say_their_penalty(drawn, tmp_path):
    thesis_figures.vector_fields(tmp_path / "f.png")
    equal, random = (ax.get_title() for ax in drawn[0].axes)
    assert equal.endswith("= 0")
    assert float(random.rpartition("=")[2]) > 0.1


def test_folding_draws_means_and_pairs(drawn, tmp_path):
    thesis_figures.folding(tmp_path / "f.png", {0.1: [10.0, 20.0], 2.0: [0.0, 0.0], 0.5: [1.0, 3.0]})
    means = next(line for line in drawn[0].axes[0].lines if line.get_label() == "mean over pairs")
    assert list(means.get_xdata()) == [0.1, 0.5, 2.0]
    assert list(means.get_ydata()) == [15.0, 2.0, 0.0]


def test_violins_draw_every_method_in_every_bone(drawn, tmp_path):
    rows = [
        {"pair": str(n), "method": m, "bone": bone, "role": "labelled", "dice": 0.9 + 0.01 * n * (m == "US"), "msd_mm": 0.1 * n}
        for n in range(4)
        for m in ("Rigid", "US")
        for bone in ("L5", "L4")
    ]
    thesis_figures.violins(tmp_path / "f.png", rows, ("Rigid", "US"), ("L5", "L4"))
    dice, msd, hd99 = drawn[0].axes
    medians = [
        float(segment[0][1]) for lines in dice.collections if hasattr(lines, "get_segments") for segment in lines.get_segments()
    ]
    assert sorted(medians) == pytest.approx([0.9, 0.9, 0.915, 0.915])
    assert len(dice.lines) - 1 == len(msd.lines) - 1 == 4  # dots of two methods in two bones, and a line between the bones
    assert len(hd99.lines) == 1  # nothing was measured
    assert [label.get_text() for label in hd99.get_xticklabels()] == ["L5", "L4"]


def test_side_by_side_has_six_rows_and_its_histogram_is_of_bone(drawn, tmp_path):
    """A field that stretches by 1.2 outside bone and is rigid inside: the histogram is one bin at 1."""
    grid = Grid((32, 24, 24), np.diag([2.0, 2.0, 2.0, 1.0]))
    image, labels = blocks(grid)
    case = Case(image, image, labels, labels)
    vectors = torch.zeros(3, *grid.shape)
    still = thesis_overlays.column("still", Displacement(vectors, grid), case)
    vectors[0] = 0.2 * grid.points()[0]
    stretched = thesis_overlays.column("stretched", Displacement(vectors, grid), case)
    assert stretched.inside.mean().item() == pytest.approx(1.2, abs=1e-5)
    assert torch.equal(still.moved_labels.data, labels.data)
    path = thesis_overlays.methods_side_by_side(tmp_path / "f.png", case, Rigid.identity(), [still, stretched])
    axes = drawn[0].axes
    assert len(axes) == 6 * 2 + 2  # and two colour bars
    for ax, centre in zip(axes[10:12], (1.0, 1.2), strict=True):
        heights = {round(bar.get_x() + bar.get_width() / 2, 3): bar.get_height() for bar in ax.patches if bar.get_height() > 0}
        assert sum(heights.values()) == pytest.approx(1)
        assert all(abs(at - centre) < 0.011 for at in heights)
        assert {round(bar.get_width(), 6) for bar in ax.patches} == {0.01}
    assert {"normalised intensity", "det J (1: volume kept)"} == {ax.get_ylabel() for ax in axes[12:]}
    pixels = imread(path)[..., :3]
    green = (np.abs(pixels - np.array((0.12, 0.75, 0.25))).max(-1) < 0.2).sum()
    assert green > 100
    difference = axes[4].images[0].get_array(), axes[5].images[0].get_array()
    assert float(difference[0].max()) == pytest.approx(0, abs=1e-5)
    assert float(difference[1].max()) > 0.2
