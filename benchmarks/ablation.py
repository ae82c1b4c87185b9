"""What each part of the method is worth: one part changed at a time, on pairs with known truth.

    python benchmarks/ablation.py --pairs DIR --out ablation.csv [--only 'lumbar-*/*' ...] [--labels exact|observed]
                                  [--groups bones,margin,soft,stages,search] [--off 0]

Pairs are those of benchmarks/peers/pairs.py (aligned already); the method is given the moving labels. Every row is the path of
`register` (osteomorph.exact_path), with another plan or with one step replaced. Groups:

bones   no bones (the soft field of the penalty recipe without penalty), penalty (the recipe), then the same poses and the
        same soft stage around three ways to move what lies between: a plain blend of displacements, a stationary
        log-Euclidean flow (Arsigny 2009, weights that do not move), co-moving weights (this package)
margin  co-moving, with 0 to 3 voxels of tissue that move with a bone
soft    the soft stage on mutual information, on MIND, on both (the weights of the default recipe, with the other one 0);
        without the mean with the search's field, with that field as the search leaves it, and linear steps without a descent
stages  poses read off the wide search, after two steps as in one shot, after Gauss-Newton, and with the soft field
search  what the wide search compares (nothing: no search; MIND; the shipped network's features; those, then MIND), each with
        poses and soft tissue then optimised on the images, and in one shot

--off: mm and degrees by which the start is turned and shifted about the bones' middle, as in capture.py; 0 for none.
A variant that occurs in two groups is run once, and a row that the CSV holds is not run again. CPU seconds are those of a
variant's steps in this process, without reading and writing files; a search or poses that variants share are timed once and
counted for each. folding_percent is that of the field at voxel centres.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

from blends import blended, log_euclidean
from capture import off
from peers import table
from peers.metrics import FIGURES, Known, figures, read_known

from osteomorph.case import Case
from osteomorph.clock import Clock
from osteomorph.exact_bones import AROUND_MM, dense_guess
from osteomorph.exact_path import Options, exact_path
from osteomorph.geometry import Grid
from osteomorph.io import read_labels
from osteomorph.plan import DiscreteLevel, DiscretePlan, Plan, Weights
from osteomorph.polyrigid import Polyrigid
from osteomorph.pose import BonePose
from osteomorph.prepare import prepare
from osteomorph.recipes import SEARCH, default, not_optimised, penalty
from osteomorph.registration import register
from osteomorph.threads import threads
from osteomorph.transforms import Displacement, Rigid, Transform

COLUMNS = ("pair", "method", "role", "labels", "off", *FIGURES, "cpu_s")
SHOWN = {name: shown for name, shown in table.SHOWN.items() if name in COLUMNS}
OURS = "co-moving (ours)"
DENSE = ("prepare", "discrete", "guess", "guess_mm", "seed")
"""Parts of a plan that decide its wide search; with ``pose`` the poses."""


@final
class Pair:
    """A pair under a start, with the searches and poses that variants share and the CPU seconds these took."""

    def __init__(self, given: Case, start: Rigid) -> None:
        assert given.moving_labels is not None
        self.given, self.start, self.ids = given, start, tuple(given.moving_labels.ids())
        self.dense: dict[str, tuple[Transform, float]] = {}
        self.poses: dict[str, tuple[Mapping[int, BonePose], float]] = {}

    @cached_property
    def prepared(self) -> tuple[Case, float]:
        began = time.process_time()
        return prepare(self.given, default().prepare), time.process_time() - began

    def path(self, plan: Plan, options: Options) -> tuple[Transform, float]:
        """The transform as files hold it, and CPU seconds."""
        searched, posed = (str(plan.model_dump(include={*DENSE, *more})) for more in ((), ("pose",)))
        if searched not in self.dense:
            self.dense[searched] = self._guess(plan)
        dense, spent_dense = self.dense[searched]
        poses, spent_poses = self.poses.get(posed, (None, 0.0))
        prepared, spent = self.prepared
        clock = Clock(None, time.process_time)
        given = replace(options, poses=poses)
        found = exact_path(self.given, prepared, self.start, dense, plan, self.ids, "moving", clock, given)
        if found is None:
            raise ValueError("No bone lies in both fields of view.")
        self.poses.setdefault(posed, (found.exact.poses, clock.seconds["poses"]))
        return self.start.after(found.warp), spent + spent_dense + spent_poses + sum(clock.seconds.values())

    def _guess(self, plan: Plan) -> tuple[Transform, float]:
        began = time.process_time()
        return dense_guess(self.given, self.prepared[0], self.start, plan, plan.seed, None), time.process_time() - began


@final
@dataclass(frozen=True)
class Exact:
    """A plan of exact bones, and steps that are done otherwise."""

    plan: Plan = field(default_factory=default)
    options: Options = field(default_factory=Options)

    def __call__(self, pair: Pair) -> tuple[Transform, float]:
        return pair.path(self.plan, self.options)


@final
@dataclass(frozen=True)
class Plain:
    """A registration without exact bones. It is given the labels where its plan has a penalty."""

    plan: Plan

    def __call__(self, pair: Pair) -> tuple[Transform, float]:
        labels = pair.given.moving_labels if self.plan.refine.weights.rigidity > 0 else None
        began = time.process_time()
        case = pair.given
        found = register(case.fixed, case.moving, moving_labels=labels, plan=self.plan, initial=pair.start)
        return found.stored, time.process_time() - began


def still(pair: Pair) -> tuple[Transform, float]:
    """The start alone."""
    return pair.start, 0.0


Variant = Callable[[Pair], tuple[Transform, float]]


def no_bones() -> Plan:
    base = penalty()
    rest: Weights = base.refine.weights.model_copy(update={"rigidity": 0.0, "dice": 0.0})
    return base.model_copy(update={"name": "no bones", "refine": base.refine.model_copy(update={"weights": rest})})


def filled(build: Callable[[Polyrigid, Grid], Displacement]) -> Exact:
    """A field of `blends` between the bones, around the grid as far as ours reaches."""

    def between(base: Polyrigid, start: Rigid, grid: Grid) -> Displacement:
        margin = [int(-(-AROUND_MM // h)) for h in grid.spacing_mm]
        around = grid.padded((margin[0], margin[1], margin[2]))
        points = around.points().double().flatten(1)
        there = points + build(base, around).vectors.flatten(1)
        return Displacement((start.inverse()(there) - points).float().unflatten(1, around.shape), around)

    return Exact(options=Options(between=between))


def soft(**update: Any) -> Exact:
    """Other settings of the soft stage."""
    plan = default()
    return Exact(plan.model_copy(update={"soft": plan.soft.model_copy(update=update)}))


def soft_weights(**weights: float) -> Exact:
    return soft(weights=default().soft.weights.model_copy(update=weights))


def poses_only(**pose: int) -> Exact:
    """Poses as in one shot, but for what is given, and no soft stage."""
    plan = soft(levels=(), newton=()).plan
    return Exact(plan.model_copy(update={"pose": not_optimised(plan).pose.model_copy(update=pose)}))


NETWORK = DiscretePlan(levels=(DiscreteLevel(features="network", spacing_mm=4.0, stride=1, reach_mm=24.0),))
MIND = DiscretePlan(
    levels=(
        DiscreteLevel(spacing_mm=5.0, reach_mm=30.0, rigid=True),
        DiscreteLevel(spacing_mm=5.0, reach_mm=15.0, rigid=True),
        DiscreteLevel(spacing_mm=4.0, reach_mm=8.0, stride=3),
        DiscreteLevel(spacing_mm=2.0, reach_mm=6.0, stride=3),
        DiscreteLevel(spacing_mm=2.0, reach_mm=4.0, stride=3),
    ),
)
SEARCHES = {"no search": DiscretePlan(), "MIND": MIND, "network": NETWORK, "network, then MIND": SEARCH}


def optimised(discrete: DiscretePlan) -> Exact:
    return Exact(default().model_copy(update={"discrete": discrete}))


def one_shot(discrete: DiscretePlan) -> Exact:
    return Exact(not_optimised(default()).model_copy(update={"discrete": discrete}))


GROUPS: dict[str, dict[str, Variant]] = {
    "bones": {
        "no bones": Plain(no_bones()),
        "penalty": Plain(penalty()),
        "plain blend": filled(blended),
        "stationary log-Euclidean": filled(log_euclidean),
        OURS: Exact(),
    },
    "margin": {
        "margin 0 voxels": Exact(options=Options(margin_voxels=0.0)),
        "margin 1 voxel": Exact(options=Options(margin_voxels=1.0)),
        OURS: Exact(),
        "margin 3 voxels": Exact(options=Options(margin_voxels=3.0)),
    },
    "soft": {
        "soft: mutual information": soft_weights(mind=0.0),
        "soft: MIND": soft_weights(mutual_information=0.0),
        "soft: without the search's field": soft(agree_mm=0.0),
        "soft: the search's field as it is": soft(newton=()),
        "soft: linear steps alone": soft(levels=(), begin="guess"),
        OURS: Exact(),
    },
    "stages": {
        "search + Procrustes": poses_only(iterations=0),
        "+ two steps": poses_only(iterations=1),
        "+ Gauss-Newton poses": soft(levels=(), newton=()),
        OURS: Exact(),
    },
    "search": {
        "start": still,
        **{f"{name}, one shot": one_shot(search) for name, search in SEARCHES.items() if search.levels},
        **{f"{name}, optimised": optimised(search) for name, search in SEARCHES.items() if search is not SEARCH},
        OURS: Exact(),
    },
}
"""Group -> variants by name; in ours the margin is 2 voxels, the search on the network's features, then MIND, and the soft
stage has both terms."""


def measured(variant: Variant, pair: Pair, known: Known) -> dict[str, str]:
    transform, spent = variant(pair)
    return {key: f"{value:.6g}" for key, value in figures(transform, known).items()} | {"cpu_s": f"{spent:.4g}"}


def start_of(known: Known, amount: float, number: int) -> Rigid:
    labels = known.case.fixed_labels
    if amount == 0 or labels is None:
        return Rigid.identity()
    points = {k: labels.grid.world((labels.data[0] == k).nonzero().T.double())[:, ::7] for k in labels.ids()}
    return off(points, amount, (number, round(amount)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of the pairs to run, as SET/pairNNN")
    parser.add_argument(
        "--labels", choices=("exact", "observed"), default="exact", help="moving labels: exact, or as segmented"
    )
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--off", type=float, default=0.0, help="mm and degrees")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    wanted = options.groups.split(",")
    unknown = sorted(set(wanted) - set(GROUPS))
    if unknown:
        parser.error(f"There is no group {unknown[0]!r}. Choose from {', '.join(GROUPS)}.")
    found = sorted(path.parent for path in options.pairs.rglob("pair.json"))
    pairs = [path for path in found if any(path.relative_to(options.pairs).match(pattern) for pattern in options.only)]
    if not pairs:
        parser.error(f"No pair matches {' '.join(options.only)} in {options.pairs}. Make some with peers/pairs.py.")
    rows = table.read(options.out) if options.out.exists() else []
    same = {"labels": f"moving, {options.labels}", "off": f"{options.off:g}"}
    for path in pairs:
        name = path.relative_to(options.pairs).as_posix()
        done = {row["method"] for row in rows if row["pair"] == name and all(row[k] == v for k, v in same.items())}
        to_do = {v: run for group in wanted for v, run in GROUPS[group].items() if v not in done}
        if not to_do:
            continue
        known = read_known(path)
        moving = "moving_labels" if options.labels == "exact" else "moving_labels_observed"
        given = Case(known.case.fixed, known.case.moving, None, read_labels(path / f"{moving}.nii.gz", known.case.moving.grid))
        pair = Pair(given, start_of(known, options.off, found.index(path)))
        with threads(options.threads):
            for variant, run in to_do.items():
                new = {"pair": name, "method": variant, "role": "variant", **same, **measured(run, pair, known)}
                rows.append(new)
                table.write(options.out, rows, COLUMNS)
                shown = (f"{key} {new[key]}" for key in ("bone_mm", "soft_mm", "cpu_s"))
                print(name, variant, *shown, file=sys.stderr, flush=True)
    for group in wanted:
        own = [row for row in rows if row["method"] in GROUPS[group] and all(row[k] == v for k, v in same.items())]
        print(f"\n{group}, medians (worst) over {len({row['pair'] for row in own})} pairs\n")
        print(table.markdown(own, SHOWN))


if __name__ == "__main__":
    main()
