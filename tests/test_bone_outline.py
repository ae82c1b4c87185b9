"""Where found bones end on the image's own grid."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from osteomorph.bone_network import HU_FROM
from osteomorph.bone_outline import _brightest, outlined
from osteomorph.geometry import Grid
from osteomorph.image import Image

LATTICE = Grid((24, 24, 24), np.diag([2.0, 2.0, 2.0, 1.0]))
MIDDLE = (23.0, 23.0, 23.0)


def ball(grid: Grid, radius_mm: float, middle: tuple[float, float, float] = MIDDLE) -> np.ndarray:
    points = grid.points(torch.float64).flatten(1)
    depth = radius_mm - (points - torch.tensor(middle, dtype=torch.float64)[:, None]).norm(dim=0)
    return depth.reshape(grid.shape).numpy()


def said(radius_mm: float, middle: tuple[float, float, float] = MIDDLE) -> tuple[Image, np.ndarray]:
    """What a network that draws a ball of that radius answers: a logit that falls by 1.5 a mm, and the bone's number."""
    depth = ball(LATTICE, radius_mm, middle)
    return Image(torch.from_numpy(1.5 * depth).float().clamp(-8, 8)[None], LATTICE), (depth > 0).astype(np.int32)


def hounsfield(grid: Grid, cortex: float = 700.0, around: float = 50.0, seed: int = 3) -> np.ndarray:
    """A ball of 12 mm with a cortex of 2 mm in muscle or fat, blurred as a scanner does, with noise."""
    fine = grid.resampled(grid.spacing_mm / 2)
    depth = ball(fine, 12.0)
    sharp = np.where(depth < 0, around, np.where(depth < 2, cortex, 220.0))
    smooth = ndimage.gaussian_filter(sharp, 0.6 / fine.spacing_mm)
    noise = np.random.default_rng(seed).normal(0, 12, grid.shape)
    at = torch.as_tensor(grid.points(torch.float64).flatten(1))
    index = fine.index(at).numpy()
    return (ndimage.map_coordinates(smooth, index, order=1, mode="nearest").reshape(grid.shape) + noise).astype(np.float32)


def dice(found: np.ndarray, true: np.ndarray) -> float:
    return float(2 * (found & true).sum() / (found.sum() + true.sum()))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 2.5)])
@pytest.mark.parametrize(("radius", "cortex", "around"), [(11.0, 450.0, 50.0), (11.0, 1200.0, 50.0), (13.0, 450.0, -90.0)])
def test_a_ct_puts_the_edge_where_its_cortex_ends(spacing, radius, cortex, around):
    """A millimetre too small in muscle and for a thin cortex as for a thick one; or too large in fat."""
    grid = LATTICE.resampled(np.array(spacing))
    true = ball(grid, 12.0) > 0
    alone = dice(outlined(*said(radius), grid) > 0, true)
    seen = dice(outlined(*said(radius), grid, hounsfield(grid, cortex, around)) > 0, true)
    assert alone < 0.93
    assert seen > 0.95


def test_the_edge_does_not_move_far_from_what_the_network_says():
    """A vessel full of contrast agent 5 mm from the bone is left out, and so is dark marrow left in."""
    hu = hounsfield(LATTICE)
    depth = ball(LATTICE, 12.0)
    hu[depth < -5] = 400.0
    hu[depth > 6] = 0.0
    found = outlined(*said(12.0), LATTICE, hu) > 0
    assert not found[depth < -4].any()
    assert found[depth > 1].all()


def test_without_hounsfield_units_the_network_decides():
    logit, numbers = said(11.0)
    np.testing.assert_array_equal(outlined(logit, numbers, LATTICE), numbers)


def test_two_bones_keep_their_numbers_and_nothing_is_nothing():
    (one, first), (other, second) = said(6.0, (12.0, 23.0, 23.0)), said(6.0, (34.0, 23.0, 23.0))
    both = Image(torch.maximum(one.data, other.data), LATTICE)
    found = outlined(both, first + 7 * second, LATTICE, np.full(LATTICE.shape, HU_FROM + 300.0, np.float32))
    assert set(np.unique(found).tolist()) == {0, 1, 7}
    assert (found[:11] != 7).all()
    assert (found[13:] != 1).all()
    assert not outlined(both, np.zeros_like(first), LATTICE).any()


@pytest.mark.parametrize("reach", [[0, 1, 2], [3, 4, 5], [6, 0, 9]])
def test_the_brightest_around_is_scipys_where_fields_of_view_end(reach):
    data = np.random.default_rng(0).normal(size=(11, 5, 13)).astype(np.float32)
    expected = ndimage.maximum_filter(data, [2 * n + 1 for n in reach], mode="constant", cval=-np.inf)
    assert np.array_equal(_brightest(torch.from_numpy(data), reach).numpy(), expected)
