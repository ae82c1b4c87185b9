"""Two estimates of a field: their mean where they agree, the first where they do not, nothing where it is held."""

import numpy as np
import pytest
import torch
from conftest import axis_grid, oblique_grid
from scipy.ndimage import gaussian_filter

from osteomorph.agreement import agreed
from osteomorph.case import Case
from osteomorph.geometry import Grid
from osteomorph.image import Image
from osteomorph.transforms import Displacement

WITHIN = 0.75


def smooth(grid: Grid, seed: int, length_mm: float = 200.0) -> torch.Tensor:
    """(3, ...) mm, some waves; the same field on whichever grid."""
    generator = np.random.default_rng(seed)
    points = grid.points().flatten(1)
    waves = torch.as_tensor(generator.standard_normal((3, 3)) / length_mm * 2 * np.pi, dtype=points.dtype)
    return (2 * torch.sin(waves @ points + seed)).unflatten(1, grid.shape)


def coarse(grid: Grid) -> Grid:
    return grid.resampled(np.maximum(4.0, grid.spacing_mm))


def alike(grid: Grid) -> Case:
    """Images that look alike under any field: nothing is seen in them."""
    flat = Image(torch.zeros(1, *grid.shape), grid)
    return Case(flat, flat)


GRIDS = [
    axis_grid((1, 1, 1), (40, 44, 36), (1.0, 1.0, 1.0)),
    axis_grid((-1, -1, 1), (40, 30, 24), (1.0, 1.5, 2.5)),
    oblique_grid((30, 36, 20), (1.0, 1.2, 2.0)),
]


@pytest.mark.parametrize("grid", GRIDS, ids=["RAS", "LPS", "oblique"])
def test_fields_that_agree_become_their_mean(grid):
    field, nodes = smooth(grid, 1), coarse(grid)
    guess = Displacement(smooth(nodes, 1) + 0.1, nodes)
    found = agreed(field.clone(), torch.ones(grid.shape), grid, guess, WITHIN, alike(grid))
    assert (found - field).mean() == pytest.approx(0.05, abs=0.015)
    assert float((found - field).abs().max()) < 0.15


@pytest.mark.parametrize("grid", GRIDS, ids=["RAS", "LPS", "oblique"])
def test_where_they_do_not_agree_the_first_is_kept(grid):
    field, nodes = smooth(grid, 1), coarse(grid)
    guess = Displacement(smooth(nodes, 1) + 3.0, nodes)
    found = agreed(field.clone(), torch.ones(grid.shape), grid, guess, WITHIN, alike(grid))
    assert float((found - field).norm(dim=0).max()) < 0.01


def test_independent_errors_partly_cancel():
    grid = axis_grid((1, 1, 1), (64, 64, 64), (1.0, 1.0, 1.0))
    truth, nodes = smooth(grid, 1), coarse(grid)
    first = truth + 0.15 * smooth(grid, 2, 30.0)
    second = Displacement(smooth(nodes, 1) + 0.15 * smooth(nodes, 5, 30.0), nodes)
    found = agreed(first.clone(), torch.ones(grid.shape), grid, second, WITHIN, alike(grid))
    before, after = (float((field - truth).norm(dim=0).mean()) for field in (first, found))
    assert after < 0.8 * before


def test_what_is_held_stays():
    grid = GRIDS[0]
    hold = torch.ones(grid.shape)
    hold[10:30, 10:30, 10:30] = 0
    field = smooth(grid, 1) * hold
    guess = Displacement(smooth(coarse(grid), 1) + 0.2, coarse(grid))
    found = agreed(field.clone(), hold, grid, guess, WITHIN, alike(grid))
    assert float(found[:, hold == 0].abs().max()) == 0
    assert float((found - field)[:, :8].abs().max()) > 0.05


def test_agreement_is_judged_place_by_place():
    grid = axis_grid((1, 1, 1), (120, 20, 20), (1.0, 1.0, 1.0))
    nodes = coarse(grid)
    apart = torch.where(nodes.points()[0] < nodes.centre_mm[0], 0.2, 4.0)
    guess = Displacement(apart.expand(3, *nodes.shape).clone(), nodes)
    found = agreed(torch.zeros(3, *grid.shape), torch.ones(grid.shape), grid, guess, WITHIN, alike(grid))
    assert float(found[0, :30].mean()) == pytest.approx(0.1, abs=0.02)
    assert float(found[0, -30:].abs().max()) < 1e-3


def test_a_guess_under_which_the_images_differ_has_no_say():
    """Two fields 0.6 mm apart; one of them is the motion between the images."""
    grid = axis_grid((1, 1, 1), (72, 64, 56), (1.0, 1.0, 1.0))
    texture = torch.from_numpy(gaussian_filter(np.random.default_rng(4).normal(0, 8, grid.shape), 2.0)).float()[None]
    image, nodes = Image((0.5 + 0.2 * texture).clamp(0, 1), grid), coarse(grid)
    right, wrong = torch.zeros(3, *grid.shape), torch.full((3, *grid.shape), 0.35)
    ones, case = torch.ones(grid.shape), Case(image, image)
    kept = agreed(right.clone(), ones, grid, Displacement(torch.full((3, *nodes.shape), 0.35), nodes), 2.0, case)
    taken = agreed(wrong.clone(), ones, grid, Displacement(torch.zeros(3, *nodes.shape), nodes), 2.0, case)
    inner = (slice(None), *(slice(12, -12),) * 3)
    assert float(kept[inner].abs().max()) < 0.03
    assert float((taken - wrong)[inner].mean()) == pytest.approx(-0.17, abs=0.02)
