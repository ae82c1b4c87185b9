"""From a rigid start that is far off to a field, and poses that are doubted."""

import numpy as np
import pytest
import torch
from conftest import axis_grid, oblique_grid
from scipy.spatial.transform import Rotation
from test_pose import CT, MR, distance, middle, motion
from test_refine import blobs

from osteomorph.case import Case
from osteomorph.exact_bones import dense_guess, refined_poses
from osteomorph.image import Image, Labels
from osteomorph.plan import DiscreteLevel, DiscretePlan, Plan, PosePlan
from osteomorph.pose import BonePose, poses
from osteomorph.pose_doubts import LARGEST_MM, collided, settled
from osteomorph.recipes import default
from osteomorph.resampling import resample
from osteomorph.transforms import Rigid
from osteomorph.wide_guess import wide_field

SEARCH = DiscretePlan(
    levels=(
        DiscreteLevel(spacing_mm=5.0, reach_mm=20.0, rigid=True),
        DiscreteLevel(spacing_mm=4.0, reach_mm=8.0),
        DiscreteLevel(spacing_mm=3.0, reach_mm=6.0),
    )
)
VIEWS = {
    "RAS": middle(axis_grid((1, 1, 1), (40, 36, 34), (2.0, 2.2, 2.4))),
    "LPS": middle(axis_grid((-1, -1, 1), (40, 36, 34), (2.0, 2.2, 2.4))),
    "oblique": middle(oblique_grid((40, 36, 22), (2.0, 2.2, 4.0), (10, -15, 20))),
}


# -- the search from a start ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", VIEWS)
def test_a_start_off_by_12_mm_and_12_degrees_is_made_good_on_any_grid(name):
    """Contrast inverted, the moving image in a world of its own; what is left of a global motion is small."""
    truth = motion((4.0, -8.0, 8.0), (20.0, -30.0, 10.0))
    moving = blobs(middle(oblique_grid((56, 50, 46), (2.0, 2.0, 2.2), (-8, 5, 12))).moved(truth.matrix), 5)
    fixed = resample(moving, truth, VIEWS[name])
    start = Rigid(truth.matrix @ motion(np.array([6.0, 8.0, -6.6]), np.array([7.0, -7.0, 7.0])).matrix)
    case = Case(fixed.with_data(1 - 0.6 * fixed.data), moving)
    found = start.after(wide_field(case, case, start, SEARCH))
    points = 0.7 * VIEWS[name].points(torch.float64).flatten(1)
    before, after = (float((t(points) - truth(points)).norm(dim=0).mean()) for t in (start, found))
    assert before > 12
    assert after < 1.5


def test_features_are_made_of_either_body_in_its_own_frame(monkeypatch):
    """Much air in both images, whose frames have nothing in common."""
    seen: list[Image] = []

    def described(image: Image, network: None = None) -> Image:
        seen.append(image)
        return image

    monkeypatch.setattr("osteomorph.found_bones.features_of", described)
    truth = motion((0.0, 0.0, 0.0), (400.0, -300.0, 200.0))
    grid = axis_grid((1, 1, 1), (70, 60, 50), (2.0, 2.0, 2.0))
    body = (slice(30, 50), slice(8, 28), slice(20, 44))
    data = torch.zeros(1, *grid.shape)
    data[(0, *body)] = blobs(grid).data[(0, *body)] + 0.5
    fixed, moving = Image(data, grid), Image(data, grid.moved(truth.matrix))
    level = DiscreteLevel(spacing_mm=6.0, reach_mm=6.0, features="network")
    wide_field(Case(fixed, moving), Case(fixed, moving), truth, DiscretePlan(levels=(level,)))
    for whole, part in zip((fixed, moving), sorted(seen, key=lambda image: abs(image.grid.centre_mm).sum()), strict=True):
        assert part.grid.voxels < 0.5 * whole.grid.voxels
        assert part.grid.contains(whole.grid.cropped(body).corners_mm).all()


def test_without_levels_there_is_nothing_to_search():
    image = blobs(VIEWS["RAS"])
    with pytest.raises(ValueError, match="at least one level"):
        wide_field(Case(image, image), Case(image, image), Rigid.identity(), DiscretePlan())


def test_progress_hears_every_level():
    image, heard = blobs(VIEWS["RAS"]), []
    plan = Plan(discrete=DiscretePlan(levels=(DiscreteLevel(spacing_mm=6.0, reach_mm=6.0),)))
    dense_guess(Case(image, image), Case(image, image), Rigid.identity(), plan, 0, lambda *told: heard.append(told))
    assert heard == [("guess", 0, 1), ("guess", 1, 1)]


# -- one of two alike -------------------------------------------------------------------------------------------------------
APART = 34.0
QUICK = PosePlan(spacings_mm=(2.0, 1.5), search_mm=0.0, points=3000)


def twins(differ: bool) -> tuple[Case, Rigid]:
    """Two bodies of one shape one above the other; with ``differ`` each has a mark of its own."""
    truth = motion((2.0, -1.0, 1.5), (1.0, -1.0, 0.5))
    out = []
    for grid, pose, levels, seed in (
        (middle(axis_grid((1, 1, 1), (40, 40, 60), (1.2, 1.2, 1.5))), Rigid.identity(), MR, 1),
        (middle(axis_grid((-1, -1, 1), (44, 44, 64), (1.2, 1.2, 1.5))), truth, CT, 2),
    ):
        points = pose.inverse()(grid.points(torch.float64).flatten(1)).numpy()
        data, labels = np.full(grid.shape, levels[0]), np.zeros(grid.shape, dtype=np.int16)
        for label, z in ((1, APART / 2), (2, -APART / 2)):
            local = points - np.array([[0.0], [0.0], [z]])
            depth = distance(local, 1.0).reshape(grid.shape)
            data += (levels[1] - levels[0]) / (1 + np.exp(2.5 * depth)) + (levels[2] - levels[1]) / (
                1 + np.exp(2.5 * (depth + 2.5))
            )
            labels[depth < 0] = label
            if differ:
                mark = np.linalg.norm(local - np.array([[4.0 if label == 1 else -5.0], [-2.0], [2.0]]), axis=0) - 3.0
                data += (levels[1] - levels[2]) / (1 + np.exp(2.5 * mark.reshape(grid.shape)))
        noise = np.random.default_rng(seed).standard_normal(grid.shape) * 0.01
        out.append((Image(torch.as_tensor(data + noise).float()[None], grid), Labels(torch.as_tensor(labels)[None], grid)))
    (fixed, _), (moving, labels) = out
    return Case(fixed, moving, None, labels), truth


def test_a_bone_in_the_place_of_its_neighbour_is_not_determined():
    """The fit there is good, and better where the bone belongs."""
    case, truth = twins(differ=True)
    wrong = Rigid(truth.matrix @ motion((0, 0, 0), (0.0, 0.0, APART)).matrix)
    right, mistaken = (poses(case, {1: start}, QUICK, [1], "moving")[1] for start in (truth, wrong))
    assert right.determined
    assert float(np.abs(right.pose.matrix[:3, 3] - truth.matrix[:3, 3]).max()) < 1.0
    assert mistaken.gain > 0.1
    assert not mistaken.determined


def test_bones_that_look_the_same_are_not_told_apart():
    case, truth = twins(differ=False)
    assert not poses(case, {1: truth}, QUICK, [1], "moving")[1].determined


# -- poses in doubt ---------------------------------------------------------------------------------------------------------
def bone(pose: Rigid, start: Rigid, sd: tuple[float, ...], determined: bool = False, gain: float = 0.3) -> BonePose:
    return BonePose(1, pose, start, np.diag(np.square(sd)), determined, 0.5, gain)


ROD = torch.stack([torch.linspace(-30, 30, 61, dtype=torch.float64), torch.zeros(61).double(), torch.zeros(61).double()]) + 5.0


def turned(axis_deg, shift_mm) -> Rigid:
    """About the rod's middle."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(axis_deg)).as_matrix()
    matrix[:3, 3] = np.full(3, 5.0) - matrix[:3, :3] @ np.full(3, 5.0) + shift_mm
    return Rigid(matrix)


FIRST = turned((1.0, 2.0, 0.0), (0.5, 0, 0))


def test_what_images_tell_is_taken_and_what_they_do_not_comes_from_the_first_pose():
    """A rod whose turn about itself no image tells."""
    first, images = turned((0, 0, 0), (0, 0, 0)), turned((20.0, 0.0, 3.0), (1.0, -2.0, 0.5))
    found = settled(bone(images, first, (50.0, 1e-4, 1e-4, 0.02, 0.02, 0.02)), ROD).pose
    expected = turned((0.0, 0.0, 3.0), (1.0, -2.0, 0.5))
    assert np.allclose(found.matrix, expected.matrix, atol=0.02)


def test_a_pose_no_further_than_bones_are_searched_for_is_believed_each_way_by_how_sure_it_is():
    """15 mm: what searches of a single bone reach along an axis is 16."""
    assert default().pose.search_mm == LARGEST_MM
    first, images = turned((0, 0, 0), (0, 0, 0)), turned((0, 0, 0), (15.0, 0, 0))
    found = settled(bone(images, first, (1e-4, 1e-4, 1e-4, 0.02, 0.02, 0.02)), ROD).pose
    assert np.allclose(found.matrix, images.matrix, atol=0.02)


@pytest.mark.parametrize(
    "doubted",
    [
        bone(turned((0, 0, 0), (2.0, 0, 0)), FIRST, (0.01,) * 6, gain=0.05),
        bone(turned((0, 0, 0), (2.0, 0, 0)), FIRST, (np.inf,) * 6),
        bone(turned((0, 0, 0), (25.0, 0, 0)), FIRST, (0.01,) * 6),
    ],
    ids=["no better than chance", "not seen", "far away"],
)
def test_the_first_pose_is_kept_where_images_are_not_believed(doubted):
    assert np.array_equal(settled(doubted, ROD).pose.matrix, FIRST.matrix)


def blocks() -> Labels:
    grid = middle(axis_grid((1, -1, 1), (30, 30, 50), (1.0, 1.0, 1.0)))
    z = grid.points()[2]
    data = torch.where(z > 5, 1, torch.where(z < -5, 2, 0)).to(torch.int16)
    return Labels(data[None], grid)


def test_bones_in_each_other_are_named():
    labels = blocks()
    points = {k: labels.grid.world((labels.data[0] == k).nonzero().T.double()) for k in (1, 2)}
    still, away = (bone(turned((0, 0, 0), (0, 0, z)), FIRST, (0.1,) * 6, True) for z in (0.0, 15.0))
    assert collided({1: still, 2: still}, labels, points) == set()
    points[1] = away.pose.inverse()(points[1])
    assert collided({1: away, 2: still}, labels, points) == {1, 2}


def test_a_bone_lost_at_first_is_found_from_its_neighbour():
    case, truth = twins(differ=True)
    far = Rigid(truth.matrix @ motion((0, 25.0, 0), (14.0, 9.0, 0.0)).matrix)
    plan = Plan(pose=QUICK)
    alone = poses(case, {1: far}, QUICK, [1], "moving")[1]
    assert not alone.determined
    found = refined_poses(case, {1: far, 2: truth}, plan, {1: "moving", 2: "moving"}, None)
    assert found[1].determined
    assert float(np.abs(found[1].pose.matrix - truth.matrix).max()) < 1.0
