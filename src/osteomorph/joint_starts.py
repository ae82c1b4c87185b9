"""Other starts for bones that were not found: the pose of a neighbour, as it is and turned about the joint between them."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float64
from scipy.spatial import cKDTree
from torch import Tensor

from osteomorph.pose import BonePose
from osteomorph.pose_doubts import BELIEVED
from osteomorph.pose_features import about
from osteomorph.transforms import Rigid

TURNS_DEG = (-24.0, -12.0, 12.0, 24.0)
"""Tried about each axis through a joint. From 6 mm off a bone is found, which half of a step is for a thigh 100 mm long."""

NEAR_MM = 10.0
"""Distance between two bones, of points some millimetres apart, up to which there is a joint between them."""

JOINT_MM = 6.0
"""What of a bone lies nearer to the other than its nearest point and this much more is where the joint is."""

POOR = 0.6
"""Share of what found bones gain, in the median, from which on a bone's gain does not say that it was missed."""


def other_starts(
    found: Mapping[int, BonePose], points: Mapping[int, Float64[Tensor, "3 n"]], frame: Literal["fixed", "moving"]
) -> dict[int, list[Rigid]]:
    """For bones that were not found and fit poorly, poses (fixed mm -> moving mm) that bones near to them suggest.

    points: of each bone in mm, some millimetres apart, in the frame of the labels.
    """
    sure = {label: bone for label, bone in found.items() if bone.determined}
    if not sure:
        return {}
    typical = float(np.median([bone.gain for bone in sure.values()]))
    trees = {label: cKDTree(points[label].T.numpy()) for label in sure}
    out = {}
    for label, bone in found.items():
        if bone.determined or bone.gain >= max(BELIEVED, POOR * typical):
            continue
        own = points[label].T.numpy()
        apart = {k: tree.query(own)[0] for k, tree in trees.items()}
        joined = min(apart, key=lambda k: float(apart[k].min()))
        out[label] = [sure[joined].pose]
        if apart[joined].min() <= NEAR_MM:
            joint = points[label][:, apart[joined] <= apart[joined].min() + JOINT_MM].mean(1)
            out[label] += turned(sure[joined].pose, joint, frame)
    return out


def turned(pose: Rigid, centre_mm: Float64[Tensor, "3"], frame: Literal["fixed", "moving"]) -> list[Rigid]:
    """A pose (fixed mm -> moving mm) and turns about axes through a point: of the moving image, or before it of the fixed."""
    steps = [np.radians(angle) * axis for axis in np.eye(3) for angle in TURNS_DEG]
    turns = [about(centre_mm, np.concatenate([step, np.zeros(3)])) for step in steps]
    return [Rigid(turn @ pose.matrix if frame == "moving" else pose.matrix @ turn) for turn in turns]
