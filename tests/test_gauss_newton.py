"""Steps on blobs that move by a smooth field which is known, seen in another contrast."""

import pytest
import torch
from conftest import GRIDS, oblique_grid
from test_refine import blobs
from torch.nn.functional import avg_pool3d

from osteomorph.case import Case
from osteomorph.gauss_newton import SOLVED, _normal, _pooled, _Problem, newton_steps
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image
from osteomorph.plan import NewtonLevel
from osteomorph.spline import Basis, Roughness
from osteomorph.transforms import Displacement, Rigid


def cube(name: str = "oblique") -> Grid:
    """44 x 40 x 38 mm at 1 mm, along the axes of one of the grids."""
    affine = GRIDS[name].affine.copy()
    affine[:3, :3] /= GRIDS[name].spacing_mm
    return Grid((44, 40, 38), affine)


LEVEL = NewtonLevel(steps=3, spacing_mm=1.0, control_mm=14.0, bending=5.0)


def still(grid: Grid) -> Displacement:
    return Displacement(torch.zeros(3, *grid.shape), grid)


def pushed(grid: Grid, mm: tuple[float, float, float]) -> Displacement:
    """A bump of displacement about the grid's centre, in world mm."""
    away = grid.points() - torch.as_tensor(grid.centre_mm, dtype=torch.float32)[:, None, None, None]
    bump = torch.exp(-away.square().sum(0) / (2 * 14.0**2))
    return Displacement(torch.tensor(mm)[:, None, None, None] * bump, grid)


def pair(grid: Grid, mm: tuple[float, float, float]) -> tuple[Case, Displacement]:
    """moving(x + u(x)) = fixed(x), but for the contrast."""
    truth = pushed(grid, mm)
    moving = blobs(grid)
    seen = sample(moving.data, grid, (grid.points() + truth.vectors).flatten(1)).unflatten(1, grid.shape)
    return Case(Image((1 - 0.8 * seen).square(), grid), moving), truth


def middle(vectors: torch.Tensor) -> torch.Tensor:
    return vectors[:, 8:-8, 8:-8, 8:-8]


@pytest.mark.parametrize("name", list(GRIDS))
def test_steps_find_a_known_field_in_another_contrast_on_any_grid(name):
    grid = cube(name)
    case, truth = pair(grid, (1.5, -1.0, 0.8))
    found = newton_steps(case, Rigid.identity(), torch.ones(grid.shape), still(grid), [LEVEL])
    before = middle(truth.vectors).norm(dim=0).mean()
    after = (middle(found.vectors) - middle(truth.vectors)).norm(dim=0).mean()
    assert after < 0.45 * before


def test_more_steps_come_nearer_and_a_level_begins_where_the_last_one_ended():
    grid = cube()
    case, truth = pair(grid, (2.0, -1.5, 1.0))
    hold = torch.ones(grid.shape)
    off = []
    for levels in ([LEVEL.model_copy(update={"steps": 1})], [LEVEL], [LEVEL.model_copy(update={"spacing_mm": 2.0}), LEVEL]):
        found = newton_steps(case, Rigid.identity(), hold, still(grid), levels)
        assert found.grid.isclose(grid)
        off.append(float((middle(found.vectors) - middle(truth.vectors)).norm(dim=0).mean()))
    assert off[1] < off[0]
    assert off[2] < off[0]


def test_the_truth_is_left_where_it_is():
    grid = cube()
    case, truth = pair(grid, (1.5, -1.0, 0.8))
    found = newton_steps(case, Rigid.identity(), torch.ones(grid.shape), truth, [LEVEL])
    assert (middle(found.vectors) - middle(truth.vectors)).norm(dim=0).mean() < 0.2 * middle(truth.vectors).norm(dim=0).mean()


def test_what_is_held_has_no_say_and_what_a_mask_leaves_out_neither():
    grid = cube()
    case, _ = pair(grid, (1.5, -1.0, 0.8))
    nothing = newton_steps(case, Rigid.identity(), torch.zeros(grid.shape), still(grid), [LEVEL])
    assert nothing.vectors.abs().max() == 0
    none = Image(torch.zeros(1, *grid.shape), grid)
    for masked in (Case(case.fixed, case.moving, fixed_mask=none), Case(case.fixed, case.moving, moving_mask=none)):
        found = newton_steps(masked, Rigid.identity(), torch.ones(grid.shape), still(grid), [LEVEL])
        assert found.vectors.abs().max() == 0


def test_no_level_returns_the_guess():
    grid = oblique_grid()
    guess = still(grid)
    assert newton_steps(Case(blobs(grid), blobs(grid)), Rigid.identity(), torch.ones(grid.shape), guess, []) is guess


def test_the_problem_is_symmetric_and_its_solution_solves_it():
    generator = torch.Generator().manual_seed(3)
    grid = oblique_grid().resampled(2.0)
    one, other = (torch.rand(12, *grid.shape, generator=generator) for _ in range(2))
    normal, slope = _normal(one, other, torch.ones(grid.shape), torch.ones(grid.shape), grid)
    basis = Basis.on(grid, 14.0, normal)
    problem = _Problem(
        normal.double(), slope.double(), Basis(tuple(tuple(m.double() for m in d) for d in basis.derivatives)), 2.0
    )
    a, b = (torch.randn(basis.shape, dtype=torch.float64, generator=generator) for _ in range(2))
    assert (a * problem(b)).sum() == pytest.approx(float((b * problem(a)).sum()), rel=1e-9)
    assert (a * problem(a)).sum() > 0
    aim = problem.basis.transposed(problem.slope)
    assert (problem(problem.solved()) - aim).norm() < 1.01 * SOLVED * aim.norm()


@pytest.mark.parametrize("shape", [(44, 40, 38), (44, 40, 1)])
def test_a_problem_is_solved_where_half_of_it_says_nothing_and_an_axis_is_a_voxel_long(shape):
    grid = cube().cropped((slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])))
    wide = [n + 4 for n in shape]
    noise = [torch.rand(12, *wide, generator=torch.Generator().manual_seed(4 + n)) for n in range(2)]
    one, other = (avg_pool3d(part, 5, 1) for part in noise)
    seen = torch.zeros(shape)
    seen[: shape[0] // 2] = 1
    basis = Basis.on(grid, 12.0, seen)
    problem = _Problem(*_normal(one, other, seen, torch.ones(shape), grid), basis, 5.0)
    found, aim = problem.solved(), problem.basis.transposed(problem.slope)
    assert torch.isfinite(found).all()
    assert aim.norm() > 0
    assert (problem(found) - aim).norm() < 0.1 * aim.norm()


def test_slopes_and_products_are_those_of_a_linear_difference():
    grid = cube()
    ramp = torch.zeros(12, *grid.shape)
    ramp += 0.02 * torch.arange(grid.shape[0], dtype=torch.float32)[:, None, None]
    normal, slope = _normal(ramp + 0.01, ramp, torch.ones(grid.shape), torch.ones(grid.shape), grid)
    say = (0.02 / (0.02 + 0.01**2)) ** 2
    h = float(grid.spacing_mm[0])
    inner = (slice(2, -2),) * 3
    torch.testing.assert_close(slope[0][inner], torch.full_like(slope[0][inner], say * 0.01 * 0.02 / h), rtol=1e-4, atol=0)
    torch.testing.assert_close(normal[0][inner], torch.full_like(slope[0][inner], say * (0.02 / h) ** 2), rtol=1e-4, atol=0)
    assert slope[1:][(slice(None), *inner)].abs().max() == 0
    assert normal[1:][(slice(None), *inner)].abs().max() == 0


@pytest.mark.parametrize("shape", [(6, 7, 8), (5, 5, 5), (1, 4, 3)])
def test_pooling_keeps_sums_and_a_basis_means(shape):
    data = torch.rand(3, *shape)
    torch.testing.assert_close(_pooled(data).sum(), data.sum())
    grid = oblique_grid().resampled(2.0)
    basis = Basis.on(grid, 10.0, data)
    control = torch.randn(basis.shape)
    whole, halved = basis(control), basis.pooled()(control)
    torch.testing.assert_close(halved[:, 0, 0, 0], whole[:, :2, :2, :2].mean((1, 2, 3)), atol=1e-5, rtol=1e-4)
    vectors = torch.randn(whole.shape)
    torch.testing.assert_close((whole * vectors).sum(), (control * basis.transposed(vectors)).sum(), rtol=1e-3, atol=1e-2)
    stiff = Roughness.of(basis, 2)
    torch.testing.assert_close((control * stiff.stiffness(control)).sum(), stiff(control), rtol=1e-4, atol=1e-7)
