"""Regularisers against fields whose derivatives are known, on every grid."""

import numpy as np
import pytest
import torch
from conftest import GRIDS, oblique_grid
from scipy.spatial.transform import Rotation

from osteomorph import regularity
from osteomorph.geometry import Grid
from osteomorph.regularity import bending, dense_rigidity_parts, diffusion, rigidity_parts

RNG = np.random.default_rng(3)


def centred(grid: Grid) -> torch.Tensor:
    return grid.points(torch.float64) - torch.as_tensor(grid.centre_mm)[:, None, None, None]


def affine_field(grid: Grid, matrix: np.ndarray) -> torch.Tensor:
    return torch.einsum("ab,bijk->aijk", torch.as_tensor(matrix), centred(grid))


def quadratic_field(grid: Grid, hessians: np.ndarray) -> torch.Tensor:
    x = centred(grid)
    return torch.einsum("abc,bijk,cijk->aijk", torch.as_tensor(hessians), x, x) / 2


def rotation(angles=(20.0, -15, 30)) -> np.ndarray:
    return Rotation.from_euler("xyz", angles, degrees=True).as_matrix()


def waves(grid: Grid, length_mm: float = 8.0) -> torch.Tensor:
    x, y, z = centred(grid) / length_mm
    return torch.stack([torch.sin(y + 0.4 * z), torch.cos(z + 0.3) * torch.sin(x), torch.sin(x - 0.2 * y)])


def box(grid: Grid, margin: int = 2) -> torch.Tensor:
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[margin:-margin, margin:-margin, margin:-margin] = True
    return mask


def everywhere(grid: Grid) -> torch.Tensor:
    return torch.ones(grid.shape, dtype=torch.bool)


# -- known values -----------------------------------------------------------------------------------------------------
def test_a_shear_of_five_percent_has_diffusion_0_0025(grid):
    shear = np.zeros((3, 3))
    shear[0, 2] = 0.05
    assert diffusion(affine_field(grid, shear), grid).item() == pytest.approx(0.0025, rel=1e-9)


def test_diffusion_of_an_affine_field_is_the_squared_norm_of_its_matrix(grid):
    matrix = RNG.normal(size=(3, 3)) / 10
    field = affine_field(grid, matrix)
    weight = torch.rand(grid.shape, dtype=torch.float64)
    assert diffusion(field, grid).item() == pytest.approx((matrix**2).sum(), rel=1e-9)
    assert diffusion(field, grid, weight).item() == pytest.approx((matrix**2).sum(), rel=1e-9)


def test_a_translation_is_free_to_the_last_bit(grid):
    field = torch.full((3, *grid.shape), 31.3)
    values = [diffusion(field, grid), bending(field, grid), rigidity_parts(field, grid, everywhere(grid)).total]
    assert [value.item() for value in values] == [0, 0, 0]


def test_bending_of_a_quadratic_field_is_the_squared_norm_of_its_hessian(grid):
    hessians = RNG.normal(size=(3, 3, 3)) / 50
    hessians += hessians.swapaxes(1, 2)
    field = quadratic_field(grid, hessians)
    weight = torch.rand(grid.shape, dtype=torch.float64)
    assert bending(field, grid).item() == pytest.approx((hessians**2).sum(), rel=1e-9)
    assert bending(field, grid, weight).item() == pytest.approx((hessians**2).sum(), rel=1e-9)
    parts = rigidity_parts(field, grid, box(grid))
    assert parts.bending.item() == pytest.approx((hessians**2).sum(), rel=1e-9)


def test_bending_of_an_affine_field_is_zero(grid):
    assert bending(affine_field(grid, RNG.normal(size=(3, 3))), grid).item() < 1e-24


@pytest.mark.parametrize("parts_of", [rigidity_parts, dense_rigidity_parts])
def test_a_rotation_has_no_rigidity_penalty(grid, parts_of):
    field = affine_field(grid, rotation() - np.eye(3)) + 12.0
    assert max(part.item() for part in parts_of(field, grid, everywhere(grid))) < 1e-22
    assert parts_of(field.float(), grid, everywhere(grid)).total.item() < 1e-9


@pytest.mark.parametrize("parts_of", [rigidity_parts, dense_rigidity_parts])
def test_rigidity_of_an_affine_map_by_numpy(grid, parts_of):
    jacobian = rotation() @ (np.eye(3) + RNG.normal(size=(3, 3)) / 10)
    parts = parts_of(affine_field(grid, jacobian - np.eye(3)), grid, box(grid))
    excess = jacobian @ jacobian.T - np.eye(3)
    assert parts.bending.item() < 1e-22
    assert parts.orthonormality.item() == pytest.approx((excess**2).sum(), rel=1e-9)
    assert parts.determinant.item() == pytest.approx((np.linalg.det(jacobian) - 1) ** 2, rel=1e-9)
    assert parts.total.item() == pytest.approx(sum(part.item() for part in parts), rel=1e-12)


def test_a_reflection_is_orthonormal_but_not_rigid(grid):
    parts = rigidity_parts(affine_field(grid, np.diag([-2.0, 0, 0])), grid, box(grid))
    assert parts.orthonormality.item() < 1e-20
    assert parts.determinant.item() == pytest.approx(4)


def test_rigidity_of_any_field_voxel_by_voxel():
    grid = oblique_grid((6, 5, 7))
    field, mask = torch.randn(3, 6, 5, 7, dtype=torch.float64), torch.rand(6, 5, 7) < 0.5
    h, u = grid.spacing_mm, field.numpy()
    expected, count = np.zeros(3), 0
    for voxel in np.argwhere(mask.numpy()):
        if (voxel == 0).any() or (voxel == np.array(grid.shape) - 1).any():
            continue

        def at(*step, voxel=voxel):
            return u[(slice(None), *(voxel + step))]

        unit = np.eye(3, dtype=int)
        first = np.stack([(at(*e) - at(*-e)) / (2 * h[d]) for d, e in enumerate(unit)], 1)
        jacobian = np.eye(3) + first @ np.linalg.inv(grid.direction)
        hessian = np.zeros((3, 3, 3))
        for b in range(3):
            for c in range(3):
                if b == c:
                    hessian[:, b, c] = (at(*unit[b]) - 2 * at(0, 0, 0) + at(*-unit[b])) / h[b] ** 2
                else:
                    same = at(*(unit[b] + unit[c])) + at(*-(unit[b] + unit[c]))
                    cross = at(*(unit[b] - unit[c])) + at(*(unit[c] - unit[b]))
                    hessian[:, b, c] = (same - cross) / (4 * h[b] * h[c])
        excess = jacobian @ jacobian.T - np.eye(3)
        expected += [(hessian**2).sum(), (excess**2).sum(), (np.linalg.det(jacobian) - 1) ** 2]
        count += 1
    for found in (rigidity_parts(field, grid, mask), dense_rigidity_parts(field, grid, mask)):
        np.testing.assert_allclose([part.item() for part in found], expected / count, rtol=1e-10)


# -- where it is looked at --------------------------------------------------------------------------------------------
def test_sparse_is_dense(grid):
    field = (0.3 * torch.randn(3, *grid.shape, dtype=torch.float64)).requires_grad_()
    mask = torch.rand(grid.shape) < 0.1
    for sparse, dense in zip(rigidity_parts(field, grid, mask), dense_rigidity_parts(field, grid, mask), strict=True):
        assert sparse.item() == pytest.approx(dense.item(), rel=1e-12)
        a, b = (torch.autograd.grad(value, field, retain_graph=True)[0] for value in (sparse, dense))
        assert torch.allclose(a, b, atol=1e-12)
        assert a.abs().max() > 0


def test_no_bone_no_penalty(grid):
    field = torch.randn(3, *grid.shape, requires_grad=True)
    border = everywhere(grid) ^ box(grid, 1)
    for mask in (torch.zeros(grid.shape, dtype=torch.bool), border):
        for parts in (rigidity_parts(field, grid, mask), dense_rigidity_parts(field, grid, mask)):
            assert [part.item() for part in parts] == [0, 0, 0]


def test_mask_is_crop(grid):
    field, margin = waves(grid), (3, 2, 2)
    inside = tuple(slice(m, -m) for m in margin)
    crop, small = field[(slice(None), *inside)], grid.padded(tuple(-m for m in margin))
    whole = torch.zeros(grid.shape, dtype=torch.float64)
    whole[inside] = 1
    inner = torch.zeros_like(whole)
    inner[tuple(slice(m + 1, -m - 1) for m in margin)] = 1
    assert diffusion(field, grid, whole).item() == pytest.approx(diffusion(crop, small).item(), rel=1e-12)
    assert bending(field, grid, inner).item() == pytest.approx(bending(crop, small).item(), rel=1e-12)
    masked, cropped = rigidity_parts(field, grid, inner > 0), rigidity_parts(crop, small, everywhere(small))
    np.testing.assert_allclose([p.item() for p in masked], [p.item() for p in cropped], rtol=1e-12)
    assert diffusion(field, grid, whole) != diffusion(field, grid)


def test_a_grid_twice_as_fine_changes_little():
    values = []
    for half in (1, 2):
        grid = oblique_grid((40 * half, 32 * half, 20 * half), np.array([0.7, 1.1, 1.9]) / half)
        field = waves(grid)
        parts = rigidity_parts(0.3 * field, grid, (centred(grid).norm(dim=0) < 9))
        values.append([diffusion(field, grid).item(), bending(field, grid).item(), *(part.item() for part in parts)])
    np.testing.assert_allclose(values[1], values[0], rtol=0.08)


def test_rotating_the_world_changes_nothing(grid):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(), (5, -60, 20)
    field, turned = waves(grid), grid.moved(matrix)
    carried = torch.einsum("ab,bijk->aijk", torch.as_tensor(rotation()), field)
    assert diffusion(carried, turned).item() == pytest.approx(diffusion(field, grid).item(), rel=1e-9)
    assert bending(carried, turned).item() == pytest.approx(bending(field, grid).item(), rel=1e-9)
    a, b = rigidity_parts(field, grid, box(grid)), rigidity_parts(carried, turned, box(grid))
    np.testing.assert_allclose([p.item() for p in b], [p.item() for p in a], rtol=1e-9)


def test_batch_is_each_alone():
    grid = oblique_grid((7, 6, 5))
    field = torch.randn(2, 2, 3, 7, 6, 5, dtype=torch.float64)
    weight = torch.rand(7, 6, 5, dtype=torch.float64)
    for energy in (diffusion, bending):
        together = energy(field, grid, weight)
        assert together.shape == (2, 2)
        for where in np.ndindex(2, 2):
            assert energy(field[where], grid, weight).item() == together[where].item()


def test_thin_axes_are_left_out():
    for shape in ((6, 5, 1), (6, 5, 2)):
        grid = oblique_grid(shape)
        slopes = np.diag([0.1, 0.2, 0.0]) @ np.linalg.inv(grid.direction)
        hessian = np.zeros((3, 3, 3))
        hessian[0] = 0.02 * np.outer(grid.direction[:, 0], grid.direction[:, 1])
        hessian[0] += hessian[0].T
        assert diffusion(affine_field(grid, slopes), grid).item() == pytest.approx(0.05, rel=1e-9)
        assert bending(quadratic_field(grid, hessian), grid).item() == pytest.approx((hessian**2).sum(), rel=1e-9)
        assert rigidity_parts(torch.randn(3, *shape), grid, everywhere(grid)).total.item() == 0
    assert bending(torch.randn(3, 2, 1, 2), oblique_grid((2, 1, 2))).item() == 0


def test_blocks_do_not_show(monkeypatch):
    grid = oblique_grid((9, 8, 7))
    field = torch.randn(3, 9, 8, 7, dtype=torch.float64, requires_grad=True)
    mask, weight = torch.rand(9, 8, 7) < 0.6, torch.rand(9, 8, 7, dtype=torch.float64)
    found = []
    for block in (60, 1 << 15):
        monkeypatch.setattr(regularity, "BLOCK", block)
        for value in (
            diffusion(field, grid),
            bending(field, grid, weight),
            rigidity_parts(field, grid, mask).total,
        ):
            found.append((value.item(), torch.autograd.grad(value, field)[0]))
    for (small, a), (large, b) in zip(found[:3], found[3:], strict=True):
        assert small == pytest.approx(large, rel=1e-12)
        assert torch.allclose(a, b, atol=1e-12)


# -- gradients --------------------------------------------------------------------------------------------------------
SMALL = oblique_grid((3, 4, 4))
WEIGHT = torch.linspace(0.1, 1, 48, dtype=torch.float64).reshape(SMALL.shape)
ENERGIES = {
    "diffusion": lambda v: diffusion(v, SMALL),
    "diffusion, weighted": lambda v: diffusion(v, SMALL, WEIGHT),
    "bending": lambda v: bending(v, SMALL),
    "bending, weighted": lambda v: bending(v, SMALL, WEIGHT),
    "rigidity: bending": lambda v: rigidity_parts(v, SMALL, WEIGHT > 0.3).bending,
    "rigidity: orthonormality": lambda v: rigidity_parts(v, SMALL, WEIGHT > 0.3).orthonormality,
    "rigidity: determinant": lambda v: rigidity_parts(v, SMALL, WEIGHT > 0.3).determinant,
    "rigidity": lambda v: rigidity_parts(v, SMALL, WEIGHT > 0.3).total,
    "rigidity, dense": lambda v: dense_rigidity_parts(v, SMALL, WEIGHT > 0.3).total,
}


@pytest.mark.parametrize("energy", list(ENERGIES))
def test_gradient_is_exact(energy):
    field = torch.randn(3, *SMALL.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ENERGIES[energy], field)


@pytest.mark.parametrize("energy", [diffusion, bending])
def test_gradient_is_exact_across_a_batch(energy):
    field = torch.randn(2, 3, *SMALL.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: energy(v, SMALL), field)


def test_a_field_in_another_memory_order_gives_the_same():
    grid = GRIDS["oblique"]
    field, mask = torch.randn(3, *grid.shape, dtype=torch.float64), box(grid)
    turned = field.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    for energy in (
        lambda v: diffusion(v, grid),
        lambda v: bending(v, grid),
        lambda v: rigidity_parts(v, grid, mask).total,
    ):
        a, b = field.clone().requires_grad_(), turned.clone(memory_format=torch.preserve_format).requires_grad_()
        assert energy(a).item() == pytest.approx(energy(b).item(), rel=1e-12)
        energy(a).backward()
        energy(b).backward()
        assert torch.allclose(a.grad, b.grad, atol=1e-12)
