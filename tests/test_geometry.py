import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import GRIDS, axis_grid, oblique_grid, sagittal_grid
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

import osteomorph
from osteomorph.geometry import Grid, overlap_mm3, sample


@st.composite
def grids(draw):
    shape = tuple(draw(st.integers(1, 9)) for _ in range(3))
    spacing = [draw(st.floats(0.2, 5.0)) for _ in range(3)]
    flips = [draw(st.sampled_from([-1, 1])) for _ in range(3)]
    order = draw(st.permutations([0, 1, 2]))
    angles = [draw(st.floats(-180, 180)) for _ in range(3)]
    origin = [draw(st.floats(-400, 400)) for _ in range(3)]
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.eye(3)[:, order]
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array(spacing) * np.array(flips)
    affine[:3, 3] = origin
    return Grid(shape, affine)


@given(grids())
@settings(max_examples=60, deadline=None)
def test_world_of_index_is_the_inverse_of_index_of_world(grid):
    points = grid.points(torch.float64).flatten(1)
    index = grid.index(points)
    expected = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in grid.shape]).reshape(-1, 3).T
    assert torch.allclose(index, expected, atol=1e-9)
    assert torch.allclose(grid.world(index), points, atol=1e-9)


@given(grids())
@settings(max_examples=40, deadline=None)
def test_points_agree_with_nibabel(grid):
    ijk = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    expected = nib.affines.apply_affine(grid.affine, ijk)
    assert np.allclose(grid.points(torch.float64).movedim(0, -1).numpy(), expected, atol=1e-9)
    assert grid.axcodes == "".join(nib.aff2axcodes(grid.affine))


@given(grids(), st.floats(0.3, 4.0))
@settings(max_examples=40, deadline=None)
def test_resampled_keeps_centre_and_directions_and_covers_the_view(grid, spacing):
    other = grid.resampled(spacing)
    assert np.allclose(other.centre_mm, grid.centre_mm, atol=1e-9)
    assert np.allclose(other.direction, grid.direction, atol=1e-12)
    assert (other.size_mm >= grid.size_mm - 1e-5).all()
    assert (other.size_mm < grid.size_mm + spacing + 1e-5).all()


def test_axes_are_found_by_anatomy_not_by_position():
    assert [GRIDS["sagittal"].axis(ends) for ends in ("IS", "AP", "LR")] == [0, 1, 2]
    assert [GRIDS["LPS"].axis(ends) for ends in ("RL", "PA", "SI")] == [0, 1, 2]
    assert GRIDS["LAS"].axcodes == "LAS"


def test_strided_is_the_grid_of_strided_data(grid):
    points = grid.points(torch.float64)
    assert torch.allclose(grid.strided(3, (1, 0, 2)).points(torch.float64), points[:, 1::3, 0::3, 2::3], atol=1e-9)


def test_about_centre_keeps_the_lattice(grid):
    shape = (grid.shape[0] - 5, grid.shape[1] + 4, grid.shape[2])
    index = grid.index(grid.about_centre(shape).points(torch.float64).flatten(1))
    assert torch.allclose(index, index.round(), atol=1e-9)
    assert np.abs(grid.about_centre(shape).centre_mm - grid.centre_mm).max() <= grid.spacing_mm.max()


def test_moved_grid_carries_points_along():
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("zyx", (10, 20, 30), degrees=True).as_matrix()
    matrix[:3, 3] = 1, 2, 3
    grid = oblique_grid()
    there = torch.as_tensor(matrix[:3, :3]) @ grid.points(torch.float64).flatten(1) + torch.tensor([[1.0], [2], [3]])
    assert torch.allclose(grid.moved(matrix).points(torch.float64).flatten(1), there, atol=1e-9)


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(4) + 0.2 * np.eye(4)[[1, 0, 2, 3]]])
def test_impossible_affines_are_refused(affine):
    with pytest.raises(ValueError, match="grid's"):
        Grid((3, 3, 3), affine)


def test_sampling_a_linear_ramp_is_exact_on_any_grid(grid):
    slope = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
    data = (slope[:, None, None, None] * grid.points(torch.float64)).sum(0, keepdim=True)
    index = torch.rand(3, 500, dtype=torch.float64) * (torch.tensor(grid.shape) - 1)[:, None]
    points = grid.world(index)
    assert torch.allclose(sample(data, grid, points)[0], slope @ points, atol=1e-9)


def test_sampling_agrees_with_scipy():
    from scipy.ndimage import map_coordinates

    grid = oblique_grid()
    data = torch.rand(1, *grid.shape, dtype=torch.float64)
    index = torch.rand(3, 400, dtype=torch.float64) * (torch.tensor(grid.shape) + 4)[:, None] - 2.5
    for name, order in (("linear", 1), ("nearest", 0)):
        expected = map_coordinates(data[0].numpy(), index.numpy(), order=order, mode="nearest")
        assert np.allclose(sample(data, grid, grid.world(index), name)[0].numpy(), expected, atol=1e-9)


def test_outside_begins_at_the_outer_voxel_faces():
    grid = axis_grid((1, 1, 1))
    data = torch.ones(1, *grid.shape)
    index = torch.tensor([[-0.51, -0.49, grid.shape[0] - 0.51, grid.shape[0] - 0.49], [5.0] * 4, [5.0] * 4])
    assert sample(data, grid, grid.world(index), "linear", -7.0)[0].tolist() == [-7, 1, 1, -7]
    assert grid.contains(grid.world(index)).tolist() == [False, True, True, False]


def test_nearest_keeps_large_integers():
    grid = sagittal_grid()
    data = torch.randint(2**24, 2**30, (1, *grid.shape))
    assert torch.equal(sample(data, grid, grid.points(torch.float64).flatten(1), "nearest"), data.flatten(1))


def test_many_points_are_sampled_as_few_are():
    grid = oblique_grid()
    data = torch.rand(2, *grid.shape)
    points = grid.world(torch.rand(3, 60_001) * 10)
    parts = torch.cat([sample(data, grid, chunk) for chunk in points.split(7_000, 1)], 1)
    assert torch.equal(sample(data, grid, points), parts)


def test_sample_has_exact_gradients():
    grid = oblique_grid((4, 5, 4))
    data = torch.rand(2, *grid.shape, dtype=torch.float64, requires_grad=True)
    points = grid.world(torch.rand(3, 7, dtype=torch.float64) * 2.8 + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda d, p: sample(d, grid, p), (data, points))


def test_batch_is_each_alone():
    grid = oblique_grid()
    data, points = torch.rand(3, 2, *grid.shape), torch.rand(3, 3, 50) * 20
    both = sample(data, grid, points)
    for b in range(3):  # to rounding: products of many matrices at once are not those of one on every processor
        torch.testing.assert_close(both[b], sample(data[b], grid, points[b]), rtol=0, atol=1e-5)


def test_overlap_is_the_shared_volume():
    a = Grid((40, 40, 40), np.eye(4))
    shift = np.eye(4)
    shift[0, 3] = 10
    assert overlap_mm3(a, a.moved(shift), 1.0) == pytest.approx(30 * 40 * 40)
    shift[0, 3] = 100
    assert overlap_mm3(a, a.moved(shift)) == 0


def test_normalised_coordinates_stay_in_one_file():
    source = Path(osteomorph.__file__).parent
    found = {p.name for p in source.rglob("*.py") if re.search(r"grid_sample|align_corners", p.read_text())}
    assert found == {"geometry.py"}


@pytest.mark.parametrize("shape", [(7, 6, 5), (1, 6, 5), (7, 1, 2)])
def test_many_channels_side_by_side_are_sampled_like_others(shape):
    """Values, and slopes by the points too, inside, at the border and beyond it."""
    grid = axis_grid((-1, 1, 1), shape)
    side_by_side = torch.rand(*shape, 12, dtype=torch.float64).permute(3, 0, 1, 2)
    size = torch.tensor(shape, dtype=torch.float64)[:, None]
    points = grid.world(torch.rand(3, 200, dtype=torch.float64) * (size + 3) - 2)
    weight = torch.rand(12, 200, dtype=torch.float64)
    found = []
    for data in (side_by_side, side_by_side.contiguous()):
        here = points.clone().requires_grad_()
        values = sample(data, grid, here)
        found.append((values.detach(), torch.autograd.grad((values * weight).sum(), here)[0]))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-12)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-10)
    half = sample(side_by_side.half(), grid, points.float())
    assert half.dtype == torch.float32
    assert torch.allclose(half, found[0][0].float(), atol=1e-3)


def test_a_grid_knows_which_of_its_voxels_another_one_holds(grid):
    crop = grid.padded((-2, -1, -3), (-1, 0, -2))
    part = grid.part(crop)
    assert part is not None
    everywhere = grid.points(torch.float64)
    assert torch.allclose(everywhere[:, part[0], part[1], part[2]], crop.points(torch.float64), atol=1e-9)
    assert grid.part(grid.padded((1, 0, 0))) is None
    assert grid.part(grid.resampled(0.9 * grid.spacing_mm)) is None


def test_index_of_another_grid_is_that_of_its_points(grid):
    other = GRIDS["oblique"].resampled(2.5)
    expected = grid.index(other.points(torch.float64).flatten(1)).unflatten(1, other.shape)
    assert torch.allclose(grid.index_of(other, torch.float64), expected, atol=1e-9)
    assert torch.allclose(grid.index_of(other), expected.float(), atol=1e-4)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_slabs_are_the_grid_in_order(grid):
    points = grid.points(torch.float64)
    parts = list(grid.slabs(5))
    assert torch.allclose(torch.cat([part.points(torch.float64) for _, part in parts], 1), points, atol=1e-9)
    assert [planes.start for planes, _ in parts] == list(range(0, grid.shape[0], 5))


def test_slabs_of_large_planes_are_thinner(monkeypatch):
    monkeypatch.setattr("osteomorph.geometry.SLAB_VOXELS", 1000)
    grid = Grid((7, 20, 20), np.eye(4))
    assert [(planes.start, planes.stop) for planes, _ in grid.slabs()] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert [part.shape[0] for _, part in Grid((3, 40, 40), np.eye(4)).slabs()] == [1, 1, 1]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_what_lies_around_points_holds_them_and_a_margin(grid):
    points = grid.points(torch.float64)[:, 6:9, 7:9, 5:7].flatten(1)
    part = grid.around(points, 2.5)
    crop = grid.cropped(part)
    assert torch.allclose(crop.points(torch.float64), grid.points(torch.float64)[(slice(None), *part)], atol=1e-9)
    assert crop.contains(points).all()
    reach = [int(np.ceil(2.5 / h)) for h in grid.spacing_mm]
    assert [s.start for s in part] == [max(0, n - r) for n, r in zip((6, 7, 5), reach, strict=True)]
    assert grid.around(points + 1000.0, 2.5) is None
