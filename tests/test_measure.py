"""Measures against values worked by hand and against MONAI."""

import numpy as np
import pytest
import torch
from conftest import GRIDS, oblique_grid
from scipy.spatial.transform import Rotation

from osteomorph import measure as m
from osteomorph.case import Case
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.transforms import Displacement, Rigid

UNIT = np.ones(3)


def box(shape, low, high):
    mask = torch.zeros(1, *shape, dtype=torch.bool)
    mask[0, low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
    return mask


def ball(grid, radius_mm, shift=(0, 0, 0)):
    centre = torch.as_tensor(grid.centre_mm + np.array(shift))[:, None, None, None]
    return ((grid.points(torch.float64) - centre).norm(dim=0) < radius_mm)[None]


def rigid(angles=(4, -3, 5), shift=(2.0, -1.0, 3.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return Rigid(matrix)


def test_dice_of_shifted_boxes():
    a, b = box((8, 8, 8), (1, 1, 1), (5, 5, 5)), box((8, 8, 8), (2, 1, 1), (6, 5, 5))
    assert m.dice(a, b) == pytest.approx(2 * 48 / 128)
    assert m.dice(a, a) == 1
    assert m.dice(a, ~a) == 0
    with pytest.raises(ValueError, match="empty"):
        m.dice(a & ~a, a & ~a)


def test_distances_of_two_voxels_are_in_mm():
    a, b = box((9, 9, 9), (2, 2, 2), (3, 3, 3)), box((9, 9, 9), (4, 5, 2), (5, 6, 3))
    spacing = np.array([0.7, 1.1, 3.0])
    expected = np.hypot(2 * 0.7, 3 * 1.1)
    for distances in m.surface_distances(a, b, spacing):
        np.testing.assert_allclose(distances, [expected])


def test_mean_surface_distance_pools_both_directions():
    """One voxel against a line of three that starts at it: 0 one way; 0, 1, 2 the other."""
    a, b = box((9, 9, 9), (2, 4, 4), (3, 5, 5)), box((9, 9, 9), (2, 4, 4), (5, 5, 5))
    assert m.mean_surface_distance(a, b, UNIT) == pytest.approx(3 / 4)
    assert m.hausdorff(a, b, UNIT, 100.0) == pytest.approx(2)
    assert m.hausdorff(a, b, UNIT) == pytest.approx(1.98)
    assert m.hausdorff(b, a, UNIT) == pytest.approx(1.98)


def test_surfaces_ignore_the_inside():
    a, b = box((12, 12, 12), (1, 1, 1), (11, 11, 11)), box((12, 12, 12), (3, 3, 3), (9, 9, 9))
    there, back = m.surface_distances(a, b, UNIT)
    assert len(there) == 10**3 - 8**3
    assert len(back) == 6**3 - 4**3
    np.testing.assert_allclose(back, 2)


def test_distances_of_an_empty_mask_are_refused():
    a = box((6, 6, 6), (1, 1, 1), (3, 3, 3))
    with pytest.raises(ValueError, match="not empty"):
        m.surface_distances(a, a & ~a, UNIT)


@pytest.mark.parametrize("shift", [(1.5, -1.0, 3.2), (0.0, 4.0, 0.0)])
def test_distances_are_those_of_monai(shift):
    metrics = pytest.importorskip("monai.metrics", reason="MONAI is an optional peer")
    grid = oblique_grid((30, 24, 14))
    a, b = ball(grid, 8.5), ball(grid, 7.0, shift)
    options = {"include_background": True, "spacing": grid.spacing_mm.tolist()}
    hausdorff = metrics.compute_hausdorff_distance(a[None].float(), b[None].float(), percentile=99, **options)
    mean = metrics.compute_average_surface_distance(a[None].float(), b[None].float(), symmetric=True, **options)
    assert m.hausdorff(a, b, grid.spacing_mm) == pytest.approx(float(hausdorff), abs=1e-4)
    assert m.mean_surface_distance(a, b, grid.spacing_mm) == pytest.approx(float(mean), abs=1e-4)


def test_determinant_of_a_linear_map_on_any_grid(grid):
    matrix = torch.tensor([[1.1, 0.2, 0.0], [0.0, 0.9, -0.1], [0.05, 0.0, 1.2]], dtype=torch.float64)
    points = grid.points(torch.float64)
    vectors = torch.einsum("ab,bijk->aijk", matrix, points) - points
    mean, sd = m.jacobian_statistics(vectors, grid, ball(grid, 6))
    assert mean == pytest.approx(float(torch.linalg.det(matrix)), abs=1e-9)
    assert sd == pytest.approx(0, abs=1e-9)


def test_determinant_in_slabs_is_that_of_the_whole():
    grid = Grid((75, 6, 7), np.diag([1.5, 1.0, 2.0, 1.0]))
    vectors = 0.4 * torch.randn(3, *grid.shape, dtype=torch.float64)
    mask = torch.rand(1, *grid.shape) > 0.6
    from osteomorph.fields import jacobian_determinant

    values = jacobian_determinant(vectors, grid)[mask[0]]
    mean, sd = m.jacobian_statistics(vectors, grid, mask)
    assert mean == pytest.approx(float(values.mean()), abs=1e-12)
    assert sd == pytest.approx(float(values.std(correction=0)), abs=1e-12)
    assert m.folding_percent(vectors, grid, mask) == pytest.approx(100 * float((values <= 0).double().mean()))
    assert 0 < m.folding_percent(vectors, grid, mask) < 100


def test_folding_counts_only_the_mask():
    grid = Grid((8, 8, 8), np.eye(4))
    points = grid.points(torch.float64)
    vectors = torch.zeros(3, 8, 8, 8, dtype=torch.float64)
    vectors[0] = torch.where(points[0] >= 4, -2 * (points[0] - 4), torch.zeros(()).double())  # reflected from index 4 on
    assert m.folding_percent(vectors, grid) == pytest.approx(100 * 4 / 8)  # at 4 itself (0 + -1) / 2 <= 0 counts
    assert m.folding_percent(vectors, grid, box((8, 8, 8), (0, 0, 0), (3, 8, 8))) == 0


def test_rigid_fit_finds_the_motion_and_what_is_left():
    points = torch.randn(3, 50, dtype=torch.float64) * 20
    motion = rigid()
    matrix, largest, rms = m.fit_rigid(points, motion(points))
    np.testing.assert_allclose(matrix, motion.matrix, atol=1e-9)
    assert largest < 1e-9
    assert rms < 1e-9


def test_rigid_fit_never_reflects():
    points = torch.randn(3, 40, dtype=torch.float64)
    mirrored = points * torch.tensor([[-1.0], [1.0], [1.0]], dtype=torch.float64)
    matrix, _, rms = m.fit_rigid(points, mirrored)
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
    assert rms > 0.3


def test_rigid_fit_of_a_stretch_leaves_the_stretch():
    """Points at -1, 0, 1 stretched by 1.3 about 0: 0.3 mm left at the ends, nothing in the middle."""
    points = torch.tensor([[-1.0, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    _, largest, rms = m.fit_rigid(points, points * 1.3)
    assert largest == pytest.approx(0.3)
    assert rms == pytest.approx(np.sqrt(2 * 0.09 / 3))


def test_rigidity_residual_of_a_rigid_field_is_0_and_of_a_bent_one_is_not(grid):
    points = grid.points(torch.float64)
    centre = torch.as_tensor(grid.centre_mm)[:, None, None, None]
    bent = torch.zeros_like(points)
    bent[2] = 0.01 * (points[0] - centre[0]) ** 2
    flat = points.flatten(1)
    assert m.rigidity_residual(rigid(), flat)[0] < 1e-9
    assert m.rigidity_residual(Displacement(bent, grid), flat)[0] > 0.05


def test_target_registration_error_of_a_shift():
    points = torch.randn(3, 10, dtype=torch.float64)
    shifted = rigid((0, 0, 0), (3.0, 4.0, 0.0))
    np.testing.assert_allclose(m.target_registration_error(shifted, Rigid.identity(), points), 5.0)


# -- a case -----------------------------------------------------------------------------------------------------------------
def two_bones(grid, motion):
    """Two balls in the fixed image; the moving image is a finer grid with the balls where the motion takes them."""
    moving_grid = Grid((50, 48, 52), np.diag([-1.0, -1.0, 1.0, 1.0])).moved(np.eye(4))
    affine = moving_grid.affine.copy()
    affine[:3, 3] = grid.centre_mm - affine[:3, :3] @ ((np.array(moving_grid.shape) - 1) / 2)
    moving_grid = Grid(moving_grid.shape, affine)

    def labels(on, points):
        data = torch.zeros(1, *on.shape, dtype=torch.int16)
        for label, shift in ((22, (0, 0, 5.5)), (23, (0, 0, -5.5))):
            centre = torch.as_tensor(grid.centre_mm + np.array(shift))[:, None]
            data[0][((points - centre).norm(dim=0) < 4.5).unflatten(0, on.shape)] = label
        return Labels(data, on, {22: "L3", 23: "L4"})

    fixed = labels(grid, grid.points(torch.float64).flatten(1))
    moving = labels(moving_grid, motion.inverse()(moving_grid.points(torch.float64).flatten(1)))
    images = [Image(torch.zeros(1, *on.shape), on) for on in (grid, moving_grid)]
    return Case(*images, fixed, moving)


@pytest.mark.parametrize("name", list(GRIDS))
def test_case_under_the_truth(name):
    grid, motion = GRIDS[name], rigid((3, -2, 2), (1.0, -1.0, 0.5))
    motion = Rigid(np.linalg.inv(_about(grid.centre_mm)) @ motion.matrix @ _about(grid.centre_mm))
    case = two_bones(grid, motion)
    body = Labels(torch.ones(1, *grid.shape, dtype=torch.int16), grid)
    result = m.measure(motion, case, motion, body)
    assert [row["name"] for row in result["bones"]] == ["L3", "L4"]
    assert result["tre_bone_max_mm"] < 1e-9
    assert result["tre_soft_max_mm"] < 1e-9
    assert result["folding_percent"] == 0
    assert result["dice_mean"] > 0.85
    assert result["det_mean"] == pytest.approx(1, abs=1e-5)
    assert max(row["rigidity_max_mm"] for row in result["bones"]) < 1e-9
    start = m.measure(Rigid.identity(), case, motion, body)
    assert start["dice_mean"] < result["dice_mean"]
    assert start["tre_bone_mean_mm"] == pytest.approx(1.5, abs=0.4)


def _about(centre):
    matrix = np.eye(4)
    matrix[:3, 3] = -centre
    return matrix


def test_what_is_unknown_has_no_key():
    grid = oblique_grid((24, 20, 12))
    case = two_bones(grid, Rigid.identity())
    bare = m.measure(rigid(), Case(case.fixed, case.moving))
    assert bare == {"bones": [], "folding_percent": 0.0}
    fixed_only = m.measure(rigid(), Case(case.fixed, case.moving, fixed_labels=case.fixed_labels))
    assert set(fixed_only["bones"][0]) == {"label", "name", "det_mean", "det_sd", "rigidity_max_mm", "rigidity_rms_mm"}
    moving_only = m.measure(Rigid.identity(), Case(case.fixed, case.moving, moving_labels=case.moving_labels), Rigid.identity())
    assert "dice" not in moving_only["bones"][0]
    assert moving_only["tre_bone_max_mm"] == 0
    assert "tre_soft_mean_mm" not in moving_only


def test_a_label_moved_out_of_view_scores_0_and_has_no_distance():
    grid = oblique_grid((24, 20, 12))
    far = rigid((0, 0, 0), (500.0, 0.0, 0.0))
    result = m.measure(far, two_bones(grid, Rigid.identity()))
    assert [row["dice"] for row in result["bones"]] == [0.0, 0.0]
    assert "hd99_mm" not in result["bones"][0]
    assert "hd99_mean_mm" not in result


def test_points_that_leave_the_moving_view_are_left_out():
    """The truth shifts by 28 mm along x, which takes only one half of a wide bone beyond the moving image."""
    grid = Grid((41, 9, 9), np.eye(4))
    labels = Labels(torch.ones(1, *grid.shape, dtype=torch.int16), grid)
    image = Image(torch.zeros(1, *grid.shape), grid)
    truth = rigid((0, 0, 0), (28.0, 0.0, 0.0))
    ramp = torch.zeros(3, *grid.shape, dtype=torch.float64)
    ramp[0] = torch.arange(41.0)[:, None, None]  # off by |x - 28|
    result = m.measure(Displacement(ramp, grid), Case(image, image, labels, labels), truth)
    assert result["bones"][0]["tre_max_mm"] == pytest.approx(28)
    assert result["bones"][0]["tre_mean_mm"] == pytest.approx(np.mean(28 - np.arange(13)))


def test_body_on_another_grid_is_refused():
    grid = oblique_grid((24, 20, 12))
    body = Labels(torch.ones(1, 4, 4, 4, dtype=torch.int16), Grid((4, 4, 4), np.eye(4)))
    with pytest.raises(ValueError, match="body"):
        m.measure(rigid(), two_bones(grid, Rigid.identity()), body=body)
