"""The wide search against smooth motions that are known, on awkward grids that the two images do not share."""

import numpy as np
import pytest
import torch
from conftest import axis_grid, oblique_grid, sagittal_grid
from scipy import ndimage

from osteomorph.discrete import discrete_field, discrete_step
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image
from osteomorph.plan import DiscreteLevel, DiscretePlan

PLAN = DiscretePlan(
    levels=(
        DiscreteLevel(spacing_mm=5.0, stride=2, reach_mm=20.0),
        DiscreteLevel(spacing_mm=3.0, stride=2, reach_mm=6.0),
    ),
    smooth_nodes=1.0,
)


def about_zero(grid: Grid) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] -= grid.centre_mm
    return Grid(grid.shape, affine)


VIEWS = {
    "RAS": about_zero(axis_grid((1, 1, 1), (40, 34, 30), (2.0, 2.5, 3.0))),
    "LAS": about_zero(axis_grid((-1, 1, 1), (40, 34, 30), (2.0, 2.5, 3.0))),
    "LPS": about_zero(axis_grid((-1, -1, 1), (40, 34, 30), (2.0, 2.5, 3.0))),
    "sagittal": about_zero(sagittal_grid((42, 40, 24), (2.0, 2.0, 3.5))),
    "oblique": about_zero(oblique_grid((40, 36, 22), (2.0, 2.4, 4.0))),
}
MOVING = about_zero(oblique_grid((60, 54, 40), (2.2, 2.5, 3.0), (5, 10, -15)))


def features(channels: int = 4, seed: int = 3) -> Image:
    """Channels of smooth noise on the moving grid."""
    generator = np.random.default_rng(seed)
    noise = [ndimage.gaussian_filter(generator.standard_normal(MOVING.shape), 2.0, mode="nearest") for _ in range(channels)]
    return Image(torch.as_tensor(np.stack(noise), dtype=torch.float32) * 10, MOVING)


def motion(points: torch.Tensor) -> torch.Tensor:
    """Smooth, up to 15 mm along a direction that changes."""
    x, y, z = points / 40
    return torch.stack([13 * torch.cos(y / 2), 9 * torch.sin(x + 0.5), -8 * torch.cos(z - x / 2)])


def seen_through(moving: Image, grid: Grid) -> Image:
    points = grid.points().flatten(1)
    return Image(sample(moving.data, moving.grid, points + motion(points)).unflatten(1, grid.shape), grid)


def inner(grid: Grid) -> torch.Tensor:
    points = grid.points().flatten(1)
    index = grid.index(points)
    size = torch.tensor(grid.shape)[:, None]
    return points[:, ((index > 0.12 * size) & (index < 0.88 * size - 1)).all(0)]


@pytest.mark.parametrize("name", list(VIEWS))
def test_a_smooth_motion_of_15_mm_is_found_on_any_grid(name):
    moving, grid = features(), VIEWS[name]
    found = discrete_field(seen_through(moving, grid), moving, PLAN)
    points = inner(grid)
    truth = motion(points)
    assert float(truth.norm(dim=0).max()) > 15
    error = (found(points) - points - truth).norm(dim=0)
    assert float(error.mean()) < 0.8
    assert float(error.max()) < 5


def test_a_second_level_is_finer():
    moving, grid = features(), VIEWS["oblique"]
    fixed, points = seen_through(moving, VIEWS["oblique"]), inner(grid)
    coarse = discrete_step(fixed, moving, PLAN.levels[0], PLAN)
    fine = discrete_step(fixed, moving, PLAN.levels[1], PLAN, start=coarse)
    first, second = (float((field(points) - points - motion(points)).norm(dim=0).mean()) for field in (coarse, fine))
    assert second < 0.7 * first


def test_what_has_no_weight_has_no_say():
    """Half of the fixed image moved in another way, which draws along what is next to it, if it is believed."""
    moving, grid = features(), VIEWS["LPS"]
    fixed, points = seen_through(moving, grid), grid.points().flatten(1)
    shown = (grid.points()[0] < 0).float()[None]
    other = sample(moving.data, MOVING, points - motion(points)).unflatten(1, grid.shape)
    fixed = fixed.with_data(torch.where(shown > 0, fixed.data, other))
    at = inner(grid)
    at = at[:, at[0] < -2]
    errors = [
        float((field(at) - at - motion(at)).norm(dim=0).mean())
        for field in (
            discrete_field(fixed, moving, PLAN, fixed_weight=Image(shown, grid)),
            discrete_field(fixed, moving, PLAN),
        )
    ]
    assert errors[0] < 1.0
    assert errors[0] < 0.8 * errors[1]


def test_a_field_of_view_that_ends_does_not_attract():
    """The moving image lacks a slab that the fixed one shows: what is there follows its surroundings."""
    moving, grid = features(), VIEWS["RAS"]
    fixed = seen_through(moving, grid)
    cut = moving.grid.padded((0, 0, -14), (0, 0, 0))
    found = discrete_field(fixed, Image(moving.data[..., 14:].contiguous(), cut), PLAN)
    at = inner(grid)
    there = cut.contains(at + motion(at))
    assert 0.05 < 1 - float(there.float().mean()) < 0.6
    assert float((found(at) - at - motion(at)).norm(dim=0)[there].mean()) < 1.5
    assert float((found(at) - at - motion(at)).norm(dim=0)[~there].mean()) < 6


def test_a_last_level_of_one_direction_finds_as_much_and_is_not_made_to_agree():
    moving, grid = features(), VIEWS["oblique"]
    fixed, at = seen_through(moving, grid), inner(grid)
    last = PLAN.levels[1].model_copy(update={"both_ways": False})
    found = [discrete_field(fixed, moving, plan) for plan in (PLAN, PLAN.model_copy(update={"levels": (PLAN.levels[0], last)}))]
    both, one = (float((field(at) - at - motion(at)).norm(dim=0).mean()) for field in found)
    assert one < 1.1 * both
    assert not torch.equal(found[0].vectors, found[1].vectors)


def test_both_directions_agree():
    moving, grid = features(), VIEWS["sagittal"]
    fixed = seen_through(moving, grid)
    back = discrete_field(moving, fixed, PLAN)
    forth = discrete_field(fixed, moving, PLAN)
    at = inner(grid)
    assert float((back(forth(at)) - at).norm(dim=0).mean()) < 1.0


def test_it_is_the_same_every_time_and_needs_levels_to_move():
    moving, grid = features(2), VIEWS["RAS"]
    fixed = seen_through(moving, grid)
    level = PLAN.model_copy(update={"levels": PLAN.levels[:1]})
    assert torch.equal(discrete_field(fixed, moving, level).vectors, discrete_field(fixed, moving, level).vectors)
    points = inner(grid)
    assert torch.equal(discrete_field(fixed, moving, DiscretePlan())(points), points)


def test_images_of_other_channels_are_refused():
    moving = features(2)
    with pytest.raises(ValueError, match="2 and 3 channels"):
        discrete_field(moving, features(3), PLAN)


def test_images_without_contrast_stay_where_they_are():
    flat = Image(torch.ones(2, *MOVING.shape), MOVING)
    found = discrete_field(flat, flat, PLAN)
    assert float(found.vectors.abs().max()) < 1e-6
