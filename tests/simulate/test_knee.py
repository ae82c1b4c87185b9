"""The second family of bones keeps the same promises."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from osteomorph.simulate.anatomy import TISSUES, Look
from osteomorph.simulate.knee import Knee, KneeBuild, draw_knee_build

PALETTE = {name: Look(float(k)) for k, name in enumerate(TISSUES)}


def cube(count=60_000):
    return (torch.rand(3, count, dtype=torch.float64) - 0.5) * torch.tensor([[130.0], [130.0], [150.0]])


@pytest.fixture(scope="module")
def average():
    return Knee(KneeBuild())


@pytest.mark.parametrize("seed", range(10))
def test_bones_never_touch(seed):
    anatomy, points = Knee(draw_knee_build(np.random.default_rng(seed))), cube()
    distances = {label: anatomy.bone(label, points, 8.0) for label in anatomy.bones}
    for one, other in combinations(distances, 2):
        assert float((distances[one] + distances[other]).min()) > 1.8, (anatomy.names[one], anatomy.names[other])


@pytest.mark.parametrize("label", [34, 81, 82, 83])
def test_distance_to_bone_grows_by_a_millimetre_per_millimetre(average, label):
    points, step = cube(), 0.01
    points = points[:, average.bone(label, points, 10.0).abs() < 9]
    shifts = torch.eye(3, dtype=torch.float64)[:, :, None] * step
    rise = torch.stack([average.bone(label, points + e, 14.0) - average.bone(label, points - e, 14.0) for e in shifts])
    rise = rise.norm(dim=0) / (2 * step)
    assert float(rise.median()) == pytest.approx(1.0, abs=0.08)
    assert float(((rise > 0.7) & (rise < 1.3)).double().mean()) > 0.93


def test_a_left_knee_mirrors_a_right_one(average):
    left, points = Knee(KneeBuild(side=-1)), cube(5000)
    mirror = torch.tensor([[-1.0], [1.0], [1.0]], dtype=torch.float64)
    assert left.names[33] == "femur_left"
    for one, other in ((33, 34), (81, 81), (82, 82), (83, 83)):
        mirrored, distance = left.bone(one, points * mirror, 9.0), average.bone(other, points, 9.0)
        torch.testing.assert_close(mirrored.clamp(max=7), distance.clamp(max=7))
    fibula = points[:, average.bone(82, points, 1.0) < 0]
    assert float(fibula[0].min()) > 0  # on the outer side


def test_every_bone_has_a_joint_after_its_parent(average):
    seen = {None}
    for joint in average.joints:
        assert joint.parent in seen
        seen.add(joint.bone)
    assert seen - {None} == set(average.bones) == set(average.names)


@pytest.mark.parametrize("seed", range(4))
def test_the_view_holds_its_bones_whole(seed):
    anatomy = Knee(draw_knee_build(np.random.default_rng(seed)))
    view = anatomy.views["knee"]
    assert len(view.labelled) == 4
    half = torch.tensor(view.size_mm, dtype=torch.float64)[:, None] / 2
    points = cube() * 1.3
    for label in view.labelled:
        inside = points[:, anatomy.bone(label, points, 1.0) < 0]
        assert inside.shape[1] > 30
        assert bool((inside.abs() < half).all())


@pytest.mark.parametrize("angle", [-10.0, 20.0])
def test_the_knee_bends_without_touching(average, angle):
    joint = next(joint for joint in average.joints if joint.bone == 34)
    centre, points = torch.tensor(joint.centre_mm, dtype=torch.float64)[:, None], cube()
    turn = torch.as_tensor(Rotation.from_euler("x", angle, degrees=True).as_matrix())
    femur = average.bone(34, turn.T @ (points - centre) + centre, 8.0)
    tibia = average.bone(81, points, 8.0)
    near = torch.maximum(femur, tibia) < 6
    assert float((femur + tibia)[near].min()) > 1.5


def test_tissues_are_those_of_a_knee(average):
    points = cube(20_000).float()
    layers = average.tissues(points)
    seen = {name for name, distance in layers if bool((distance < 0).any())}
    assert seen <= set(TISSUES)
    assert seen >= {"cartilage", "ligament", "fluid", "muscle", "fat", "skin", "marrow", "cortex", "vessel"}
    shown = average.paint(points, [PALETTE], 1.0, lambda p: torch.zeros(4, p.shape[1]))
    assert shown.shape == (1, 20_000)


def test_the_body_holds_every_bone(average):
    points = cube()
    for label in average.bones:
        assert float(average.body(points[:, average.bone(label, points, 1.0) < 0]).max()) < -1, average.names[label]


def test_the_population_has_both_sides_and_worn_knees():
    builds = [draw_knee_build(np.random.default_rng(seed)) for seed in range(60)]
    assert {build.side for build in builds} == {-1, 1}
    assert 5 < sum(build.spurs > 1 for build in builds) < 55
    assert builds[0] == draw_knee_build(np.random.default_rng(0))
