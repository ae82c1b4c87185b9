"""Starts that neighbours suggest: which bones get some, and that one of them is near to a bone that turned at its joint."""

from typing import Literal

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from osteomorph.joint_starts import other_starts, turned
from osteomorph.pose import BonePose
from osteomorph.transforms import Rigid

Frame = Literal["fixed", "moving"]

HIP, FEMUR, FAR = 1, 2, 3
CENTRE = np.array([80.0, 10.0, -150.0])


def rod(x_mm: float, top_mm: float) -> torch.Tensor:
    z = torch.linspace(top_mm, top_mm - 100.0, 41, dtype=torch.float64)
    return torch.stack([torch.full_like(z, x_mm), torch.full_like(z, 10.0), z])


POINTS = {HIP: rod(80.0, -45.0), FEMUR: rod(80.0, -150.0), FAR: rod(-80.0, -150.0)}


def found(label: int, determined: bool, gain: float, pose: Rigid | None = None) -> BonePose:
    pose = moved((2.0, -4.0, 1.0), (3.0, 5.0, -2.0)) if pose is None else pose
    return BonePose(label, pose, pose, 1e-4 * np.eye(6), determined, 0.6, gain)


def moved(turn_deg: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> Rigid:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(turn_deg, degrees=True).as_matrix()
    matrix[:3, 3] = shift_mm
    return Rigid(matrix)


def about_joint(turn_deg: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(turn_deg, degrees=True).as_matrix()
    matrix[:3, 3] = CENTRE - matrix[:3, :3] @ CENTRE
    return matrix


@pytest.mark.parametrize("frame", ["fixed", "moving"])
@pytest.mark.parametrize("turn_deg", [(20.0, 0.0, 0.0), (0.0, -18.0, 0.0), (0.0, 22.0, 3.0), (-10.0, 0.0, 0.0)])
def test_a_bone_that_turned_at_its_joint_has_a_start_near_to_its_pose(frame: Frame, turn_deg: tuple[float, float, float]):
    bones = {HIP: found(HIP, True, 0.3), FEMUR: found(FEMUR, False, 0.13)}
    starts = other_starts(bones, {label: POINTS[label] for label in bones}, frame)[FEMUR]
    hip, turn = bones[HIP].pose.matrix, about_joint(turn_deg)
    # labels of the fixed image turn before the hip's motion, those of the moving image after it
    truth = Rigid(hip @ turn if frame == "fixed" else turn @ hip)
    here = POINTS[FEMUR] if frame == "fixed" else truth.inverse()(POINTS[FEMUR])
    off = [float((start(here) - truth(here)).norm(dim=0).mean()) for start in starts]
    assert off[0] > 4.0  # the hip's own pose
    assert min(off) < 0.5 * off[0]
    assert min(off) < 8.0


@pytest.mark.parametrize(
    ("femur", "tried"),
    [
        (found(FEMUR, False, 0.0), True),
        (found(FEMUR, False, 0.17), True),
        (found(FEMUR, False, 0.19), False),  # fits as well as found bones do
        (found(FEMUR, True, 0.05), False),
    ],
    ids=["lost", "poor", "good enough", "found"],
)
def test_starts_are_for_bones_that_fit_poorly(femur: BonePose, tried: bool):
    bones = {HIP: found(HIP, True, 0.3), FEMUR: femur}
    assert (FEMUR in other_starts(bones, POINTS, "moving")) == tried


def test_a_bone_without_a_joint_gets_its_neighbours_pose_alone():
    bones = {HIP: found(HIP, True, 0.3), FAR: found(FAR, False, 0.0)}
    assert other_starts(bones, POINTS, "moving")[FAR] == [bones[HIP].pose]


def test_the_neighbour_is_the_bone_whose_surface_is_nearest():
    other = found(FAR, True, 0.3, moved((0.0, 0.0, 0.0), (9.0, 9.0, 9.0)))
    bones = {HIP: found(HIP, True, 0.3), FAR: other, FEMUR: found(FEMUR, False, 0.0)}
    assert other_starts(bones, POINTS, "moving")[FEMUR][0] == bones[HIP].pose


def test_without_a_bone_to_go_by_there_is_nothing():
    bones = {label: found(label, False, 0.0) for label in (HIP, FEMUR)}
    assert other_starts(bones, POINTS, "moving") == {}


@pytest.mark.parametrize("frame", ["fixed", "moving"])
def test_turns_leave_the_joint_where_the_neighbour_takes_it(frame: Frame):
    pose = moved((5.0, -3.0, 8.0), (1.0, 2.0, 3.0))
    joint = torch.tensor(CENTRE)[:, None]
    at = joint if frame == "fixed" else pose.inverse()(joint)
    for start in turned(pose, joint[:, 0], frame):
        assert torch.allclose(start(at), pose(at), atol=1e-9)
