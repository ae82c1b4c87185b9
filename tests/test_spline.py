import numpy as np
import pytest
import torch
from conftest import GRIDS
from scipy.interpolate import BSpline

from osteomorph.geometry import Grid
from osteomorph.regularity import bending, diffusion
from osteomorph.spline import Basis, Roughness, cubic_matrix


@pytest.mark.parametrize(("n", "step"), [(10, 3.0), (57, 6.5), (4, 20.0)])
def test_control_points_sum_to_one_and_reproduce_ramps(n, step):
    matrix = cubic_matrix(n, step)
    assert np.allclose(matrix.sum(1), 1)
    ramp = np.linalg.lstsq(matrix, np.arange(n, dtype=float), rcond=None)[0]
    assert np.allclose(matrix @ ramp, np.arange(n), atol=1e-8)


@pytest.mark.parametrize(("n", "step"), [(10, 3.0), (57, 6.5), (4, 20.0)])
def test_matrices_are_scipys_splines_and_their_derivatives(n, step):
    values = cubic_matrix(n, step)
    intervals = values.shape[1] - 3
    knots = (n - 1) / 2 - intervals * step / 2 + step * np.arange(-3, intervals + 4)
    spline = BSpline(knots, np.eye(values.shape[1]), 3)
    for order in range(3):
        there = spline(np.arange(n, dtype=float), nu=order)
        assert np.allclose(cubic_matrix(n, step, order), there, atol=1e-12)


def in_double(basis: Basis) -> Basis:
    return Basis(tuple(tuple(matrix.double() for matrix in axis) for axis in basis.derivatives))


def test_roughness_is_what_differences_on_a_fine_grid_come_to(grid):
    """Bending and diffusion of the sum, measured by finite differences on a grid of half a millimetre."""
    affine = grid.affine.copy()
    affine[:3, :3] = 0.5 * grid.direction
    near = Grid((70, 60, 64), affine)
    like = torch.zeros(1)
    one, other = Basis.on(near, 22.0, like), Basis.on(near, 13.0, like)
    a, b = torch.randn(one.shape), torch.randn(other.shape)
    vectors = one(a) + other(b)
    for order, measure in ((1, diffusion), (2, bending)):
        found = float(Roughness.of(other, order, [(one, a)])(b))
        assert found == pytest.approx(float(measure(vectors, near)), rel=0.03)


@pytest.mark.parametrize("order", [1, 2])
def test_roughness_has_an_exact_gradient(order):
    near = Grid((9, 7, 8), np.diag([1.0, 2.0, 1.5, 1.0]))
    one, other = (in_double(Basis.on(near, control, torch.zeros(1))) for control in (8.0, 5.0))
    roughness = Roughness.of(other, order, [(one, torch.randn(one.shape, dtype=torch.float64))])
    assert torch.autograd.gradcheck(roughness, torch.randn(other.shape, dtype=torch.float64, requires_grad=True))


def test_rows_are_part_of_the_whole():
    near = GRIDS["oblique"]
    basis = Basis.on(near, 9.0, torch.zeros(1))
    control = torch.randn(basis.shape)
    rows = (slice(1, None, 3), slice(0, None, 2), slice(2, 9, 4))
    assert torch.allclose(basis(control, rows), basis(control)[:, rows[0], rows[1], rows[2]], atol=1e-6)
