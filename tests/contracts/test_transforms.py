"""One contract for every transform; a new one is added to TRANSFORMS, or the inventory test fails."""

import inspect

import numpy as np
import pytest
import torch
from conftest import GRIDS, oblique_grid
from scipy.spatial.transform import Rotation

from osteomorph import fields, polyrigid, transforms
from osteomorph.geometry import Grid, sample
from osteomorph.image import Labels
from osteomorph.transforms import Chain, Displacement, Rigid, Transform, Velocity


def rigid(angles=(5, -8, 12), shift=(3.0, -2.0, 4.0)) -> Rigid:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return Rigid(matrix)


def waves(grid: Grid, size_mm: float = 1.5) -> torch.Tensor:
    x, y, z = (grid.points(torch.float64) - torch.as_tensor(grid.centre_mm)[:, None, None, None]) / 9
    return size_mm * torch.stack([torch.sin(y), torch.cos(z + 0.3), torch.sin(x - 0.2)])


def articulated(grid: Grid, turn: Rigid | None = None) -> Transform:
    """Two blocks of bone a third of the grid apart; seen from a world turned by ``turn`` where given."""
    data = torch.zeros(1, *grid.shape, dtype=torch.int16)
    i, j, k = (max(1, n // 6) for n in grid.shape)
    data[0, i : 2 * i, j : -2 * j, k:-k] = 1
    data[0, 4 * i : 5 * i, 2 * j : -j, k:-k] = 2
    poses = {1: rigid(), 2: rigid((9, -4, 8), (5.0, -1.0, 4.0))}
    if turn is not None:
        poses = {label: Rigid(turn.matrix @ pose.matrix @ turn.inverse().matrix) for label, pose in poses.items()}
        grid = grid.moved(turn.matrix)
    return polyrigid.from_labels(poses, Labels(data, grid))


TRANSFORMS = {
    "Rigid": lambda grid: rigid(),
    "Displacement": lambda grid: Displacement(waves(grid), grid),
    "Velocity": lambda grid: Velocity(waves(grid), grid),
    "Chain": lambda grid: rigid().after(Displacement(waves(grid), grid)),
    "Polyrigid": articulated,
}


@pytest.fixture(params=list(TRANSFORMS), ids=str)
def transform(request, grid) -> Transform:
    fine = grid.resampled(1.0)
    return TRANSFORMS[request.param](fine)


def inner(grid: Grid, n: int = 300) -> torch.Tensor:
    """Points well inside the field of view."""
    share = torch.rand(3, n, dtype=torch.float64) * 0.6 + 0.2
    return grid.world(share * (torch.tensor(grid.shape) - 1)[:, None])


def test_every_transform_is_under_contract():
    kinds = [pair for module in (transforms, polyrigid) for pair in inspect.getmembers(module, inspect.isclass)]
    found = {name for name, kind in kinds if issubclass(kind, Transform)} - {"Transform"}
    assert found == set(TRANSFORMS)


def test_points_keep_their_type_and_shape(transform, grid):
    points = inner(grid)
    for dtype in (torch.float32, torch.float64):
        assert transform(points.to(dtype)).shape == points.shape
        assert transform(points.to(dtype)).dtype == dtype
    assert (transform(points) - points).norm(dim=0).max() > 0.3


def test_inverse_brings_points_back(transform, grid):
    points = inner(grid)
    assert (transform.inverse()(transform(points)) - points).norm(dim=0).mean() < 0.02
    assert (transform(transform.inverse()(points)) - points).norm(dim=0).mean() < 0.02


def test_displacement_is_transform_minus_identity(transform, grid):
    points = grid.points(torch.float64)
    expected = transform(points.flatten(1)).unflatten(-1, grid.shape) - points
    assert torch.allclose(transform.displacement(grid, torch.float64), expected, atol=1e-9)


def test_after_applies_the_argument_first(transform, grid):
    points, outer = inner(grid), rigid((20, 0, 0), (0, 30.0, 0))
    assert torch.allclose(outer.after(transform)(points), outer(transform(points)), atol=1e-9)
    assert not torch.allclose(outer.after(transform)(points), transform(outer(points)), atol=0.1)


def test_each_point_alone_goes_where_it_goes_among_others(transform, grid):
    points = inner(grid, 5)
    alone = torch.cat([transform(p) for p in points.split(1, 1)], 1)
    assert torch.allclose(alone, transform(points), atol=1e-9)


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_rotating_the_world_rotates_the_result(name):
    """Q T Q^-1 built on the turned grid with turned vectors is T seen from the turned world."""
    grid, turn = oblique_grid(), rigid((40, 15, -70), (5.0, 6.0, 7.0))
    rotation = torch.as_tensor(turn.matrix[:3, :3].copy())
    vectors, turned_grid = waves(grid), grid.moved(turn.matrix)
    turned = torch.einsum("ab,bijk->aijk", rotation, vectors)
    pose = Rigid(turn.matrix @ rigid().matrix @ turn.inverse().matrix)
    pairs = {
        "Rigid": (rigid(), pose),
        "Displacement": (Displacement(vectors, grid), Displacement(turned, turned_grid)),
        "Velocity": (Velocity(vectors, grid), Velocity(turned, turned_grid)),
        "Chain": (rigid().after(Displacement(vectors, grid)), pose.after(Displacement(turned, turned_grid))),
        "Polyrigid": (articulated(grid), articulated(grid, turn)),
    }
    here, there = pairs[name]
    points = inner(grid)
    close_mm = 1e-3 if name == "Polyrigid" else 1e-6  # its distances are in single precision
    assert torch.allclose(turn(here(points)), there(turn(points)), atol=close_mm)


def test_vectors_get_exact_gradients():
    grid = oblique_grid((4, 5, 4))
    vectors = (0.3 * torch.rand(3, *grid.shape, dtype=torch.float64)).requires_grad_()
    points = inner(grid, 6)
    assert torch.autograd.gradcheck(lambda v: Displacement(v, grid)(points), (vectors,))
    assert torch.autograd.gradcheck(lambda v: Velocity(v, grid, 2)(points), (vectors,))


def test_neighbouring_rigids_merge():
    both = rigid().after(rigid((0, 0, 90)))
    assert isinstance(both, Rigid)
    assert isinstance(rigid().after(Displacement(waves(GRIDS["LPS"]), GRIDS["LPS"])), Chain)


@pytest.mark.parametrize("matrix", [np.diag([1, 1, 1.01, 1]), np.diag([-1.0, 1, 1, 1]), np.full((4, 4), np.nan)])
def test_only_rigid_matrices_are_rigid(matrix):
    with pytest.raises(ValueError, match="rigid"):
        Rigid(matrix)


def test_jacobian_of_a_rotation_is_that_rotation(grid):
    jacobian = fields.jacobian(rigid().displacement(grid, torch.float64), grid)
    assert torch.allclose(
        jacobian, torch.as_tensor(rigid().matrix[:3, :3].copy())[:, :, None, None, None].expand_as(jacobian), atol=1e-9
    )


def test_jacobian_is_per_mm_and_row_is_component():
    """u = (0.1 y, 0, 0.2 x) in mm: a voxel-unit or transposed derivative would not give this."""
    grid = oblique_grid()
    x, y, _ = grid.points(torch.float64)
    jacobian = fields.jacobian(torch.stack([0.1 * y, 0 * y, 0.2 * x]), grid)[..., 5, 5, 5]
    assert torch.allclose(jacobian, torch.tensor([[1, 0.1, 0], [0, 1, 0], [0.2, 0, 1]], dtype=torch.float64), atol=1e-9)


def test_gradient_agrees_with_numpy():
    grid = Grid((7, 6, 5), np.diag([0.7, 1.1, 3.0, 1]))
    values = torch.rand(2, *grid.shape, dtype=torch.float64)
    expected = np.stack(np.gradient(values.numpy(), *grid.spacing_mm, axis=(1, 2, 3)), 1)
    assert np.allclose(fields.gradient(values, grid).numpy(), expected, atol=1e-12)


def test_determinant_agrees_with_linalg():
    matrices = torch.rand(2, 3, 3, 3, 4, 5, dtype=torch.float64)
    expected = torch.linalg.det(matrices.permute(0, 3, 4, 5, 1, 2))
    assert torch.allclose(fields.determinant(matrices), expected, atol=1e-12)


def test_exponential_of_a_rotation_generator_is_the_rotation():
    grid = Grid((41, 41, 41), np.diag([1.0, 1, 1, 1]) + np.pad(np.full((3, 1), -20.0), ((0, 1), (3, 0))))
    generator = np.array([[0, -0.3, 0.1], [0.3, 0, -0.2], [-0.1, 0.2, 0]])
    from scipy.linalg import expm

    velocity = torch.einsum("ab,bijk->aijk", torch.as_tensor(generator), grid.points(torch.float64))
    points = torch.rand(3, 50, dtype=torch.float64) * 16 - 8
    assert torch.allclose(Velocity(velocity, grid, 8)(points), torch.as_tensor(expm(generator)) @ points, atol=0.02)


def test_inverse_of_a_steep_field_converges_where_fixed_point_steps_would_not():
    grid = Grid((40, 12, 12), np.eye(4))
    x = grid.points(torch.float64)[0]
    steep = torch.stack([0.4 * x + 5.5 * torch.sin(x / 5), 0 * x, 0 * x])  # slopes from -0.7 to 1.5
    back = Displacement(steep, grid).inverse()
    points = back.grid.points(torch.float64).flatten(1)
    assert (Displacement(steep, grid)(back(points)) - points).norm(dim=0).max() < 1e-3


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        Displacement(torch.zeros(3, 2, 2, 2), oblique_grid())


@pytest.mark.parametrize("name", list(GRIDS))
def test_the_determinant_taken_in_slabs_is_that_of_the_jacobian(name):
    grid = GRIDS[name]
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(3, *grid.shape, dtype=torch.float64, generator=generator)
    whole = fields.determinant(fields.jacobian(vectors, grid))
    assert torch.allclose(fields.jacobian_determinant(vectors, grid), whole, atol=1e-9)
    composed = fields.compose(vectors, 0.3 * vectors, grid)
    points = grid.points(torch.float64) + 0.3 * vectors
    by_hand = 0.3 * vectors + sample(vectors, grid, points.flatten(1)).unflatten(1, grid.shape)
    assert torch.allclose(composed, by_hand, atol=1e-9)
