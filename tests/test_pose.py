"""Bone poses against motions that are known: a lopsided body of texture, seen in two contrasts on awkward grids."""

import numpy as np
import pytest
import torch
from conftest import axis_grid, oblique_grid
from scipy import ndimage

from osteomorph import pose
from osteomorph.case import Case
from osteomorph.distances import distance_maps
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.plan import PosePlan
from osteomorph.pose import SYSTEMATIC_MM, poses
from osteomorph.pose_features import Patch, Side, about, centroid, described, jacobian, patch, slopes, taken
from osteomorph.procrustes import procrustes
from osteomorph.transforms import Displacement, Rigid

SHAPE = (44, 40, 36)
VIEWS = {
    "RAS": axis_grid((1, 1, 1), SHAPE, (1.0, 1.0, 1.0), (-22, -20, -18)),
    "LAS": axis_grid((-1, 1, 1), SHAPE, (1.0, 1.0, 1.0), (22, -20, -18)),
    "LPS": axis_grid((-1, -1, 1), SHAPE, (1.0, 1.0, 1.0), (22, 20, -18)),
}
TURN = np.array([3.0, -4.0, 2.0])
SHIFT = np.array([1.5, -2.0, 1.0])
QUICK = PosePlan(spacings_mm=(2.0, 1.0), search_mm=0.0, points=5000)


def middle(grid: Grid) -> Grid:
    """The same grid about the origin."""
    affine = grid.affine.copy()
    affine[:3, 3] -= grid.centre_mm
    return Grid(grid.shape, affine)


VIEWS["oblique"] = middle(oblique_grid((56, 36, 14)))


def motion(turn_deg, shift_mm) -> Rigid:
    return Rigid(about(torch.zeros(3, dtype=torch.float64), np.concatenate([np.radians(turn_deg), shift_mm])))


def distance(points: np.ndarray, size: float) -> np.ndarray:
    """To a body with a short arm on either of two sides: no symmetry."""
    x, y, z = points
    trunk = np.sqrt(x**2 + (y / 1.3) ** 2 + (z / 0.8) ** 2) - 8.0 * size
    arm = np.sqrt((y + 4 * size) ** 2 + (z - 2 * size) ** 2 + np.maximum(0, np.abs(x - 7 * size) - 5 * size) ** 2) - 2.5 * size
    spine = np.sqrt(x**2 + (z + 3 * size) ** 2 + np.maximum(0, np.abs(y - 9 * size) - 4 * size) ** 2) - 2.0 * size
    return np.minimum(trunk, np.minimum(arm, spine))


def ball(points: np.ndarray, size: float) -> np.ndarray:
    return np.linalg.norm(points, axis=0) - 9.0 * size


def scan(grid: Grid, pose: Rigid, levels, noise: float, seed: int, body=distance, size: float = 1.0) -> tuple[Image, Labels]:
    """The body where its inverse pose takes a grid's points to it: outside, rim and core in three intensities."""
    points = pose.inverse()(grid.points(torch.float64).flatten(1)).numpy()
    depth = body(points, size).reshape(grid.shape)
    outside, rim, core = levels
    clean = outside + (rim - outside) / (1 + np.exp(2.5 * depth)) + (core - rim) / (1 + np.exp(2.5 * (depth + 2.5)))
    rng = np.random.default_rng(seed)
    grain = ndimage.gaussian_filter(rng.standard_normal(grid.shape), 0.6 / grid.spacing_mm)
    data = torch.as_tensor(clean + noise * grain / grain.std()).float()[None]
    return Image(data, grid), Labels(torch.as_tensor(depth < 0).to(torch.int16)[None], grid)


CT, MR = (0.3, 1.0, 0.6), (0.6, 0.05, 0.8)


def made(fixed: Grid, moving: Grid, pose: Rigid, noise=0.02, levels=(MR, CT), body=distance, size=1.0) -> Case:
    a, a_labels = scan(fixed, Rigid.identity(), levels[0], noise, 1, body, size)
    b, b_labels = scan(moving, pose, levels[1], noise, 2, body, size)
    return Case(a, b, a_labels, b_labels)


def error_mm(found: Rigid, truth: Rigid, labels: Labels) -> float:
    points = labels.grid.world(labels.data[0].nonzero().T.double())
    return float((found(points) - truth(points)).norm(dim=0).mean())


TRUTH = motion(TURN, SHIFT)


@pytest.mark.parametrize("name", VIEWS)
def test_known_pose_is_found_in_either_frame(name):
    case = made(VIEWS[name], VIEWS["LPS"], TRUTH)
    found = {frame: poses(case, {1: Rigid.identity()}, QUICK, [1], frame)[1] for frame in ("fixed", "moving")}
    for bone in found.values():
        assert error_mm(bone.pose, TRUTH, case.fixed_labels) < 0.2
        assert bone.determined
        assert 0 < bone.score < 1
    assert error_mm(found["fixed"].pose, found["moving"].pose, case.fixed_labels) < 0.2


def rod(points: np.ndarray, size: float) -> np.ndarray:
    """Along x, with a small fin: a turn about x is told least."""
    x, y, z = points
    shaft = np.sqrt(y**2 + z**2 + np.maximum(0, np.abs(x) - 9 * size) ** 2) - 4.5 * size
    fin = np.sqrt(x**2 + z**2 + np.maximum(0, np.abs(y - 4 * size) - 4 * size) ** 2) - 2.5 * size
    return np.minimum(shaft, fin)


@pytest.mark.parametrize("frame", ["fixed", "moving"])
def test_covariance_is_in_the_fixed_frame_whichever_labels_say_where_bone_is(frame):
    turned = motion([0.0, 0.0, 90.0], [0.0, 0.0, 0.0])
    case = made(VIEWS["RAS"], VIEWS["LPS"], turned, body=rod)
    variances = poses(case, {1: turned}, QUICK, [1], frame)[1].covariance.diagonal()[:3]
    assert variances[0] > 1.15 * variances[1]  # swapped in the other frame


def test_inverted_contrast_gives_the_same_pose():
    levels = (CT, tuple(1 - v for v in CT))
    case = made(VIEWS["RAS"], VIEWS["LPS"], TRUTH, levels=levels)
    assert error_mm(poses(case, {1: Rigid.identity()}, QUICK, [1], "moving")[1].pose, TRUTH, case.fixed_labels) < 0.2


def test_far_start_needs_the_search():
    case = made(VIEWS["RAS"], VIEWS["LPS"], motion([8.0, 6.0, -6.0], [7.0, 5.0, -4.0]))
    truth = motion([8.0, 6.0, -6.0], [7.0, 5.0, -4.0])
    plan = PosePlan(points=5000, search_mm=12.0)
    assert error_mm(poses(case, {1: Rigid.identity()}, plan, [1], "moving")[1].pose, truth, case.fixed_labels) < 0.3


def test_bone_that_is_found_from_its_start_is_not_searched_for(monkeypatch):
    searched = []
    monkeypatch.setattr(pose, "search", lambda *_: searched.append(1) or [])
    plan = PosePlan(spacings_mm=(2.0, 1.0), points=5000, search_mm=16.0)
    near = made(VIEWS["RAS"], VIEWS["LPS"], TRUTH)
    assert poses(near, {1: Rigid.identity()}, plan, [1], "moving")[1].determined
    assert not searched
    poses(near, {1: motion([0.0, 0.0, 0.0], [13.0, -12.0, 11.0])}, plan, [1], "moving")
    assert searched


def twins(shift_mm: float) -> tuple[Patch, Side, list[np.ndarray]]:
    """A bone with another of its shape 30 mm beside it, and a shift that takes it to within some mm of that one's place."""
    grid = axis_grid((1, 1, 1), (90, 40, 36), (1.0, 1.0, 1.0), (-30, -20, -18))
    points = grid.points(torch.float64).flatten(1).numpy()
    depth = np.minimum(distance(points, 1.0), distance(points - np.array([[30.0], [0.0], [0.0]]), 1.0)).reshape(grid.shape)
    image = Image(torch.as_tensor(1 / (1 + np.exp(2.5 * depth))).float()[None], grid)
    own = (distance(points, 1.0) < 0).reshape(grid.shape)
    maps = distance_maps(Labels(torch.as_tensor(own).to(torch.int16)[None], grid))
    here = patch(Side(image, None), maps[1], [], 4.0, 5000)
    assert here is not None
    return here, Side(image, None), [about(here.centre, np.array([0, 0, 0, 30.0 + shift_mm, 0, 0]))]


def test_a_neighbours_place_is_given_up_only_where_it_is_hopeless(monkeypatch):
    looks = []
    monkeypatch.setattr(pose, "described", lambda *given: looks.append(1) or described(*given))
    monkeypatch.setattr(pose, "RIVAL", 0.005)
    here, other, beside = twins(1.0)
    plan = PosePlan(spacings_mm=(1.0,), points=5000, extractions=3, iterations=1)
    best = pose._fit(here, other, Rigid.identity(), plan)
    first = pose._fit(here, other, Rigid(beside[0]), plan, hopeless=-1.0)
    assert first.score > best.score + pose.RIVAL  # it takes more than one look to be as good
    assert pose._has_rival(here, other, best, beside, plan, [], [])
    looks.clear()
    monkeypatch.setattr(pose, "FALLS", first.score - best.score - pose.RIVAL - 1e-6)
    assert not pose._has_rival(here, other, best, beside, plan, [], [])
    assert len(looks) == 1


def test_same_inputs_give_the_same_bits():
    case = made(VIEWS["RAS"], VIEWS["LPS"], TRUTH)
    one, other = (poses(case, {1: Rigid.identity()}, QUICK, [1], "moving")[1] for _ in range(2))
    assert np.array_equal(one.pose.matrix, other.pose.matrix)
    assert np.array_equal(one.covariance, other.covariance)


def test_jacobian_is_that_of_finite_differences():
    case = made(VIEWS["oblique"], VIEWS["RAS"], TRUTH)
    side = Side(case.fixed, None).at(1.0)
    smooth = ndimage.gaussian_filter(side.image.data[0].numpy(), 2.0)
    image = Image(torch.as_tensor(smooth)[None], side.image.grid)
    from osteomorph.distances import distance_maps
    from osteomorph.geometry import sample

    here = patch(Side(image, None), distance_maps(case.fixed_labels)[1], [], 4.0, 3000)
    features = torch.stack(
        [torch.as_tensor(ndimage.gaussian_filter(f.numpy(), 2.0)) for f in described(image, TRUTH, here.lattice)]
    )
    analytic = jacobian(slopes(features, here.lattice, here.index), here.offset)
    for k, size in enumerate([1e-2] * 3 + [0.2] * 3):
        step = np.eye(6)[k] * size
        ends = [sample(features, here.lattice, Rigid(about(here.centre, s * step))(here.points)) for s in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * size)
        assert float((numeric - analytic[:, k]).norm() / numeric.norm()) < 0.08


def test_centre_of_the_jacobian_is_the_centroid():
    case = made(VIEWS["oblique"], VIEWS["RAS"], TRUTH)
    from osteomorph.distances import distance_maps

    inside = case.fixed_labels.grid.world(case.fixed_labels.data[0].nonzero().T.double())
    assert torch.allclose(centroid(distance_maps(case.fixed_labels)[1]), inside.mean(1), atol=1e-6)


def test_taken_reads_the_points():
    data = torch.arange(2 * 4 * 5 * 6.0).reshape(2, 4, 5, 6)
    index = torch.tensor([[1, 2], [3, 4], [5, 0]])
    assert taken(data, index).tolist() == [[data[0, 1, 3, 5], data[0, 2, 4, 0]], [data[1, 1, 3, 5], data[1, 2, 4, 0]]]


def spread(noise: float, size: float) -> tuple[float, float]:
    case = made(VIEWS["RAS"], VIEWS["LPS"], TRUTH, noise=noise, size=size)
    found = poses(case, {1: TRUTH}, QUICK, [1], "fixed")[1]
    return found.rotation_sd_deg, float(np.sqrt(found.shift_sd_mm**2 - SYSTEMATIC_MM**2))


def test_covariance_grows_with_noise_and_with_a_smaller_bone():
    turn, shift = spread(0.02, 1.0)
    noisy = spread(0.1, 1.0)
    assert noisy[0] > 1.3 * turn
    assert noisy[1] > 1.3 * shift
    assert spread(0.02, 0.6)[0] > 1.3 * turn


def test_no_pose_is_surer_than_what_no_pair_of_images_tells():
    case = made(VIEWS["RAS"], VIEWS["RAS"], Rigid.identity(), noise=0.0)
    found = poses(case, {1: Rigid.identity()}, QUICK, [1], "fixed")[1]
    assert found.determined
    assert np.linalg.eigvalsh(found.covariance[3:, 3:])[0] >= SYSTEMATIC_MM**2 * (1 - 1e-6)
    assert np.linalg.eigvalsh(found.covariance[:3, :3])[0] > 0


def test_rotation_of_a_ball_is_not_determined():
    case = made(VIEWS["RAS"], VIEWS["LPS"], motion([0, 0, 0], SHIFT), body=ball)
    found = poses(case, {1: Rigid.identity()}, QUICK, [1], "fixed")[1]
    assert not found.determined
    assert np.linalg.norm(found.pose.matrix[:3, 3] - SHIFT) < 0.3
    assert np.radians(found.rotation_sd_deg) * 9.0 > 3 * found.shift_sd_mm


def test_bone_without_contrast_is_not_determined():
    case = made(VIEWS["RAS"], VIEWS["LPS"], TRUTH, noise=0.05, levels=(MR, (0.5, 0.5, 0.5)))
    assert not poses(case, {1: TRUTH}, QUICK, [1], "fixed")[1].determined


def test_flat_images_are_not_determined():
    case = made(VIEWS["RAS"], VIEWS["LPS"], TRUTH)
    case = Case(*(Image(torch.full_like(i.data, 0.5), i.grid) for i in (case.fixed, case.moving)), case.fixed_labels)
    found = poses(case, {1: TRUTH}, QUICK, [1], "fixed")[1]
    assert not found.determined
    assert found.pose is TRUTH


def test_bone_out_of_the_other_view_keeps_its_start():
    case = made(VIEWS["RAS"], VIEWS["LPS"], TRUTH)
    start = motion([0, 0, 0], [200.0, 0, 0])
    found = poses(case, {1: start}, QUICK, [1], "fixed")[1]
    assert not found.determined
    assert found.pose is start
    assert found.rotation_sd_deg == found.shift_sd_mm == found.score == float("inf")


def test_masked_out_bone_keeps_its_start():
    case = made(VIEWS["RAS"], VIEWS["LPS"], TRUTH)
    mask = Image(torch.zeros_like(case.moving.data), case.moving.grid)
    case = Case(case.fixed, case.moving, case.fixed_labels, case.moving_labels, moving_mask=mask)
    assert not poses(case, {1: TRUTH}, QUICK, [1], "fixed")[1].determined


@pytest.mark.parametrize(
    ("ids", "frame", "word"), [([1], "moving", "no moving labels"), ([7], "fixed", "label 7"), ([2], "fixed", "no start")]
)
def test_what_is_missing_is_said(ids, frame, word):
    case = made(VIEWS["RAS"], VIEWS["LPS"], TRUTH)
    data = case.fixed_labels.data.clone()
    data[0, :3, :3, :3] = 2
    case = Case(case.fixed, case.moving, Labels(data, case.fixed.grid))
    with pytest.raises(InputError, match=word):
        poses(case, {1: TRUTH, 7: TRUTH}, QUICK, ids, frame)


@pytest.mark.parametrize("frame", ["fixed", "moving"])
def test_procrustes_ignores_a_third_that_moves_otherwise(frame):
    case = made(VIEWS["oblique"], VIEWS["LPS"], TRUTH)
    vectors = TRUTH.displacement(case.fixed.grid.padded((8, 8, 4)), torch.float64)
    grid = case.fixed.grid.padded((8, 8, 4))
    far = grid.points(torch.float64)[0] > 5.0
    bent = torch.where(far, vectors + 6.0 * torch.tensor([0.0, 1.0, 0.0]).double()[:, None, None, None], vectors)
    labels = case.fixed_labels if frame == "fixed" else case.moving_labels
    field = Displacement(bent if frame == "fixed" else vectors, grid)
    assert error_mm(procrustes(field, labels, [1], frame)[1], TRUTH, case.fixed_labels) < (0.05 if frame == "fixed" else 0.02)


def test_procrustes_refuses_a_bone_of_three_voxels():
    data = torch.zeros(1, *SHAPE, dtype=torch.int16)
    data[0, 5, 5, 5:8] = 1
    with pytest.raises(InputError, match="fewer than four"):
        procrustes(TRUTH, Labels(data, VIEWS["RAS"]), [1], "fixed")


def test_progress_counts_bones():
    case = made(VIEWS["RAS"], VIEWS["LPS"], TRUTH)
    told = []
    poses(case, {1: TRUTH}, QUICK, [1], "fixed", lambda *step: told.append(step))
    assert told == [("pose", 0, 1), ("pose", 1, 1)]


@pytest.mark.parametrize(
    ("determined", "gain", "better", "taken_up"),
    [
        (True, 0.01, -1.0, True),  # told by the images, whatever it scores
        (False, 2 * pose.CLEAR, 2.0, True),
        (False, 2 * pose.CLEAR, 0.5, False),  # hardly better than what there was
        (False, 0.5 * pose.CLEAR, 2.0, False),  # no better than chance does
    ],
)
def test_another_start_counts_where_it_is_told_or_clearly_better(monkeypatch, determined, gain, better, taken_up) -> None:
    grid = Grid((12, 12, 12), np.eye(4))
    bone = torch.zeros(1, 12, 12, 12, dtype=torch.int16)
    bone[0, 3:9, 3:9, 3:9] = 1
    image, there = Image(torch.rand(1, 12, 12, 12), grid), np.eye(4)
    there[0, 3] = 5.0
    first, other = Rigid.identity(), Rigid(there)

    def fit(label, maps, levels, starts, plan, frame):
        again = starts[0] is other
        score = 0.5 - better * pose.AMBIGUOUS if again else 0.5
        return pose.BonePose(label, starts[0], starts[0], np.eye(6), again and determined, score, gain if again else 0.1)

    monkeypatch.setattr(pose, "_bone_pose", fit)
    case = Case(image, image, fixed_labels=Labels(bone, grid))
    found = poses(case, {1: first}, PosePlan(), [1], "fixed", None, lambda _: {1: [other]})
    assert (found[1].pose is other) == taken_up
