"""The path of `register` where bones are exact: poses, the bones' motion, soft tissue around them, what files hold."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from dataclasses import field as attribute
from functools import cached_property, partial
from typing import final

from osteomorph.body_part import around_body_and_bones, continued
from osteomorph.case import Case
from osteomorph.clock import Clock
from osteomorph.distances import distance_maps
from osteomorph.exact_bones import (
    MARGIN_VOXELS,
    ExactBones,
    build_base,
    first_poses,
    refined_poses,
    relative_field,
    seen_grid,
    sides_of,
    soft_around,
    sources,
)
from osteomorph.foreground import foreground
from osteomorph.gain import uneven_side
from osteomorph.geometry import Grid
from osteomorph.initialise import Start
from osteomorph.inputs import Bones
from osteomorph.plan import Plan
from osteomorph.polyrigid import Polyrigid
from osteomorph.pose import BonePose
from osteomorph.stored_fields import stored_field, stored_grid
from osteomorph.transforms import Displacement, Rigid, Transform
from osteomorph.unfolded import unfolded


class LostError(Exception):
    """No bone was found from a rigid start. start: another one."""

    def __init__(self, start: Start) -> None:
        super().__init__("No bone was found from the rigid start.")
        self.start = start


@final
@dataclass(frozen=True, eq=False)
class Options:
    """Steps that are given or done otherwise, to study the others; none by default.

    poses: the result of the first step. margin_voxels: tissue that moves with a bone. between: the bones' transform,
    the rigid start, a grid -> what is written of that transform on it; `ExactBones` holds the exact one whatever it is.
    """

    poses: Mapping[int, BonePose] | None = None
    margin_voxels: float = MARGIN_VOXELS
    between: Callable[[Polyrigid, Rigid, Grid], Displacement] = relative_field


@final
@dataclass(frozen=True, eq=False)
class ExactPath:
    """exact: bones and psi. onto: grid of what files hold. sampled: makes ``warp``."""

    exact: ExactBones
    onto: Grid = attribute(repr=False)
    sampled: Callable[[], Displacement] = attribute(repr=False)

    @cached_property
    def warp(self) -> Displacement:
        """The whole transform before the rigid start, sampled for files."""
        return self.sampled()


def exact_path(
    case: Case,
    prepared: Case,
    start: Rigid,
    dense: Transform,
    plan: Plan,
    ids: tuple[int, ...],
    bones: Bones,
    clock: Clock,
    options: Options | None = None,
    outlined: Case | None = None,
    outlines: Future[None] | None = None,
    elsewhere: Callable[[], Start | None] | None = None,
) -> ExactPath | None:
    """From a dense guess to exact bones and soft tissue; None where no bone is in view.

    case: as given. prepared: from it. start: rigid, fixed mm -> moving mm. dense: the guess from there (`dense_guess`). ids:
    labels that are bone. clock: told every step. outlined: whose labels say where bones end, by default those of the case as
    given. outlines: `measured_outlines` of those, where it was begun beside other steps. elsewhere: asked for another start
    where no bone's pose is determined; raises LostError where there is one.
    """
    chosen = Options() if options is None else options
    sides = sides_of(ids, bones, prepared)
    labels = case if outlined is None else outlined
    found = chosen.poses
    with clock("poses"):
        if found is None:
            first = first_poses(dense, start, prepared, sides, plan.guess_mm)
            found = refined_poses(prepared, first, plan, sides, clock.told("poses")) if first else {}
            if elsewhere is not None and not any(bone.determined for bone in found.values()) and (other := elsewhere()):
                raise LostError(other)
            if not found:
                return None
    spacing = plan.prepare.spacing_mm
    with clock("bones"):
        if outlines is not None:
            outlines.result()
        build = partial(build_base, found, labels.fixed_labels, labels.moving_labels, bones, spacing, chosen.margin_voxels)
        onto = stored_grid(case.fixed.grid, spacing)

        def sampled(base: Polyrigid, grid: Grid) -> Displacement:
            return chosen.between(base, start, grid)

        exactly = chosen.between is relative_field
        base, gaps = unfolded(build, onto) if exactly else (build(), dict[tuple[int, int], float]())
        if prepared.fixed_mask is None:
            prepared = replace(prepared, fixed_mask=foreground(prepared.fixed))
        whole = prepared.fixed.grid
        prepared = around_body_and_bones(prepared, base, plan.soft.ramp_mm)
        seen = seen_grid(prepared.fixed.grid, plan.soft)
        one_lattice = onto.part(seen) is not None  # what files hold serves both
        field = sampled(base, onto if one_lattice else seen)
    with clock("soft"):
        uneven, soft = uneven_side(case.fixed, case.moving), plan.soft
        if not (plan.discrete.levels or plan.guess.levels):  # then the guess knows nothing of soft tissue
            soft = soft.model_copy(update={"agree_mm": 0.0})
        psi, history = soft_around(prepared, base, field, start, dense, soft, plan.seed, clock.told("soft"), uneven)
    exact = ExactBones(found, base, continued(psi, whole), history, gaps)
    if not one_lattice:
        return ExactPath(exact, onto, lambda: stored_field(exact.flow, sampled(base, onto), onto))
    warp = stored_field(exact.flow, field, onto)  # now, since motion takes as much memory as it does
    return ExactPath(exact, onto, lambda: warp)


def measured_outlines(labels: Case, prepared: Case, ids: tuple[int, ...], bones: Bones) -> None:
    """The distance maps of the bones' outlines, which are kept for whoever asks: work that can go on beside other steps."""
    known = sides_of(ids, bones, prepared).keys()
    for source in sources(labels.fixed_labels, labels.moving_labels, bones):
        if source is not None:
            distance_maps(source, sorted(known & source.ids()))
