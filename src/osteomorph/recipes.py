"""Recipes: functions that return a Plan. To add a variant, add a function."""

from collections.abc import Callable

from osteomorph.errors import InputError
from osteomorph.plan import (
    DiscreteLevel,
    DiscretePlan,
    InitialisePlan,
    Level,
    NewtonLevel,
    Plan,
    PosePlan,
    PreparePlan,
    RefinePlan,
    SoftPlan,
    Weights,
)

THESIS_LEVELS = (
    Level(control_mm=16, iterations=60, step_mm=1.0, samples=150_000, smooth_mm=2.0),
    Level(control_mm=8, iterations=60, step_mm=0.5, samples=300_000, smooth_mm=1.0),
    Level(control_mm=4, iterations=60, step_mm=0.25, samples=1_000_000),
)


SEARCH = DiscretePlan(
    levels=(
        DiscreteLevel(features="network", spacing_mm=8.0, stride=1, reach_mm=24.0, rigid=True),
        DiscreteLevel(features="network", spacing_mm=8.0, stride=1, reach_mm=16.0, rigid=True),
        DiscreteLevel(features="network", spacing_mm=4.0, stride=3, reach_mm=8.0),
        DiscreteLevel(spacing_mm=2.0, stride=3, reach_mm=4.0, both_ways=False),
    ),
)
"""The wide search: the network's features from far off, then MIND-SSC."""


def default() -> Plan:
    """What `register` runs: every bone exactly rigid, a soft field around them; without bones the field of ``penalty``."""
    return penalty().model_copy(
        update={
            "name": "default",
            "prepare": PreparePlan(most_voxels=16_000_000),
            "initialise": InitialisePlan(spacings_mm=(8.0, 4.0)),
            "bones": "exact",
            "discrete": SEARCH,
            "pose": PosePlan(spacings_mm=(2.0, 1.0), search_deg=0.0),
            "soft": SoftPlan(
                ramp_mm=10.0,
                lattice_mm=5.0,
                bins=48,
                gain_mm=15.0,
                agree_mm=2.0,
                newton=(NewtonLevel(), NewtonLevel(spacing_mm=1.5, control_mm=12.0, bending=5.0)),
                levels=(
                    Level(control_mm=28, iterations=25, step_mm=0.8, smooth_mm=2.5, bending_factor=16.0, mind_factor=0.25),
                    Level(control_mm=20, iterations=25, step_mm=0.5, smooth_mm=1.0, bending_factor=6.0, mind_factor=0.5),
                    Level(control_mm=10, iterations=25, step_mm=0.3, mind_factor=0.75),
                ),
                weights=Weights(mind=20.0, mutual_information=2.0, bending=100.0),
            ),
        }
    )


def one_shot() -> Plan:
    """``default`` without a descent: the network's features, matched by a search, and a few linear steps give poses and soft
    tissue's motion."""
    return not_optimised(default()).model_copy(update={"name": "one-shot"})


ONE_SHOT_POSE = {"spacings_mm": (2.0,), "extractions": 2, "iterations": 1, "search_mm": 0.0, "search_deg": 0.0}
"""Of a bone in one shot: from where the search says it is, two linear least-squares steps and no search of its own."""


ONE_SHOT_SOFT = (NewtonLevel(),)
"""Of soft tissue's field in one shot: a fixed number of linear least-squares steps."""


def not_optimised(plan: Plan) -> Plan:
    """A plan that keeps to what is found without a descent on the images: in one shot where bones are exact, else the
    rigid start, or the field of the weights."""
    out = plan.model_copy(update={"refine": plan.refine.model_copy(update={"levels": ()})})
    if plan.bones != "exact":
        return out
    parts = {
        "discrete": SEARCH,
        "guess": RefinePlan(),
        "pose": plan.pose.model_copy(update=ONE_SHOT_POSE),
        "soft": plan.soft.model_copy(update={"levels": (), "begin": "guess", "agree_mm": 0.0, "newton": ONE_SHOT_SOFT}),
    }
    return out.model_copy(update=parts)


def penalty() -> Plan:
    """MIND and mutual information on a B-spline field, bones held by the rigidity penalty."""
    return Plan(
        name="penalty",
        refine=RefinePlan(
            levels=(
                Level(control_mm=20, iterations=40, step_mm=1.2, smooth_mm=3.0, bending_factor=2.0),
                Level(control_mm=12, iterations=50, step_mm=0.6, smooth_mm=1.0, bending_factor=1.5),
                Level(control_mm=10, iterations=40, step_mm=0.3),
            ),
            weights=Weights(mind=60.0, mutual_information=1.0, dice=1.0, diffusion=0.5, bending=100.0, rigidity=2.0),
        ),
    )


def rigid() -> Plan:
    """The rigid start alone."""
    return Plan(name="rigid")


def diffeomorphic() -> Plan:
    """``penalty`` over a stationary velocity field: slower, invertible by construction."""
    base = penalty()
    return base.model_copy(update={"name": "diffeomorphic", "refine": base.refine.model_copy(update={"field": "velocity"})})


def _thesis(name: str, weights: Weights) -> Plan:
    return Plan(
        name=name,
        prepare=PreparePlan(spacing_mm=1.0, shape=(320, 320, 96), percentiles=(1.0, 99.0), clip=False),
        initialise=InitialisePlan(method="auto"),
        refine=RefinePlan(
            field_spacing_mm=1.0,
            levels=THESIS_LEVELS,
            weights=weights,
            foreground=False,
            bins=24,
            kernel="gaussian",
            rigid_frame="moving",
        ),
    )


def thesis_us() -> Plan:
    """Equation 4.7 for one pair: mutual information and diffusion."""
    return _thesis("thesis-us", Weights(mutual_information=1.0, diffusion=2.0))


def thesis_us_rp() -> Plan:
    """Equation 4.9: the same with the rigidity penalty."""
    return _thesis("thesis-us-rp", Weights(mutual_information=1.0, diffusion=2.0, rigidity=0.2))


def thesis_ws() -> Plan:
    """Equation 4.8: half mutual information, half Dice, and diffusion."""
    return _thesis("thesis-ws", Weights(mutual_information=0.5, dice=0.5, diffusion=2.0))


def thesis_ws_rp() -> Plan:
    """Equation 4.10: the same with the rigidity penalty."""
    return _thesis("thesis-ws-rp", Weights(mutual_information=0.5, dice=0.5, diffusion=2.0, rigidity=0.4))


_RECIPES: dict[str, Callable[[], Plan]] = {
    function.__name__.replace("_", "-"): function
    for function in (default, one_shot, penalty, rigid, diffeomorphic, thesis_us, thesis_us_rp, thesis_ws, thesis_ws_rp)
}


def recipe_names() -> list[str]:
    return list(_RECIPES)


def recipe(name: str) -> Plan:
    """The plan of that name."""
    if name not in _RECIPES:
        raise InputError(f"There is no recipe {name!r}. Use one of {', '.join(_RECIPES)}, or give a TOML or JSON file.")
    return _RECIPES[name]()
