"""The path from two images to a transform."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from osteomorph.bone_network import BoneNetwork, load_bone_network
from osteomorph.carried import on_fixed_grid
from osteomorph.case import Case
from osteomorph.clock import Clock
from osteomorph.descent import Progress
from osteomorph.errors import InputError
from osteomorph.exact_bones import dense_guess
from osteomorph.exact_path import LostError, exact_path, measured_outlines
from osteomorph.foreground import foreground
from osteomorph.geometry import Grid, overlap_mm3
from osteomorph.held_bones import given_way
from osteomorph.initialise import Start, initialise
from osteomorph.inputs import (
    BoneIds,
    BoneLabels,
    Bones,
    ImageSource,
    LabelSource,
    MaskSource,
    only_bones,
    read_case,
    with_bones,
)
from osteomorph.learned import Learned
from osteomorph.plan import Plan, RefinePlan
from osteomorph.prepare import affordable, canonical_grid, cropped_moving, moved_case, prepare, resampled_case
from osteomorph.recipes import not_optimised, recipe, recipe_names
from osteomorph.refine import refine as optimise
from osteomorph.result import Registration
from osteomorph.start_bones import LOST, elsewhere, images_or_bones
from osteomorph.stored_fields import stored_grid
from osteomorph.threads import beside, other_half, sharing
from osteomorph.threads import threads as limited
from osteomorph.training_folder import sha256
from osteomorph.transforms import Displacement, Rigid, Transform, Velocity
from osteomorph.unlabelled import done, held_case, looked_ahead


def register(
    fixed: ImageSource,
    moving: ImageSource,
    *,
    fixed_labels: LabelSource = None,
    moving_labels: LabelSource = None,
    fixed_mask: MaskSource = None,
    moving_mask: MaskSource = None,
    bone_labels: BoneLabels | None = None,
    bones: Bones = "auto",
    plan: str | Path | Plan | None = None,
    weights: str | Path | None = None,
    network: str | Path | None = None,
    initial: str | Path | Transform | None = None,
    refine: bool | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Registration:
    """moved(x) = moving(T(x)), x in fixed world mm.

    fixed, moving: images or their files; either may be the CT.
    fixed_labels, moving_labels: label maps on the grid of their image; an id means the same bone in both. Where neither is
        given and the plan holds bones exact, the shipped network finds them in one of the images.
    fixed_mask, moving_mask: weights in [0, 1] for the similarity.
    bone_labels: ids of the labels that are bone, or id -> name; all that occur by default.
    bones: which label map says where bone is; "none" holds nothing rigid and looks for no bone.
    plan: a recipe's name, a TOML or JSON file, or a Plan; ``"default"``, or the weights' own, by default.
    weights: of a trained network, whose field is the warp; images are prepared as in its training.
    network: weights that `tune_bones` or `train_bones` wrote; finds bones and features in the place of the shipped network.
    refine: whether the transform is optimised on these images; by default where there are no weights. Without it, in a plan
        of exact bones, a search on the shipped network's features, two linear steps per bone and three of soft tissue decide,
        in one shot; with weights their network's field does.
    initial: None for the automatic rigid start; "none" where the pair is aligned already; "centres" to begin from the
        centres of the fields of view; a rigid transform or its file.
    Raises InputError for input that cannot be registered, StartError where the rigid start failed.
    """
    chosen, learned = as_plan(plan or "default"), None
    if weights is not None:
        learned = Learned.read(Path(weights), None if plan is None else chosen)
        chosen, refine = learned.plan, bool(refine)
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
    if refine is False:
        chosen = not_optimised(chosen)
    clock, asked = Clock(progress), chosen
    with limited(threads):
        with clock("read"):
            case, hashes = read_case(fixed, moving, fixed_labels, moving_labels, fixed_mask, moving_mask, chosen)
            chosen, notes = _affordable(chosen, case.fixed.grid)
            if learned is not None:
                hashes["weights"] = learned.sha256
            finder = None
            if network is not None:
                if chosen.bones != "exact":
                    raise InputError(
                        f"--network finds bones, and the plan {chosen.name!r} keeps none exactly rigid. Leave it out, or "
                        "give --plan default."
                    )
                finder, hashes["network"] = load_bone_network(Path(network))[0], sha256(Path(network))
            given, where = _as_transform(initial), chosen_device(device)
            without = [labels is None for labels in (case.fixed_labels, case.moving_labels)]
        found_in = None
        case, ids = with_bones(case, bone_labels, bones)
        look = all(without) and chosen.bones == "exact" and bones == "auto" and bone_labels is None
        seek = any(without) and chosen.bones == "exact" and bones != "none"  # a start, where images alone do not give it
        ahead = looked_ahead(case, finder) if look else None
        with clock("prepare"):
            prepared = prepare(only_bones(case, ids), chosen.prepare)
        with clock("rigid start"), limited(None if ahead is None else other_half()):
            start, told = _start(case, prepared, chosen, initial, given, seek, finder)
            notes += told
        there = prepared.moving.grid.moved(start.rigid.inverse().matrix)
        if overlap_mm3(prepared.fixed.grid, there) == 0:
            raise InputError(
                "The fields of view do not overlap after the rigid start. Give labels of both images or --initial."
            )
        whole, dense, outlined, outlines = prepared, None, None, None
        at_once = torch.get_num_threads() > 1
        if chosen.bones == "exact":
            prepared = cropped_moving(prepared, start.rigid)
            hold = partial(held_case, case, prepared, start.rigid, ahead, at_once, finder)
            finding = beside(hold) if look and at_once else None
            if ids.rigid and at_once:
                outlines = beside(partial(measured_outlines, case, prepared, ids.rigid, bones))
            if ids.rigid or look or not chosen.refine.levels:
                with clock("guess"), sharing(partial(done, finding, outlines)):
                    told_guess = clock.told("guess")
                    dense = dense_guess(case, prepared, start.rigid, chosen, chosen.seed, told_guess, finder)
        if look:
            with clock("find bones"):
                bones_held = hold() if finding is None else finding.result()
                found_in, case, prepared = bones_held.found, bones_held.case, bones_held.prepared
                outlined, outlines = bones_held.outlined, bones_held.outlines
                if bones_held.ids:
                    notes = (*notes, *found_in.notes)
                    ids = BoneIds(bones_held.ids, bones_held.ids)
                    if not found_in.in_ct(case):
                        chosen = chosen.model_copy(update={"soft": chosen.soft.model_copy(update={"around": "margin"})})
        look_again = None
        if seek and start.method == "images":
            look_again = partial(elsewhere, case, whole, chosen.initialise, chosen.seed, start.rigid, finder)
        if dense is not None and ids.rigid:
            given_all = (case, prepared, start.rigid, dense, chosen, ids.rigid, bones, clock)
            try:
                found = exact_path(*given_all, outlined=outlined, outlines=outlines, elsewhere=look_again)
            except LostError as lost:
                again = register(
                    fixed, moving, fixed_labels=fixed_labels, moving_labels=moving_labels, fixed_mask=fixed_mask,
                    moving_mask=moving_mask, bone_labels=bone_labels, bones=bones, plan=asked, network=network,
                    initial=lost.start.rigid, device=device, progress=progress,
                )  # fmt: skip
                return replace(again, start=lost.start, notes=(LOST, *again.notes))
            if found is not None:
                exact, carried = found.exact, moved_case(prepared, start.rigid)
                if found_in is not None:
                    exact, case = given_way(exact, case, chosen.prepare.spacing_mm)
                warp_of, rest = partial(getattr, found, "warp"), (exact.history, clock.seconds, hashes, "cpu")
                return Registration(case, start, warp_of, chosen, ids.rigid, carried, *rest, exact, found_in, notes)
        guess = None
        if learned is not None:
            with clock("network"):
                guess = learned.field_of(on_fixed_grid(prepared, start.rigid, chosen).to(where))
        elif dense is not None and not chosen.refine.levels:
            onto = stored_grid(prepared.fixed.grid, chosen.refine.field_spacing_mm)
            guess = Displacement(start.rigid.inverse().after(dense).displacement(onto), onto)
        with clock("refine"):
            carried = resampled_case(prepared, start.rigid)
            if carried.fixed_mask is None and chosen.refine.foreground:
                carried = replace(carried, fixed_mask=foreground(carried.fixed))
            plan_here = _available_frame(chosen.refine, bones, carried)
            warp: Displacement | Velocity
            history: list[dict[str, float]] = []
            if guess is not None and not chosen.refine.levels:
                warp = guess
            else:
                warp, history = optimise(carried.to(where), plan_here, ids.rigid, chosen.seed, progress, guess)
            if where.type != "cpu":
                warp = replace(warp, vectors=warp.vectors.cpu())
    made = (chosen, ids.rigid, carried, history, clock.seconds, hashes, str(where))
    return Registration(case, start, lambda: warp, *made, None, found_in, notes)


# -- steps ----------------------------------------------------------------------------------------------------------------


def as_plan(plan: str | Path | Plan) -> Plan:
    """A plan from a recipe's name, a file, or itself."""
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, str) and plan in recipe_names():
        return recipe(plan)
    path = Path(plan)
    return Plan.read(path) if path.suffix in (".toml", ".json") else recipe(str(plan))


def _affordable(plan: Plan, fixed: Grid) -> tuple[Plan, tuple[str, ...]]:
    """The plan with a spacing that keeps to its number of voxels, and a sentence where that is another one."""
    found = affordable(plan.prepare, fixed)
    if found == plan.prepare:
        return plan, ()
    count = canonical_grid(fixed, plan.prepare).voxels / 1e6
    said = (
        f"Registered at {found.spacing_mm:g} mm, since the fixed image has {count:.0f} million voxels at "
        f"{plan.prepare.spacing_mm:g} mm. A plan with prepare.spacing_mm decides otherwise."
    )
    return plan.model_copy(update={"prepare": found}), (said,)


def _start(
    case: Case,
    prepared: Case,
    plan: Plan,
    initial: object,
    given: Rigid | None,
    seek: bool,
    finder: BoneNetwork | None,
) -> tuple[Start, tuple[str, ...]]:
    """The rigid start, and a note where it is on bones. seek: whether these may be looked for."""
    if given is not None:
        return Start(given, "given", 0.0, ()), ()
    settings, centres = plan.initialise, initial == "centres"
    if initial == "none":
        settings = settings.model_copy(update={"method": "none"})
    if seek and settings.method != "none":
        return images_or_bones(case, prepared, settings, plan.seed, centres, finder)
    return initialise(prepared, settings, plan.seed, centres), ()


def _as_transform(initial: str | Path | Transform | None) -> Rigid | None:
    if initial is None or initial in ("none", "centres"):
        return None
    if not isinstance(initial, Transform):
        from osteomorph.io import read_transform

        initial = read_transform(initial)
    if not isinstance(initial, Rigid):
        raise InputError("--initial takes a rigid transform; this one deforms. Give its rigid part alone.")
    return initial


def _available_frame(plan: RefinePlan, bones: Bones, case: Case) -> RefinePlan:
    """The plan with the rigid mask taken from labels that exist and that the user chose."""
    frame = plan.rigid_frame
    if bones in ("fixed", "both"):
        frame = "fixed" if bones == "fixed" else "both"
    elif case.moving_labels is None:
        frame = "fixed"
    elif frame == "fixed" and case.fixed_labels is None:
        frame = "warped"
    return plan.model_copy(update={"rigid_frame": frame})


# -- small things ---------------------------------------------------------------------------------------------------------


def chosen_device(name: str) -> torch.device:
    """cpu or cuda by name; auto: CUDA where there is any. Raises InputError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise InputError(f"There is no device {name!r}. Use --device auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("This machine has no CUDA device that torch can use. Use --device cpu.")
    return torch.device(name)
