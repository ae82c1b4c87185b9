"""What each part of the method is worth: one part changed at a time, on pairs with known truth.

    python benchmarks/ablation.py --pairs DIR --out ablation.csv [--only 'lumbar-*/*'] [--labels exact|observed]
                                  [--groups bones,margin,soft,stages]

Pairs are those of benchmarks/peers/pairs.py (aligned already); the method is given the moving labels. Groups:

bones   no bones (the soft field of the penalty recipe without penalty), penalty (the recipe), then the same poses and the
        same soft stage around three ways to move what lies between: a plain blend of displacements, a stationary
        log-Euclidean flow (Arsigny 2009, weights that do not move), co-moving weights (this package)
margin  co-moving, with 0 to 3 voxels of tissue that move with a bone
soft    the soft stage on mutual information, on MIND, on both (the weights of the default recipe, with the other one 0)
stages  poses read off the dense guess, after Gauss-Newton, and with the soft field
A variant that occurs in two groups is run once, and a row that the CSV holds is not run again. CPU seconds are those of a
variant's whole path in this process (parts that variants share are timed once and counted for each), without reading files; the
numerical inverse is counted too. folding_percent and inverse_mm are those of the field at voxel centres.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import final

from blends import blended, log_euclidean
from peers import table
from peers.metrics import FIGURES, Known, figures, read_known

from osteomorph.case import Case
from osteomorph.exact_bones import (
    build_base,
    dense_guess,
    first_poses,
    refined_poses,
    relative_field,
    sides_of,
    soft_around,
    stored_field,
)
from osteomorph.foreground import foreground
from osteomorph.io import read_labels
from osteomorph.plan import Plan, SoftPlan, Weights
from osteomorph.polyrigid import Polyrigid, from_labels
from osteomorph.pose import BonePose
from osteomorph.prepare import prepare
from osteomorph.recipes import default, penalty
from osteomorph.registration import register
from osteomorph.threads import threads
from osteomorph.transforms import Displacement, Rigid, Transform

COLUMNS = ("pair", "method", "role", "labels", *FIGURES, "cpu_s")
SHOWN = {name: shown for name, shown in table.SHOWN.items() if name in COLUMNS}
START = Rigid.identity()
AROUND_MM = 8.0
"""By which a field reaches beyond the fixed field of view."""


@final
class Steps:
    """The method's parts on one pair, each computed when it is first asked for, with the CPU seconds it took."""

    def __init__(self, given: Case, plan: Plan) -> None:
        self.given, self.plan = given, plan
        self.spent: dict[str, float] = {}

    @contextmanager
    def clock(self, part: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.spent[part] = time.process_time() - began

    @cached_property
    def prepared(self) -> Case:
        with self.clock("prepare"):
            case = prepare(self.given, self.plan.prepare)
            return replace(case, fixed_mask=foreground(case.fixed))

    @cached_property
    def dense(self) -> Transform:
        prepared = self.prepared
        with self.clock("guess"):
            return dense_guess(self.given, replace(prepared, fixed_mask=None), START, self.plan, self.plan.seed, None)

    @cached_property
    def first(self) -> dict[int, Rigid]:
        assert self.given.moving_labels is not None
        ids = tuple(self.given.moving_labels.ids())
        return first_poses(self.dense, START, self.prepared, sides_of(ids, "moving", self.prepared), self.plan.guess_mm)

    @cached_property
    def refined(self) -> dict[int, BonePose]:
        first, prepared = self.first, self.prepared
        with self.clock("poses"):
            return refined_poses(prepared, first, self.plan, sides_of(tuple(first), "moving", prepared), None)

    @cached_property
    def base(self) -> Polyrigid:
        refined = self.refined
        with self.clock("bones"):
            return build_base(refined, None, self.given.moving_labels, "moving", self.plan.prepare.spacing_mm)

    def with_margin(self, voxels: float) -> Polyrigid:
        poses = {label: bone.pose for label, bone in self.refined.items()}
        return from_labels(poses, moving=self.given.moving_labels, margin_mm=voxels * self.plan.prepare.spacing_mm)

    def co_moving(self, base: Polyrigid) -> Displacement:
        return relative_field(base, START, self.prepared.fixed.grid)

    def other(self, build: Callable[..., Displacement]) -> Displacement:
        """A field of `blends`, on the prepared fixed grid and a little around it."""
        grid = self.prepared.fixed.grid
        margin = [int(-(-AROUND_MM // h)) for h in grid.spacing_mm]
        return build(self.base, grid.padded((margin[0], margin[1], margin[2])))

    def around(self, base: Polyrigid, field: Displacement, soft: SoftPlan | None = None) -> tuple[Transform, Transform]:
        """The field after the soft stage around a base's regions, and its inverse."""
        plan = self.plan.soft if soft is None else soft
        psi, _ = soft_around(self.prepared, base, field, START, self.dense, plan, self.plan.seed, None)
        flow = psi if isinstance(psi, Displacement) else psi.flow
        stored = stored_field(flow, field, self.prepared.fixed.grid)
        return stored, psi.inverse().after(field.inverse())


Variant = Callable[[Steps], tuple[Transform, Transform | None]]


def plain(plan: Plan) -> Variant:
    """A registration without exact bones."""

    def run(steps: Steps) -> tuple[Transform, Transform | None]:
        with_labels = plan.refine.weights.rigidity > 0
        labels = steps.given.moving_labels if with_labels else None
        found = register(steps.given.fixed, steps.given.moving, moving_labels=labels, plan=plan, initial="none")
        return found.stored, found.stored_inverse

    return run


def soft_only(weights: dict[str, float]) -> Variant:
    def run(steps: Steps) -> tuple[Transform, Transform | None]:
        plan = steps.plan.soft
        changed = plan.model_copy(update={"weights": plan.weights.model_copy(update=weights)})
        return steps.around(steps.base, steps.co_moving(steps.base), changed)

    return run


def filled(build: Callable[..., Displacement]) -> Variant:
    return lambda steps: steps.around(steps.base, steps.other(build))


def margin(voxels: float) -> Variant:
    def run(steps: Steps) -> tuple[Transform, Transform | None]:
        base = steps.with_margin(voxels)
        return steps.around(base, steps.co_moving(base))

    return run


def one_shot(steps: Steps) -> tuple[Transform, Transform | None]:
    base = from_labels(steps.first, moving=steps.given.moving_labels, margin_mm=2 * steps.plan.prepare.spacing_mm)
    return steps.co_moving(base), steps.co_moving(base).inverse()


def gauss_newton(steps: Steps) -> tuple[Transform, Transform | None]:
    field = steps.co_moving(steps.base)
    return field, field.inverse()


def ours(steps: Steps) -> tuple[Transform, Transform | None]:
    return steps.around(steps.base, steps.co_moving(steps.base))


def no_bones() -> Plan:
    base = penalty()
    rest: Weights = base.refine.weights.model_copy(update={"rigidity": 0.0, "dice": 0.0})
    return base.model_copy(update={"name": "no bones", "refine": base.refine.model_copy(update={"weights": rest})})


GROUPS: dict[str, dict[str, Variant]] = {
    "bones": {
        "no bones": plain(no_bones()),
        "penalty": plain(penalty()),
        "plain blend": filled(blended),
        "stationary log-Euclidean": filled(log_euclidean),
        "co-moving (ours)": ours,
    },
    "margin": {
        "margin 0 voxels": margin(0),
        "margin 1 voxel": margin(1),
        "co-moving (ours)": ours,
        "margin 3 voxels": margin(3),
    },
    "soft": {
        "soft: mutual information": soft_only({"mind": 0.0}),
        "soft: MIND": soft_only({"mutual_information": 0.0}),
        "co-moving (ours)": ours,
    },
    "stages": {
        "guess + Procrustes": one_shot,
        "+ Gauss-Newton poses": gauss_newton,
        "co-moving (ours)": ours,
    },
}
"""Group -> variants by name; in ours the margin is 2 voxels and the soft stage has both terms."""

SHARED = {"guess + Procrustes": ("prepare", "guess"), "no bones": (), "penalty": ()}
"""Parts of `Steps` that a variant needs; all of them by default."""


def measured(name: str, variant: Variant, steps: Steps, known: Known) -> dict[str, str]:
    parts = SHARED.get(name, ("prepare", "guess", "poses", "bones"))
    if parts:
        _ = steps.first if len(parts) == 2 else steps.base
    began = time.process_time()
    transform, inverse = variant(steps)
    spent = time.process_time() - began + sum(steps.spent[part] for part in parts)
    found = figures(transform, known, inverse)
    return {**{key: f"{value:.6g}" for key, value in found.items()}, "cpu_s": f"{spent:.4g}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="*", help="pattern of the pairs to run, as SET/pairNNN")
    parser.add_argument(
        "--labels", choices=("exact", "observed"), default="exact", help="moving labels: exact, or as segmented"
    )
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    wanted = options.groups.split(",")
    unknown = sorted(set(wanted) - set(GROUPS))
    if unknown:
        parser.error(f"There is no group {unknown[0]!r}. Choose from {', '.join(GROUPS)}.")
    found = sorted(path.parent for path in options.pairs.rglob("pair.json"))
    pairs = [path for path in found if path.relative_to(options.pairs).match(options.only)]
    if not pairs:
        parser.error(f"No pair matches {options.only} in {options.pairs}. Make some with peers/pairs.py.")
    rows = table.read(options.out) if options.out.exists() else []
    labels = f"moving, {options.labels}"
    for path in pairs:
        name = path.relative_to(options.pairs).as_posix()
        done = {row["method"] for row in rows if row["pair"] == name and row["labels"] == labels}
        to_do = {v: run for group in wanted for v, run in GROUPS[group].items() if v not in done}
        if not to_do:
            continue
        known = read_known(path)
        moving = "moving_labels" if options.labels == "exact" else "moving_labels_observed"
        given = Case(known.case.fixed, known.case.moving, None, read_labels(path / f"{moving}.nii.gz", known.case.moving.grid))
        steps = Steps(given, default())
        with threads(options.threads):
            for variant, run in to_do.items():
                new = {"pair": name, "method": variant, "role": "variant", "labels": labels}
                new |= measured(variant, run, steps, known)
                rows.append(new)
                table.write(options.out, rows, COLUMNS)
                print(
                    name,
                    variant,
                    *(f"{key} {new[key]}" for key in ("bone_mm", "soft_mm", "cpu_s")),
                    file=sys.stderr,
                    flush=True,
                )
    for group in wanted:
        own = [row for row in rows if row["method"] in GROUPS[group] and row["labels"] == labels]
        print(f"\n{group}, medians (worst) over {len({row['pair'] for row in own})} pairs\n")
        print(table.markdown(own, SHOWN))


if __name__ == "__main__":
    main()
