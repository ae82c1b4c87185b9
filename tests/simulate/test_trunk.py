"""The procedural trunk: bones that are like human ones and never touch, patients that differ, views that hold their bones."""

import json
from dataclasses import asdict, replace
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from osteomorph.simulate.anatomy import TISSUES, Look
from osteomorph.simulate.build import LEVELS, Build, draw_build
from osteomorph.simulate.trunk import Trunk

PALETTE = {name: Look(float(k)) for k, name in enumerate(TISSUES)}
FEMALE_TO_MALE_L3_CM3 = (35.0, 75.0)


def no_texture(points):
    return torch.zeros(4, points.shape[1])


def around(anatomy, label, count, margin=3.0):
    """Random points in and about a bone."""
    low, high = (torch.as_tensor(corner * anatomy.scale)[:, None] for corner in anatomy.bones[label].around)
    return low - margin + torch.rand(3, count, dtype=torch.float64) * (high - low + 2 * margin)


def volume_cm3(anatomy, label):
    points = around(anatomy, label, 60_000)
    box = float((points.amax(1) - points.amin(1)).prod())
    return float((anatomy.bone(label, points, 1.0) < 0).double().mean()) * box / 1000


def least_gap(anatomy, one, other, count=5_000):
    """Smallest sum of two bones' distances over points near both."""
    boxes = [anatomy.bones[label].around for label in (one, other)]
    low, high = np.maximum(boxes[0][0], boxes[1][0]) - 4, np.minimum(boxes[0][1], boxes[1][1]) + 4
    if (low >= high).any():
        return np.inf
    low, high = (torch.as_tensor(corner * anatomy.scale)[:, None] for corner in (low, high))
    points = low + torch.rand(3, count, dtype=torch.float64) * (high - low)
    return gap(anatomy.bone(one, points, 8.0), anatomy.bone(other, points, 8.0))


def gap(first, second):
    """Least sum of distances where both are small enough to be distances."""
    near = torch.maximum(first, second) < 6
    return float((first + second)[near].min()) if bool(near.any()) else np.inf


def slope(anatomy, label, points):
    step = 0.01
    shifts = torch.eye(3, dtype=torch.float64)[:, :, None] * step
    rise = [anatomy.bone(label, points + e, 14.0) - anatomy.bone(label, points - e, 14.0) for e in shifts]
    return torch.stack(rise).norm(dim=0) / (2 * step)


@pytest.fixture(scope="module")
def average():
    return Trunk(Build())


@pytest.mark.parametrize("seed", range(10))
def test_bones_never_touch(seed):
    anatomy = Trunk(draw_build(np.random.default_rng(seed)))
    for one, other in combinations(anatomy.bones, 2):
        assert least_gap(anatomy, one, other) > 2.0, (anatomy.names[one], anatomy.names[other])


def test_bones_never_touch_in_the_sickest_patient():
    worn = (0.9, 0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5)
    build = Build(
        wear=worn, discs=(0.6,) * LEVELS, spurs=(3.6,) * LEVELS, arthrosis=2.0, scoliosis_deg=9.0, screws=(22, 23), lumbar=6
    )
    anatomy = Trunk(build)
    for one, other in combinations(anatomy.bones, 2):
        assert least_gap(anatomy, one, other) > 2.0, (anatomy.names[one], anatomy.names[other])


@pytest.mark.parametrize("label", [34, 19, 23, 26, 32, 72])
def test_distance_to_bone_grows_by_a_millimetre_per_millimetre(average, label):
    points = around(average, label, 30_000, 10.0)
    points = points[:, average.bone(label, points, 10.0).abs() < 9]
    rise = slope(average, label, points)
    assert float(rise.median()) == pytest.approx(1.0, abs=0.05)
    assert float(((rise > 0.7) & (rise < 1.3)).double().mean()) > 0.85
    assert float(rise.max()) < 2.5


def test_far_from_a_bone_its_distance_is_far(average):
    points = torch.tensor([[0.0], [200.0], [0.0]])
    assert float(average.bone(23, points, 9.0)) > 50
    assert average.bone(23, points, 9.0).dtype == torch.float32
    assert average.bone(23, points.double(), 9.0).dtype == torch.float64


def test_left_mirrors_right(average):
    mirror = torch.tensor([[-1.0], [1.0], [1.0]], dtype=torch.float64)
    for left, right in ((31, 32), (33, 34), (52, 72)):
        points = around(average, right, 5000)
        torch.testing.assert_close(average.bone(right, points, 9.0), average.bone(left, points * mirror, 9.0))
        assert float(points[0][average.bone(right, points, 9.0) < 0].mean()) > 20  # right is +x


@pytest.mark.parametrize("seed", range(6))
def test_vertebrae_are_as_large_as_human_ones(seed):
    anatomy = Trunk(draw_build(np.random.default_rng(seed)))
    low, high = FEMALE_TO_MALE_L3_CM3
    assert low < volume_cm3(anatomy, 22) < high
    assert volume_cm3(anatomy, 17) < volume_cm3(anatomy, 20) < volume_cm3(anatomy, 23) * 1.05


def test_every_bone_has_a_joint_after_its_parent(average):
    seen = {None}
    for joint in average.joints:
        assert joint.parent in seen
        seen.add(joint.bone)
    assert seen - {None} == set(average.bones) == set(average.names)
    assert average.joints[0].bone == 26


def test_a_fused_vertebra_stays_with_the_one_below():
    turns = {joint.bone: joint.turn_deg for joint in Trunk(Build(fused=22)).joints}
    assert turns[22] == (0, 0, 0)
    assert turns[23] == (3.0, 2.1, 2.1)


@pytest.mark.parametrize(("lumbar", "labels"), [(4, (21, 22, 23)), (6, (22, 23, 24))])
def test_transitions_change_the_count(lumbar, labels):
    anatomy = Trunk(Build(lumbar=lumbar))
    assert sum(20 <= label <= 25 for label in anatomy.bones) == lumbar
    assert anatomy.views["lumbar"].labelled == labels
    assert next(iter(anatomy.views)) == "lumbar"


@pytest.mark.parametrize("seed", [None, 4, 7])
def test_views_hold_their_bones_whole(seed):
    anatomy = Trunk(Build() if seed is None else draw_build(np.random.default_rng(seed)))
    assert list(anatomy.views) == ["lumbar", "thorax", "pelvis"]
    for view in anatomy.views.values():
        centre, half = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (view.centre_mm, np.array(view.size_mm) / 2))
        for label in view.labelled:
            points = around(anatomy, label, 10_000)
            inside = points[:, anatomy.bone(label, points, 1.0) < 0]
            assert inside.shape[1] > 40
            assert bool(((inside - centre).abs() < half).all()), anatomy.names[label]


def test_the_usual_view_is_that_of_the_thesis(average):
    assert average.views["lumbar"].size_mm == (144.0, 136.0, 140.0)


@pytest.mark.parametrize("axis", np.eye(3).tolist())
def test_the_femoral_head_turns_in_its_socket(average, axis):
    joint = next(joint for joint in average.joints if joint.bone == 34)
    centre = torch.tensor(joint.centre_mm, dtype=torch.float64)[:, None]
    points = centre + (torch.rand(3, 60_000, dtype=torch.float64) - 0.5) * 110
    hip = average.bone(32, points, 8.0)
    for angle in (-10.0, 10.0):
        turn = torch.as_tensor(Rotation.from_rotvec(np.radians(angle) * np.array(axis)).as_matrix())
        femur = average.bone(34, turn.T @ (points - centre) + centre, 8.0)
        assert gap(hip, femur) > 1.5


def test_every_tissue_has_a_name_in_the_vocabulary(average):
    points = around(average, 23, 2000, 30.0).float()
    for anatomy in (average, Trunk(Build(spurs=(3.0,) * LEVELS, wear=(0.9,) * LEVELS, screws=(23,)))):
        layers = anatomy.tissues(points)
        assert {name for name, _ in layers} <= set(TISSUES)
        assert all(distance.shape == points[0].shape for _, distance in layers)


def test_only_screws_are_of_metal(average):
    def metal(anatomy, label):
        points = around(anatomy, label, 30_000).float()
        layers = [distance for name, distance in anatomy.tissues(points) if name == "metal"]
        return sum(int((distance < 0).sum()) for distance in layers), points, layers

    screwed = Trunk(Build(screws=(23,)))
    count, points, layers = metal(screwed, 23)
    assert count > 50
    assert bool((screwed.bone(23, points[:, layers[0] < 0], 1.0) < 0.01).all())  # and move with the bone
    assert metal(average, 23)[0] == 0


def test_paint_shows_the_topmost_tissue(average):
    body, canal, disc = average.bones[23].at(4, 2, 0), average.bones[23].at(0, -26.0, 0), average.bones[23].at(0, 2, -19)
    beyond = np.array([0.0, 400.0, 0.0])
    points = torch.as_tensor(np.stack([body, canal, disc, beyond], 1), dtype=torch.float32)
    shown = average.paint(points, [PALETTE], 0.5, no_texture)
    assert [TISSUES[int(value)] for value in shown[0].round()] == ["marrow", "csf", "nucleus", "air"]


def test_paint_agrees_with_tissues(average):
    points = around(average, 24, 1500, 25.0).float()
    over = torch.zeros_like(points[0])
    for name, distance in average.tissues(points):
        over = torch.where(distance < 0, float(TISSUES.index(name)), over)
    shown = average.paint(points, [PALETTE], 1e-3, no_texture)[0]
    assert float((shown.round() == over).double().mean()) > 0.99


def test_textures_add_what_the_look_asks(average):
    point = torch.as_tensor(average.bones[23].at(4, 2, 0), dtype=torch.float32)[:, None]
    look = dict(PALETTE) | {"marrow": Look(100.0, 1.0, 20.0, 300.0, 4000.0)}
    shown = average.paint(point, [look, PALETTE], 0.5, lambda p: torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    assert float(shown[0, 0]) == pytest.approx(100 + 1 + 40 + 900 + 16000)
    assert float(shown[1, 0]) == pytest.approx(TISSUES.index("marrow"))


def test_fat_gives_more_than_muscle_and_discs_less(average):
    hip_y, hip_z = average.bones[32].place[1:3, 3]
    disc = average.bones[23].at(0, 2, -19)
    buttock = np.array([75.0, hip_y - 60, hip_z - 10])
    skin = torch.tensor([[0.0] * 300, torch.linspace(-160, -60, 300).tolist(), [0.0] * 300], dtype=torch.float64)
    under = skin[:, (average.body(skin) + 8).abs().argmin()].numpy()
    values = average.stiffness(torch.as_tensor(np.stack([under, buttock, disc], 1)))
    assert values.dtype == torch.float64
    np.testing.assert_allclose(values.numpy(), [0.3, 1.0, 3.0], atol=0.05)


def test_the_body_holds_every_bone(average):
    for label in average.bones:
        points = around(average, label, 20_000)
        inside = points[:, average.bone(label, points, 1.0) < 0]
        assert float(average.body(inside).max()) < -2, average.names[label]


def test_scale_scales_everything():
    large = Trunk(Build(scale=1.05))
    points = around(large, 23, 3000)
    torch.testing.assert_close(large.bone(23, points, 9.0), Trunk(Build()).bone(23, points / 1.05, 9.0 / 1.05) * 1.05)
    assert large.joints[3].centre_mm == pytest.approx(tuple(1.05 * c for c in Trunk(Build()).joints[3].centre_mm))


def test_the_same_seed_draws_the_same_patient():
    one, same, other = (draw_build(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert one == same != other
    assert Build(**asdict(one)) == one
    assert json.loads(json.dumps(asdict(one)))["half_width"] == one.half_width


def test_the_population_has_its_variants():
    builds = [draw_build(np.random.default_rng(seed)) for seed in range(150)]
    assert {build.lumbar for build in builds} == {4, 5, 6}
    assert 2 < sum(build.fused is not None for build in builds) < 25
    assert 4 < sum(bool(build.screws) for build in builds) < 25
    assert all(set(build.screws) <= set(build.column) for build in builds)
    assert 8 < sum(abs(build.scoliosis_deg) > 4 for build in builds) < 50


def test_scoliosis_bends_the_column_sideways():
    def sway(build):
        return np.ptp([bone.place[0, 3] for label, bone in Trunk(build).bones.items() if label <= 26])

    assert sway(Build()) < 1e-9
    assert sway(replace(Build(), scoliosis_deg=8.0)) > 4
