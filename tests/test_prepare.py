"""Preparing: grids named by anatomy, intensities, padding, and the moving side under the rigid start."""

import numpy as np
import pytest
import torch
from conftest import axis_grid, oblique_grid
from scipy.spatial.transform import Rotation

from osteomorph.case import Case
from osteomorph.errors import InputError
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image, Labels
from osteomorph.plan import PreparePlan
from osteomorph.prepare import affordable, canonical_grid, cropped_moving, moved_case, prepare, resampled_case
from osteomorph.resampling import resample
from osteomorph.transforms import Rigid


def image_on(grid: Grid, seed: int = 0) -> Image:
    return Image(torch.rand(1, *grid.shape, generator=torch.Generator().manual_seed(seed)), grid)


def smooth_on(grid: Grid) -> Image:
    x, y, z = grid.points(torch.float64).flatten(1) / 9.0
    return Image((torch.sin(x) + torch.cos(y + 0.4 * z)).float().reshape(1, *grid.shape), grid)


def ball_on(grid: Grid, radius_mm: float = 7.0, shift_mm: float = 0.0) -> Labels:
    centre = torch.as_tensor(grid.centre_mm)[:, None] + shift_mm
    inside = (grid.points(torch.float64).flatten(1) - centre).norm(dim=0) < radius_mm
    return Labels(inside.reshape(1, *grid.shape).to(torch.int16) * 3, grid)


def both(image: Image, labels: Labels | None = None, mask: Image | None = None) -> Case:
    return Case(image, image, labels, labels, mask, mask)


def a_pose() -> Rigid:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians([9.0, -14.0, 21.0])).as_matrix()
    matrix[:3, 3] = (6.0, -11.0, 4.0)
    return Rigid(matrix)


def opposite(grid: Grid, rigid: Rigid) -> Grid:
    """An oblique grid about where ``rigid`` carries the middle of ``grid``."""
    found = oblique_grid((30, 34, 26), (1.2, 1.2, 1.2), (3, 8, -4))
    shift = np.eye(4)
    shift[:3, 3] = rigid(torch.as_tensor(grid.centre_mm)[:, None])[:, 0].numpy() - found.centre_mm
    return found.moved(shift)


def test_grid_becomes_isotropic_and_keeps_its_frame(grid):
    found = prepare(both(image_on(grid)), PreparePlan(spacing_mm=1.5)).fixed.grid
    assert np.allclose(found.spacing_mm, 1.5)
    assert np.allclose(found.direction, grid.direction)
    assert np.abs(found.centre_mm - grid.centre_mm).max() < 1e-9
    assert (found.size_mm >= grid.size_mm - 1e-6).all()


def test_each_side_has_its_own_grid():
    fixed, moving = oblique_grid(), oblique_grid(shape=(10, 30, 20), spacing=(2.0, 1.0, 1.0), angles=(0, 0, 0))
    found = prepare(Case(image_on(fixed), image_on(moving)), PreparePlan())
    assert np.allclose(found.fixed.grid.direction, fixed.direction)
    assert found.moving.grid.shape == (20, 30, 20)


def test_values_stay_where_they_are_in_the_world(grid):
    plan = PreparePlan(clip=False)
    source = smooth_on(grid)
    found = prepare(both(source), plan).fixed
    low, high = np.percentile(found.data.numpy(), plan.percentiles)
    assert abs(low) < 1e-4
    assert abs(high - 1) < 1e-4
    truth = smooth_on(found.grid).data[0].flatten()
    got = found.data[0].flatten()
    inner = grid.padded((-4, -4, -3)).contains(found.grid.points(torch.float64).flatten(1))
    slope, offset = np.polyfit(truth[inner].numpy(), got[inner].numpy(), 1)
    assert (got - (slope * truth + offset))[inner].abs().max() < 0.03


def test_labels_take_the_nearest_voxel(grid):
    labels = ball_on(grid)
    found = prepare(both(image_on(grid), labels), PreparePlan(spacing_mm=0.83)).fixed_labels
    points = found.grid.points(torch.float64).flatten(1)
    assert torch.equal(found.data.flatten(1), sample(labels.data, grid, points, "nearest", 0))
    assert found.ids() == [3]


def test_an_isotropic_image_is_not_resampled():
    grid = oblique_grid(spacing=(1.0, 1.0, 1.0))
    source = image_on(grid)
    found = prepare(both(source, ball_on(grid, 4.0)), PreparePlan(clip=False))
    low, high = np.percentile(source.data.numpy(), (1, 99))
    assert found.fixed.grid == grid
    assert torch.allclose(found.fixed.data, (source.data - low) / (high - low), atol=1e-6)
    assert torch.equal(found.fixed_labels.data, ball_on(grid, 4.0).data)


def test_shape_is_named_by_anatomy(grid):
    found = prepare(both(image_on(grid)), PreparePlan(shape=(31, 44, 12))).fixed.grid
    assert found.shape[found.axis("PA")] == 31
    assert found.shape[found.axis("IS")] == 44
    assert found.shape[found.axis("LR")] == 12
    assert np.abs(found.centre_mm - grid.centre_mm).max() <= 1.0


def test_sagittal_slabs_stay_sagittal():
    """Arrays of 160 x 160 x 96 that run left, posterior, superior: the 96 of the thesis go left-right."""
    grid = Grid((20, 18, 40), np.diag([-1.0, -1.0, 1.0, 1.0]))
    assert prepare(both(image_on(grid)), PreparePlan(shape=(32, 32, 12))).fixed.grid.shape == (12, 32, 32)


def test_padding_is_the_minimum_without_label_or_weight(grid):
    found = prepare(both(smooth_on(grid), ball_on(grid)), PreparePlan(shape=(60, 60, 60)))
    outside = ~grid.padded((2, 2, 2)).contains(found.fixed.grid.points(torch.float64).flatten(1)).reshape(1, 60, 60, 60)
    assert outside.any()
    assert (found.fixed.data[outside] == found.fixed.data.min()).all()
    assert (found.fixed_mask.data[outside] == 0).all()
    assert (found.fixed_labels.data[outside] == 0).all()
    assert found.fixed_mask.data.mean() > 0.9 * grid.voxels * np.prod(grid.spacing_mm) / 60**3


def test_a_mask_stays_a_weight(grid):
    mask = image_on(grid, seed=4)
    plain = prepare(both(image_on(grid), mask=mask), PreparePlan()).fixed_mask
    padded = prepare(both(image_on(grid), mask=mask), PreparePlan(shape=(60, 60, 60))).fixed_mask
    assert 0 <= plain.data.min() < 0.3
    assert 0.7 < plain.data.max() <= 1
    assert padded.data[0, 0, 0, 0] == 0


def test_percentiles_become_0_and_1():
    grid = oblique_grid(spacing=(1.0, 1.0, 1.0))
    data = torch.linspace(-500, 1500, grid.voxels)[torch.randperm(grid.voxels)].reshape(1, *grid.shape)
    found = prepare(both(Image(data, grid)), PreparePlan(percentiles=(10, 80), clip=True)).fixed.data
    assert float((found == 0).float().mean()) == pytest.approx(0.1, abs=0.002)
    assert float((found == 1).float().mean()) == pytest.approx(0.2, abs=0.002)
    free = prepare(both(Image(data, grid)), PreparePlan(percentiles=(10, 80), clip=False)).fixed.data
    assert float(free.max()) == pytest.approx(1 + 0.2 / 0.7, abs=0.01)


def test_padding_outside_the_scanner_circle_costs_no_contrast():
    grid = oblique_grid(shape=(40, 40, 10), spacing=(1.0, 1.0, 1.0))
    tissue = image_on(grid).data * 1000 - 900
    corner = torch.zeros(1, *grid.shape, dtype=torch.bool)
    corner[:, :16] = True
    padded = prepare(both(Image(torch.where(corner, -3024.0, tissue), grid)), PreparePlan()).fixed.data
    plain = prepare(both(Image(tissue, grid)), PreparePlan()).fixed.data
    assert (padded - plain)[~corner].abs().max() < 0.03
    assert (padded[corner] == 0).all()


def test_a_small_body_in_zeros_keeps_its_contrast():
    grid = oblique_grid(shape=(40, 40, 20), spacing=(1.0, 1.0, 1.0))
    data = torch.zeros(1, *grid.shape)
    data[:, 18:22, 18:22, 8:12] = torch.arange(64.0).reshape(4, 4, 4) + 100
    found = prepare(both(Image(data, grid)), PreparePlan()).fixed.data
    assert found[:, 18:22, 18:22, 8:12].std() > 0.1


@pytest.mark.parametrize("value", [0.0, -1024.0])
def test_a_constant_image_is_refused(value):
    grid = oblique_grid()
    with pytest.raises(InputError, match="moving image has no contrast"):
        prepare(Case(image_on(grid), Image(torch.full((1, *grid.shape), value), grid)), PreparePlan())


def test_a_crop_that_loses_all_labels_is_refused():
    grid = oblique_grid(shape=(40, 40, 40), spacing=(1.0, 1.0, 1.0))
    labels = ball_on(grid, 3.0, shift_mm=10.0)
    with pytest.raises(InputError, match=r"No fixed label is left.*prepare\.shape"):
        prepare(both(image_on(grid), labels), PreparePlan(shape=(8, 8, 8)))
    with pytest.raises(InputError, match="holds no label"):
        prepare(both(image_on(grid), ball_on(grid, 0.0)), PreparePlan())


def test_moved_case_is_the_moving_image_under_the_start(grid):
    rigid = a_pose()
    moving = smooth_on(opposite(grid, rigid))
    case = Case(image_on(grid), moving, None, ball_on(moving.grid), None, image_on(moving.grid))
    found = moved_case(case, rigid)
    points = rigid.inverse()(moving.grid.points(torch.float64).flatten(1)) + 0.3
    for carried, original in ((found.moving, case.moving), (found.moving_mask, case.moving_mask)):
        direct = sample(original.data, original.grid, rigid(points), outside=0.0)
        assert (sample(carried.data, carried.grid, points, outside=0.0) - direct).abs().max() < 1e-4
    labels = sample(case.moving_labels.data, moving.grid, rigid(points), "nearest", 0)
    carried = sample(found.moving_labels.data, found.moving_labels.grid, points, "nearest", 0)
    assert (labels != carried).float().mean() < 1e-3
    assert found.moving.data is case.moving.data


def test_resampled_case_lies_on_the_fixed_lattice_with_a_margin(grid):
    rigid = a_pose()
    moving = smooth_on(opposite(grid, rigid))
    case = Case(image_on(grid), moving, None, ball_on(moving.grid))
    found = resampled_case(case, rigid, margin_mm=9.0)
    assert np.allclose(found.moving.grid.direction, grid.direction)
    assert (found.moving.grid.size_mm >= grid.size_mm + 18 - 1e-6).all()
    assert torch.equal(found.moving.data, resample(moving, rigid, found.moving.grid, outside="border").data)
    assert torch.equal(found.moving_labels.data, resample(case.moving_labels, rigid, found.moving.grid).data)
    seen = moving.grid.contains(rigid(found.moving.grid.points(torch.float64).flatten(1)))
    assert (found.moving_mask.data.flatten() - seen.float()).abs().max() < 1e-5
    assert 0.3 < seen.float().mean() < 1


def test_far_from_what_the_fixed_image_shows_the_moving_one_is_let_go():
    fixed = Image(torch.rand(1, 12, 10, 8), axis_grid((1, 1, 1), (12, 10, 8), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0)))
    grid = oblique_grid((90, 80, 20), (2.0, 2.0, 3.0), (5, -8, 20), (-90.0, -70.0, -20.0))
    moving = Image(torch.rand(1, *grid.shape), grid)
    labels = Labels(torch.randint(0, 3, (1, *grid.shape), dtype=torch.int16), grid)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", 25, degrees=True).as_matrix()
    motion = Rigid(turn)
    crop = cropped_moving(Case(fixed, moving, None, labels), motion)
    assert crop.moving.grid.voxels < moving.grid.voxels
    rng = np.random.default_rng(0)
    near = motion(fixed.grid.world(torch.as_tensor(rng.uniform(0, 1, (3, 500)) * np.array([[11], [9], [7]]))))
    near = near + torch.as_tensor(rng.uniform(-30, 30, (3, 500)))
    near = near[:, moving.grid.contains(near)]
    assert torch.allclose(sample(crop.moving.data, crop.moving.grid, near), sample(moving.data, grid, near), atol=1e-5)
    assert torch.equal(
        sample(crop.moving_labels.data, crop.moving_labels.grid, near, "nearest"), sample(labels.data, grid, near, "nearest")
    )


def test_a_large_field_of_view_is_prepared_on_the_finest_grid_that_is_affordable(grid):
    plan = PreparePlan(spacing_mm=0.5, most_voxels=20_000)
    found = affordable(plan, grid)
    assert canonical_grid(grid, found).voxels <= 20_000
    finer = found.model_copy(update={"spacing_mm": found.spacing_mm - 0.05})
    assert canonical_grid(grid, finer).voxels > 20_000
    assert affordable(found, grid) == found  # so that a recorded plan gives the same again


@pytest.mark.parametrize("plan", [PreparePlan(spacing_mm=0.5), PreparePlan(spacing_mm=0.5, most_voxels=10, shape=(8, 9, 10))])
def test_a_spacing_that_a_plan_insists_on_is_kept(grid, plan):
    assert affordable(plan, grid) == plan


def test_a_small_field_of_view_keeps_its_spacing(grid):
    plan = PreparePlan(spacing_mm=3.0, most_voxels=canonical_grid(grid, PreparePlan(spacing_mm=3.0)).voxels)
    assert affordable(plan, grid) == plan
