"""A figure shows each side where a radiologist expects it, on any grid."""

import numpy as np
import pytest
import torch
from conftest import GRIDS, oblique_grid
from matplotlib.image import imread

from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.pictures import overlay
from osteomorph.slices import VIEWS, slice_plane

TOWARDS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


@pytest.mark.parametrize("plane", list(VIEWS))
def test_each_side_is_drawn_at_its_letter(grid, plane):
    """The image brightens along each anatomical direction in turn; so does the slice, from the opposite side to the letter."""
    across = VIEWS[plane][0]
    for letter, direction in TOWARDS.items():
        if letter in across:
            continue
        ramp = torch.einsum("a,aijk->ijk", torch.tensor(direction, dtype=torch.float64), grid.points(torch.float64))
        part = slice_plane(ramp, grid, plane, grid.centre_mm)
        top, bottom, left, right = (
            edge.mean() for edge in (part.values[0], part.values[-1], part.values[:, 0], part.values[:, -1])
        )
        brighter = {"top": top > bottom, "bottom": bottom > top, "left": left > right, "right": right > left}
        assert brighter[("top", "bottom", "left", "right")[part.letters.index(letter)]]


def test_radiological_convention(grid):
    assert slice_plane(torch.zeros(grid.shape), grid, "axial", grid.centre_mm).letters == "APRL"
    assert slice_plane(torch.zeros(grid.shape), grid, "coronal", grid.centre_mm).letters == "SIRL"
    assert slice_plane(torch.zeros(grid.shape), grid, "sagittal", grid.centre_mm).letters == "SIAP"


def test_marker_lies_at_its_millimetre(grid):
    """A voxel 2 right, 3 front, 2 up of the centre in voxels is on the left, upper part of every plane."""
    index = (np.array(grid.shape) - 1) // 2
    steps = {"LR": ("R", 2), "PA": ("A", 3), "IS": ("S", 2)}
    for ends, (letter, count) in steps.items():
        d = grid.axis(ends)
        index[d] += count if grid.axcodes[d] == letter else -count
    data = torch.zeros(grid.shape)
    data[tuple(index)] = 1
    at = grid.world(torch.as_tensor(index)[:, None].double())[:, 0].numpy()
    for plane in VIEWS:
        part = slice_plane(data, grid, plane, at)
        (row,), (column,) = np.nonzero(part.values)
        rows, columns = part.values.shape
        assert row < (rows - 1) / 2  # up, or front
        assert column < (columns - 1) / 2  # front, or the patient's right
        assert not slice_plane(data, grid, plane, grid.centre_mm - 3 * (at - grid.centre_mm)).values.any()


def test_pixel_size_follows_the_spacing():
    grid = oblique_grid((24, 20, 12))  # 0.7 x 1.1 x 3.0 mm
    for plane in VIEWS:
        part = slice_plane(torch.zeros(grid.shape), grid, plane, grid.centre_mm)
        drawn = {round(size, 6) for size in part.size_mm}
        across = grid.spacing_mm[grid.axis(VIEWS[plane][0])]
        assert drawn == {0.7, 1.1, 3.0} - {round(float(across), 6)}


def pictures(grid):
    points = grid.points(torch.float64)
    bone = ((points - torch.as_tensor(grid.centre_mm)[:, None, None, None]).norm(dim=0) < 5)[None]
    image = Image(bone.float() * 100 + torch.rand(1, *grid.shape), grid)
    return image, Labels(bone.to(torch.int16) * 23, grid)


@pytest.mark.parametrize("name", ["oblique", "sagittal"])
def test_overlay_with_and_without_labels(name, tmp_path):
    grid = GRIDS[name]
    image, labels = pictures(grid)
    bare = overlay(tmp_path / "bare.png", image, image, image)
    vectors = grid.points() * 0.02
    full = overlay(tmp_path / "full.png", image, image, image, labels, labels, labels, vectors, "phantom")
    assert imread(full).shape[1] > imread(bare).shape[1]  # a sixth column


def test_contours_take_the_colours_of_the_thesis(tmp_path):
    grid = oblique_grid((24, 20, 12))
    image, labels = pictures(grid)

    def coloured(path, colour):
        pixels = imread(path)[..., :3]
        return int((np.abs(pixels - np.array(colour)).max(-1) < 0.2).sum())

    green, red, yellow = (0.12, 0.75, 0.25), (1.0, 0.23, 0.19), (1.0, 0.84, 0.04)
    bare = overlay(tmp_path / "bare.png", image, image, image)
    fixed = overlay(tmp_path / "fixed.png", image, image, image, fixed_labels=labels)
    moved = overlay(tmp_path / "moved.png", image, image, image, before_labels=labels, moved_labels=labels)
    assert [coloured(bare, c) for c in (green, red, yellow)] == [0, 0, 0]
    assert coloured(fixed, green) > 100 > coloured(fixed, red)
    assert coloured(moved, red) > 100
    assert coloured(moved, yellow) > 100


def test_images_on_another_grid_are_refused(tmp_path):
    image, _ = pictures(oblique_grid((24, 20, 12)))
    other = Image(torch.zeros(1, 4, 4, 4), Grid((4, 4, 4), np.eye(4)))
    with pytest.raises(ValueError, match="fixed grid"):
        overlay(tmp_path / "no.png", image, image, other)
