"""What to make of poses that images do not tell, or that cannot all be right."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Float64
from scipy.spatial.transform import Rotation
from torch import Tensor

from osteomorph.geometry import sample
from osteomorph.image import Labels
from osteomorph.pose import BonePose
from osteomorph.pose_features import about
from osteomorph.transforms import Rigid

FIRST_SD_MM = 3.0
"""Standard deviation of a bone's points under a first pose, any rotation or shift."""

BELIEVED = 0.12
"""Gain from which on what images say of some directions counts though they do not tell all six."""

LARGEST_MM = 16.0
"""Distance from the first pose, as far as bones are searched for, beyond which an undetermined one is not believed at all."""

SHARED = 0.05
"""Share of a bone's voxels that lie in another bone from which on one of the two is in the wrong place."""

POINTS = 2_000


def settled(bone: BonePose, points: Float64[Tensor, "3 n"]) -> BonePose:
    """An undetermined bone between the pose it was found from and that from the images, each direction by how sure it is.

    points: of the bone, fixed mm. A bone whose images tell nothing, or lead far away, keeps the former.
    """
    first = bone.start
    centre = points.mean(1)
    radius = max(float((points - centre[:, None]).square().sum(0).mean().sqrt()), 1.0)
    kept = replace(bone, pose=first)
    if bone.gain < BELIEVED or not np.isfinite(bone.covariance).all():
        return kept
    motion = first.inverse().matrix @ bone.pose.matrix
    turn = Rotation.from_matrix(motion[:3, :3]).as_rotvec()
    shift = motion[:3, :3] @ centre.numpy() + motion[:3, 3] - centre.numpy()
    if np.linalg.norm(turn) * radius + np.linalg.norm(shift) > LARGEST_MM:
        return kept
    unit = np.repeat([radius, 1.0], 3)  # both in mm
    scaled = bone.covariance * np.outer(unit, unit) + 1e-9 * np.eye(6)
    share = FIRST_SD_MM**2 * np.linalg.inv(FIRST_SD_MM**2 * np.eye(6) + scaled)
    step = share @ (np.concatenate([turn, shift]) * unit) / unit
    return replace(bone, pose=Rigid(first.matrix @ about(centre, step)))


def collided(found: Mapping[int, BonePose], labels: Labels, points: Mapping[int, Float64[Tensor, "3 n"]]) -> set[int]:
    """Bones that a pose puts into another: at least one of the two poses is wrong.

    labels: where bones are in the image that poses lead to. points: of each bone, in the frame that poses start from.
    """
    out: set[int] = set()
    for one, other in permutations(found, 2):
        there = found[other].pose(points[one])
        inside = sample(labels.data, labels.grid, there, "nearest", 0)[0] == other
        if float(inside.double().mean()) > SHARED:
            out |= {one, other}
    return out


def thinned(points: Float64[Tensor, "3 n"]) -> Float64[Tensor, "3 m"]:
    """Every so many, so that few are left."""
    return points[:, :: max(1, points.shape[1] // POINTS)].to(torch.float64)
