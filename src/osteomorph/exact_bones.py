"""Bones in register: from a rigid start to one exact motion per bone, a soft field around them, and fields for files."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from osteomorph.bone_network import BoneNetwork
from osteomorph.case import Case, Side
from osteomorph.certificate import Certificate, certify
from osteomorph.descent import Progress
from osteomorph.distances import DistanceMap
from osteomorph.foreground import foreground
from osteomorph.gain import even_gain
from osteomorph.gauss_newton import newton_steps
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image, Labels
from osteomorph.inputs import Bones
from osteomorph.joint_starts import other_starts
from osteomorph.joints import Gaps
from osteomorph.lattice import lattice, rigid_displacement
from osteomorph.measure import robust_fit
from osteomorph.plan import Plan, SoftPlan
from osteomorph.polyrigid import Body, Polyrigid, from_labels
from osteomorph.pose import BonePose, poses
from osteomorph.pose_doubts import collided, settled, thinned
from osteomorph.prepare import MARGIN_MM, resampled_case
from osteomorph.refine import refine
from osteomorph.resampling import coarser, resample
from osteomorph.soft_field import ramp, soft_field, still_mm
from osteomorph.transforms import Displacement, Rigid, Transform, Velocity
from osteomorph.unfolded import widened_warnings
from osteomorph.wide_guess import wide_field

AROUND_MM = 8.0
"""By which the field of the bones' motion reaches beyond the fixed field of view."""

CERTIFIED = 6_000
"""Points at which the bones' transform is checked."""

TOLERANCE_MM = 0.05
"""Of the bones' motion between bones, where it is interpolated; in bones and next to them it is computed."""

GUESS_MM = 6.0
"""Spacing at which a guess is read."""

GUESS_SMOOTH_MM = 8.0
"""Standard deviation of the Gaussian over what a guess says of soft tissue: its nodes jump where its search is in doubt."""

LEAST_STEPS = 2
"""Of the bones' motion through time; a steep gap asks for more."""

MARGIN_VOXELS = 2.0
"""Of tissue that moves with a bone: of the labels, or of the fields that are stored, whichever are longer."""

GIVEN_AWAY = 0.1
"""Share of a found bone from which on it is said that so much of it lies too near to others to be rigid."""

MOST_TOLD = 10.0
"""Degrees or mm of a pose's standard deviation, beyond which no number is given."""

LEAST_POINTS = 60
"""Voxels of the guess below which a bone's rotation is not read from it."""


@final
@dataclass(frozen=True, eq=False)
class ExactBones:
    """T = base after psi.

    poses: bone -> its motion, fixed mm -> moving mm, and how sure it is. base: rigid in every bone. psi: soft tissue's own
    motion, fixed mm -> fixed mm, the identity in every bone. history: the terms' values at each step of psi.
    """

    poses: Mapping[int, BonePose]
    base: Polyrigid
    psi: Displacement | Velocity
    history: list[dict[str, float]]
    gaps: Gaps

    @cached_property
    def transform(self) -> Transform:
        return self.base.after(self.psi)

    @cached_property
    def flow(self) -> Displacement:
        """psi as a displacement."""
        return self.psi.flow if isinstance(self.psi, Velocity) else self.psi

    @cached_property
    def certificate(self) -> Certificate:
        return certify(self.base, self.psi.grid, CERTIFIED)

    def rim(self, label: int, points_mm: Float[Tensor, "3 n"]) -> Bool[Tensor, " n"]:
        """Which fixed points of a bone lie where another bone is too near for both to be rigid."""
        return self.body(label).region(points_mm) > 1e-4

    def body(self, label: int) -> Body:
        return next(body for body in self.base.bodies if body.label == label)


# -- steps ---------------------------------------------------------------------------------------------------------------
def sides_of(ids: tuple[int, ...], bones: Bones, prepared: Case) -> dict[int, Side]:
    """Bone -> the label map that says where it is; where both do, the moving one, a CT more often."""
    present = {
        "fixed": set() if prepared.fixed_labels is None else set(prepared.fixed_labels.ids()),
        "moving": set() if prepared.moving_labels is None else set(prepared.moving_labels.ids()),
    }
    wanted: list[Side] = ["fixed"] if bones == "fixed" else ["moving"] if bones == "moving" else ["moving", "fixed"]
    return {
        label: next(side for side in wanted if label in present[side]) for label in ids if _anywhere(label, wanted, present)
    }


def _anywhere(label: int, wanted: list[Side], present: Mapping[str, set[int]]) -> bool:
    return any(label in present[side] for side in wanted)


def dense_guess(
    case: Case,
    prepared: Case,
    start: Rigid,
    plan: Plan,
    seed: int,
    progress: Progress | None,
    network: BoneNetwork | None = None,
) -> Transform:
    """A smooth field that knows no bones, fixed mm -> moving mm: a wide search, then, where the plan has levels for it, an
    optimisation from images at ``plan.guess_mm``."""
    wide = wide_field(case, prepared, start, plan.discrete, progress, network) if plan.discrete.levels else None
    if wide is not None and not plan.guess.levels:
        return start.after(wide)
    fixed, moving = (coarser(image, plan.guess_mm) for image in (prepared.fixed, prepared.moving))
    masks = _on(prepared.fixed_mask, fixed.grid), _on(prepared.moving_mask, moving.grid)
    coarse = Case(fixed, moving, fixed_mask=masks[0], moving_mask=masks[1])
    carried = resampled_case(coarse, start, MARGIN_MM if wide is None else MARGIN_MM + plan.discrete.levels[0].reach_mm)
    if carried.fixed_mask is None and plan.guess.foreground:
        carried = replace(carried, fixed_mask=foreground(carried.fixed))
    warp, _ = refine(carried, plan.guess, (), seed, progress, wide)
    return start.after(warp)


def _on(mask: Image | None, grid: Grid) -> Image | None:
    return None if mask is None else resample(mask, Rigid.identity(), grid, outside=0.0)


def first_poses(
    dense: Transform, start: Rigid, prepared: Case, sides: Mapping[int, Side], spacing_mm: float
) -> dict[int, Rigid]:
    """Every bone's best rigid fit to a field, over what of it lies in both fields of view; bones of which nothing does are
    left out, and those of which hardly anything does follow the rigid start's rotation."""
    grid = prepared.fixed.grid.resampled(np.maximum(prepared.fixed.grid.spacing_mm, spacing_mm))
    points = grid.points(torch.float64).flatten(1)
    there = dense(points)
    inside = prepared.moving.grid.contains(there)
    found = {}
    for side, labels, where in (
        ("fixed", prepared.fixed_labels, points),
        ("moving", prepared.moving_labels, there),
    ):
        if labels is None:
            continue
        ids = sample(labels.data, labels.grid, where, "nearest", 0)[0]
        some = ((ids > 0) & inside).nonzero()[:, 0]
        known = ids[some]
        for label, own in sides.items():
            if own != side:
                continue
            here = some[known == label]
            if len(here) >= LEAST_POINTS:
                found[label] = robust_fit(points[:, here], there[:, here])
            elif len(here) > 0:
                shift = np.eye(4)
                shift[:3, 3] = (there[:, here] - start(points[:, here])).mean(1).numpy()
                found[label] = Rigid(shift @ start.matrix)
    return dict(sorted(found.items()))


def refined_poses(
    prepared: Case, first: Mapping[int, Rigid], plan: Plan, sides: Mapping[int, Side], progress: Progress | None
) -> dict[int, BonePose]:
    """Poses fitted to the images, each bone in the frame of its labels.

    A bone that is not found from its first pose is tried from others that its neighbours suggest. Where the images do not tell
    all six degrees of freedom, the pose it was found from fills in. Bones that come to lie in each other are not determined.
    """
    found: dict[int, BonePose] = {}
    maps: dict[Side, Labels | None] = {"fixed": prepared.fixed_labels, "moving": prepared.moving_labels}
    for side, labels in maps.items():
        ids = [label for label in first if sides[label] == side]
        if not ids or labels is None:
            continue
        points = {k: thinned(labels.centres_mm(k)) for k in ids}
        start = {label: first[label] for label in ids}
        instead = partial(other_starts, points=points, frame=side) if plan.pose.iterations > 1 else None
        here = poses(prepared, start, plan.pose, ids, side, progress, instead)
        turned = {k: bone if side == "moving" else replace(bone, pose=bone.pose.inverse()) for k, bone in here.items()}
        seen = {k: turned[k].pose.inverse()(points[k]) for k in here}
        wrong = collided({k: bone for k, bone in turned.items() if bone.determined}, labels, seen)
        here = {label: replace(bone, determined=bone.determined and label not in wrong) for label, bone in here.items()}
        for label, bone in here.items():
            fixed = points[label] if side == "fixed" else seen[label]
            found[label] = bone if bone.determined else settled(bone, fixed)
    return dict(sorted(found.items()))


def sources(fixed: Labels | None, moving: Labels | None, bones: Bones) -> tuple[Labels | None, Labels | None]:
    """The fixed and the moving label map, as far as they say where bones end."""
    use_fixed = bones in ("fixed", "both") or moving is None
    return fixed if use_fixed else None, moving if bones in ("moving", "both", "auto") else None


def build_base(
    found: Mapping[int, BonePose],
    fixed: Labels | None,
    moving: Labels | None,
    bones: Bones,
    spacing_mm: float,
    margin_voxels: float = MARGIN_VOXELS,
    gaps: Gaps | None = None,
) -> Polyrigid:
    """The bones' transform. Its margin holds that many voxels of the labels and of the fields that are stored. gaps: between
    the regions of certain bones."""
    used = sources(fixed, moving, bones)
    voxel = max(float(np.prod(labels.grid.spacing_mm)) ** (1 / 3) for labels in used if labels is not None)
    return from_labels(
        {label: found[label].pose for label in found},
        *used,
        margin_mm=margin_voxels * max(voxel, spacing_mm),
        gaps=gaps,
        least_steps=LEAST_STEPS,
    )


def relative_field(base: Polyrigid, start: Rigid, grid: Grid) -> Displacement:
    """start^-1 after base on a grid that reaches a little beyond ``grid``, exact in every bone."""
    margin = np.ceil(AROUND_MM / grid.spacing_mm).astype(int).tolist()
    around = grid.padded((margin[0], margin[1], margin[2]))
    motion = lattice(base, around, TOLERANCE_MM).vectors
    back = start.inverse()
    turn = torch.as_tensor(back.matrix[:3, :3].copy(), dtype=motion.dtype)
    relative = (turn @ motion.flatten(1)).unflatten(1, around.shape)
    return Displacement(relative.add_(rigid_displacement(back, around)), around)


def soft_around(
    prepared: Case,
    base: Polyrigid,
    field: Displacement,
    start: Rigid,
    dense: Transform,
    plan: SoftPlan,
    seed: int,
    progress: Progress | None,
    uneven: Side | None = None,
) -> tuple[Displacement | Velocity, list[dict[str, float]]]:
    """psi, found with the moving image resampled through the bones' transform. dense: the guess that knows no bones.

    field: the bones' motion before the start, on `seen_grid` and around it. uneven: the image of which the gain is to be taken
    out, where the plan wants that.
    """
    hold = ramp(still_parts(base, prepared.fixed.grid, plan.around), prepared.fixed.grid, plan.ramp_mm)
    transform = start.after(field)
    guess = besides_bones(dense, base, prepared) if plan.begin == "guess" or plan.agree_mm > 0 else None
    if guess is not None and plan.newton:
        guess = newton_steps(prepared, transform, hold, guess, plan.newton)
    if not plan.levels:
        return soft_field(prepared, hold, plan, seed, progress, guess)
    known = Image(torch.ones_like(prepared.moving.data[:1]), prepared.moving.grid)
    near = field.grid.around(prepared.fixed.grid.corners_mm, AROUND_MM)
    onto = field.grid if near is None else field.grid.cropped(near)
    through = Case(
        prepared.fixed,
        resample(prepared.moving, transform, onto, outside="border"),  # a step there would look like anatomy
        fixed_mask=prepared.fixed_mask,
        moving_mask=resample(known if prepared.moving_mask is None else prepared.moving_mask, transform, onto, outside=0.0),
    )
    if uneven is not None and plan.gain_mm > 0:
        through = even_gain(through, uneven, plan.gain_mm)
    return soft_field(through, hold, plan, seed, progress, guess)


def seen_grid(fixed: Grid, plan: SoftPlan) -> Grid:
    """Where soft tissue's field looks at the images: the fixed image's grid, or the finest that linear steps need without a
    descent after them."""
    if plan.levels or not plan.newton:
        return fixed
    return fixed.resampled(np.maximum(fixed.spacing_mm, min(level.spacing_mm for level in plan.newton)))


def still_parts(base: Polyrigid, grid: Grid, around: Literal["bone", "margin"]) -> list[DistanceMap]:
    """Distance to what soft tissue's own motion leaves alone, with the voxels around it that `soft_field` adds.

    Of a margin, less as deep as those are: so its nodes are still, and what lies between the nodes in bone. That is enough to
    keep bones exact.
    """
    if around == "margin":
        return [body.region for body in base.bodies]
    deep = still_mm(grid)
    return [DistanceMap(torch.minimum(body.bone.values, body.region.values + deep), body.region.grid) for body in base.bodies]


def besides_bones(dense: Transform, base: Polyrigid, prepared: Case) -> Displacement:
    """base^-1 after a dense guess, less x: what soft tissue does besides following its bones. 0 where the guess leaves the
    moving image."""
    grid = prepared.fixed.grid.resampled(np.maximum(GUESS_MM, prepared.fixed.grid.spacing_mm))
    points = grid.points(torch.float64).flatten(1)
    there = dense(points)
    left = (base.inverse().moved(there) - points) * prepared.moving.grid.contains(there)
    width = GUESS_SMOOTH_MM / grid.spacing_mm
    smooth = [gaussian_filter(part, width, mode="nearest") for part in left.float().unflatten(1, grid.shape).numpy()]
    return Displacement(torch.from_numpy(np.stack(smooth)), grid)


# -- in words and in numbers ---------------------------------------------------------------------------------------------
def warnings_of(exact: ExactBones, names: Mapping[int, str]) -> list[str]:
    """Reasons to look twice at the bones."""
    out: list[str] = []
    unsure: list[str] = []
    following: list[str] = []
    for label, bone in exact.poses.items():
        name = names.get(label, str(label))
        if not bone.determined and np.isfinite(bone.covariance).all():
            unsure.append(f"{name} ({_told(bone.rotation_sd_deg, 'degrees')}, {_told(bone.shift_sd_mm, 'mm')})")
        elif not bone.determined:
            following.append(name)
    if unsure:
        bones, them = ("bone", "it") if len(unsure) == 1 else ("bones", "them")
        told = f"The images do not tell the pose of {bones} {', '.join(unsure)}: in brackets one standard deviation."
        out.append(f"{told} Look at {them} before you use {them}.")
    if following:
        bones, they = ("bone", "it follows its") if len(following) == 1 else ("bones", "they follow their")
        which = ", ".join(following)
        out.append(f"The images do not tell the pose of {bones} {which}: {they} surroundings. Look before you use it.")
    certificate = exact.certificate
    touching = [names.get(label, str(label)) for label, count in certificate.rim_voxels.items() if count > 0]
    if touching:
        volume = sum(certificate.rim_mm3.values())
        out.append(
            f"Bones come so near to another that a rim of {volume:.3g} mm3 is not rigid: {', '.join(touching)}. "
            "Check the labels where they touch."
        )
    out.extend(widened_warnings(exact.gaps, names))
    for body in exact.base.bodies:
        if body.given_share > GIVEN_AWAY:
            name, share = names.get(body.label, str(body.label)), 100 * body.given_share
            out.append(f"{share:.0f} % of what was found of bone {name} lies too near to other bones and is not held rigid.")
    if certificate.narrowest_gap_mm is not None and certificate.narrowest_gap_mm < 0:
        pair = " and ".join(names.get(label, str(label)) for label in certificate.narrowest_pair or ())
        out.append(f"Bones {pair} run into each other by {-certificate.narrowest_gap_mm:.2g} mm.")
    return out


def _told(value: float, unit: str) -> str:
    """A standard deviation holds near a pose; a large one says only that it is large."""
    return f"> {MOST_TOLD:g} {unit}" if value > MOST_TOLD else f"{value:.2g} {unit}"


def certificate_json(exact: ExactBones, metrics: Mapping[str, Any], residual_mm: Mapping[int, float]) -> dict[str, Any]:
    """What is promised of the whole transform as it is written, and under ``bones_alone`` of the bones' one."""
    alone = exact.certificate.as_json()
    return {
        "residual_mm": dict(residual_mm),
        "rim_voxels": alone["rim_voxels"],
        "rim_mm3": alone["rim_mm3"],
        "given_away_mm3": {body.label: body.given_mm3 for body in exact.base.bodies if body.given_mm3 is not None},
        "least_determinant": metrics["jacobian_min"],
        "folding_percent": metrics["folding_percent"],
        "inverse_mean_mm": metrics.get("inverse_error_mean_mm"),
        "inverse_max_mm": metrics.get("inverse_error_max_mm"),
        "narrowest_gap_mm": alone["narrowest_gap_mm"],
        "narrowest_pair": alone["narrowest_pair"],
        "bones_alone": alone,
    }
