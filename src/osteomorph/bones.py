"""What a transform does to each bone: its best rigid motion, and what is left of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from osteomorph.image import Labels
from osteomorph.measure import fit_rigid
from osteomorph.transforms import Rigid, Transform

if TYPE_CHECKING:
    from osteomorph.exact_bones import ExactBones
    from osteomorph.pose import BonePose


@final
@dataclass(frozen=True, eq=False)
class Bone:
    """One bone under a transform, fixed -> moving.

    pose: best rigid fit over the bone's voxels (RAS mm), or an exact bone's own.
    residual_mm: largest distance between the transform and that pose inside the bone; of an exact bone, outside its rim.
    rotation_deg, shift_mm: of the pose, the shift taken at the bone's centroid.
    rotation_after_start_deg, shift_after_start_mm: the same without the rigid start.
    """

    label: int
    name: str
    pose: Rigid
    residual_mm: float
    residual_rms_mm: float
    rotation_deg: float
    shift_mm: tuple[float, float, float]
    rotation_after_start_deg: float
    shift_after_start_mm: tuple[float, float, float]
    volume_mm3: float
    found: "BonePose | None" = None
    """How an exact bone's pose was found."""
    rim_voxels: int = 0
    """Of the bone's voxels, those in its rim."""
    given_mm3: float | None = None
    """What a found bone gave away where it touches another; None where labels were given."""

    def as_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "name": self.name,
            "matrix": self.pose.matrix.tolist(),
            "rotation_deg": self.rotation_deg,
            "displacement_mm": list(self.shift_mm),
            "rotation_after_start_deg": self.rotation_after_start_deg,
            "displacement_after_start_mm": list(self.shift_after_start_mm),
            "rigidity_residual_mm": self.residual_mm,
            "rigidity_residual_rms_mm": self.residual_rms_mm,
            "uncertainty": None
            if self.found is None
            else {
                "rotation_sd_deg": self.found.rotation_sd_deg,
                "shift_sd_mm": self.found.shift_sd_mm,
                "determined": self.found.determined,
            },
            "rim_voxels": self.rim_voxels,
            "given_away_mm3": self.given_mm3,
            "volume_mm3": self.volume_mm3,
        }


def bones_under(
    transform: Transform, start: Rigid, labels: Labels, ids: tuple[int, ...], exact: "ExactBones | None" = None
) -> tuple[Bone, ...]:
    """Every bone of a label map in fixed space (the fixed labels, or the moving ones already pulled back).

    exact: what made the transform; its bones are held against their own poses.
    """
    found = []
    for label in ids:
        if label not in labels.boxes:
            continue
        known = exact is not None and label in exact.poses
        here = labels.centres_mm(label)
        if here.shape[1] < (1 if known else 4):  # fewer points leave a rotation undetermined
            continue
        rim = torch.zeros(here.shape[1], dtype=torch.bool)
        if exact is not None and known:
            pose, rim = exact.poses[label].pose, exact.rim(label, here)
            left = (transform(here[:, ~rim]) - pose(here[:, ~rim])).norm(dim=0)
            largest, rms = (float(left.max()), float(left.square().mean().sqrt())) if left.numel() else (0.0, 0.0)
        else:
            matrix, largest, rms = fit_rigid(here, transform(here))
            pose = Rigid(matrix)
        relative = start.inverse().after(pose)
        assert isinstance(relative, Rigid)
        centroid = here.mean(1, keepdim=True)
        found.append(
            Bone(
                label=label,
                name=labels.name(label),
                pose=pose,
                residual_mm=largest,
                residual_rms_mm=rms,
                rotation_deg=pose.angle_deg,
                shift_mm=_triple(pose(centroid) - centroid),
                rotation_after_start_deg=relative.angle_deg,
                shift_after_start_mm=_triple(relative(centroid) - centroid),
                volume_mm3=here.shape[1] * float(np.prod(labels.grid.spacing_mm)),
                found=exact.poses[label] if exact is not None and known else None,
                rim_voxels=int(rim.sum()),
                given_mm3=exact.body(label).given_mm3 if exact is not None and known else None,
            )
        )
    return tuple(found)


def _triple(vector: torch.Tensor) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in vector.flatten())
    return x, y, z
