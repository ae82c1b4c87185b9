"""What `register` returns: a case, the transform found for it, and everything that is told of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch

from osteomorph import fields
from osteomorph.bones import Bone, bones_under
from osteomorph.case import Case
from osteomorph.exact_bones import ExactBones, certificate_json, warnings_of
from osteomorph.held_bones import held
from osteomorph.image import Image, Labels
from osteomorph.initialise import Start
from osteomorph.measure import dice, hausdorff
from osteomorph.objective import Alignment
from osteomorph.plan import Plan
from osteomorph.resampling import resample
from osteomorph.similarity import mutual_information
from osteomorph.stored_fields import stored_inverse
from osteomorph.transforms import Displacement, Transform, Velocity
from osteomorph.unlabelled import FoundIn

INVERSE_BAR_MM = 0.05
"""Mean inverse-consistency error above which a result is flagged."""


@final
@dataclass(frozen=True, eq=False)
class Registration:
    """A case, the transform found for it, and everything needed to find it again.

    case: as given. start: the rigid start. sampled: makes ``warp`` when it is first asked for. rigid_labels: ids held rigid.
    carried: the prepared case under the rigid start. history: the terms' values at each step.
    """

    case: Case = field(repr=False)
    start: Start
    sampled: Callable[[], Displacement | Velocity] = field(repr=False)
    plan: Plan
    rigid_labels: tuple[int, ...]
    carried: Case = field(repr=False)
    history: list[dict[str, float]] = field(repr=False)
    seconds: dict[str, float]
    hashes: dict[str, str] = field(repr=False)
    device: str
    exact: ExactBones | None = field(default=None, repr=False)
    """The bones' poses and what the transform is made of, where each bone is exactly rigid; ``warp`` then samples it."""
    found_in: FoundIn | None = field(default=None, repr=False)
    """Where bones were found without labels; those that are sure are then the case's labels."""
    notes: tuple[str, ...] = ()
    """What was done otherwise than the plan says, and why."""

    @cached_property
    def warp(self) -> Displacement | Velocity:
        """Fixed mm -> fixed mm, before the start."""
        return self.sampled()

    @cached_property
    def transform(self) -> Transform:
        """T, fixed mm -> moving mm: start after warp; where bones are exact, the exact function itself."""
        return self.stored if self.exact is None else self.exact.transform

    @cached_property
    def inverse(self) -> Transform:
        """Moving mm -> fixed mm."""
        return self.transform.inverse()

    @cached_property
    def stored(self) -> Transform:
        """T as files hold it and images are resampled with: start after warp."""
        return self.start.rigid.after(self.warp)

    @cached_property
    def stored_inverse(self) -> Transform:
        """Its inverse, as files hold it."""
        if self.exact is None or not isinstance(self.warp, Displacement):
            return self.stored.inverse()
        spacing = self.plan.prepare.spacing_mm
        return stored_inverse(self.exact, self.start.rigid, self.case.moving.grid, self.warp, spacing)

    @cached_property
    def moved(self) -> Image:
        """The moving image on the fixed grid, in the plan's interpolation; its minimum beyond its field of view."""
        return resample(self.case.moving, self.stored, self.case.fixed.grid, self.plan.interpolation)

    @cached_property
    def moved_labels(self) -> Labels | None:
        """The moving labels on the fixed grid, without what found bones gave away."""
        labels = self.case.moving_labels
        if labels is None:
            return None
        moved = resample(labels, self.stored, self.case.fixed.grid)
        return moved if self.exact is None else held(moved, self.exact.base, self.plan.prepare.spacing_mm)

    @cached_property
    def before(self) -> tuple[Image, Labels | None]:
        """The moving image and labels on the fixed grid under the rigid start alone."""
        case, start, grid = self.case, self.start.rigid, self.case.fixed.grid
        labels = None if case.moving_labels is None else resample(case.moving_labels, start, grid)
        return resample(case.moving, start, grid), labels

    @cached_property
    def bones(self) -> tuple[Bone, ...]:
        """What the transform does to each bone; from the moving labels where there are any, else from the fixed ones."""
        labels = self.moved_labels if self.moved_labels is not None else self.case.fixed_labels
        if labels is None:
            return ()
        ids = self.rigid_labels or tuple(labels.ids())
        return bones_under(self.stored, self.start.rigid, labels, ids, self.exact)

    @cached_property
    def certificate(self) -> dict[str, Any] | None:
        """What is promised of exact bones and of the transform around them, as ``result.json`` holds it."""
        if self.exact is None:
            return None
        return certificate_json(self.exact, self.metrics, {bone.label: bone.residual_mm for bone in self.bones})

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Figures that need no truth: similarity, folding, inverse consistency, overlap where both sides have labels."""
        flow = self.warp.flow if isinstance(self.warp, Velocity) else self.warp
        determinant = fields.jacobian_determinant(flow.vectors, flow.grid)
        out: dict[str, Any] = {
            "jacobian_min": float(determinant.min()),
            "folding_percent": 100 * float((determinant <= 0).float().mean()),
        }
        identity = Displacement(torch.zeros(()).expand_as(flow.vectors), flow.grid)
        for name, warp in (("mutual_information_start", identity), ("mutual_information", flow)):
            at = Alignment(self.carried, warp, stride=2)
            out[name] = float(mutual_information(at.fixed_values()[0], at.moved_values()[0], at.weight))
        lattice = self.case.fixed.grid.resampled(self.case.fixed.grid.size_mm / 40)
        points = lattice.points(torch.float64).flatten(1)
        there = self.stored(points)
        inside = self.case.moving.grid.contains(there)
        if inside.any():
            error = (self.stored_inverse(there[:, inside]) - points[:, inside]).norm(dim=0)
            out["inverse_error_mean_mm"], out["inverse_error_max_mm"] = float(error.mean()), float(error.max())
        if self.case.fixed_labels is not None and self.moved_labels is not None:
            spacing = self.case.fixed.grid.spacing_mm
            for label in sorted(set(self.case.fixed_labels.ids()) & set(self.moved_labels.ids())):
                a, b = (m.data == label for m in (self.case.fixed_labels, self.moved_labels))
                name = self.case.fixed_labels.name(label)
                out.setdefault("dice", {})[name] = dice(a, b)
                out.setdefault("hd99_mm", {})[name] = hausdorff(a, b, spacing, 99.0)
        return out

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to look twice at this result."""
        found = [*self.start.warnings, *(() if self.found_in is None else self.found_in.warnings)]
        values = self.metrics
        if values["folding_percent"] > 0:
            found.append(f"The field folds in {values['folding_percent']:.3g} % of its voxels.")
        if values.get("inverse_error_mean_mm", 0.0) > INVERSE_BAR_MM:
            found.append(f"The inverse is off by {values['inverse_error_mean_mm']:.3g} mm on average.")
        deformed = self.plan.refine.levels or "weights" in self.hashes
        if values["mutual_information"] < values["mutual_information_start"] and deformed:
            found.append("Mutual information fell below that of the rigid start.")
        lost = sorted(set(self.rigid_labels) - {bone.label for bone in self.bones})
        if lost:
            names = ", ".join(self._names.get(k, str(k)) for k in lost)
            found.append(f"No voxel of bone {names} lies in the fixed field of view.")
        if self.exact is not None:
            found.extend(warnings_of(self.exact, self._names))
        return tuple(found)

    @property
    def _names(self) -> dict[int, str]:
        maps = (self.case.fixed_labels, self.case.moving_labels)
        return {label: labels.name(label) for labels in maps if labels is not None for label in self.rigid_labels}

    @property
    def passed(self) -> bool:
        """Whether nothing warns."""
        return not self.warnings

    def write(self, folder: str | Path, overwrite: bool = False, command: Sequence[str] | None = None) -> Path:
        """The output folder, whole or not at all; its files are listed in docs/conventions.md."""
        from osteomorph.record import write_result

        return write_result(self, Path(folder), overwrite, command)
