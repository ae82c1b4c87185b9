import pytest
import torch
from test_refine import pair

from osteomorph.errors import InputError
from osteomorph.plan import Plan
from osteomorph.recipes import recipe, recipe_names
from osteomorph.refine import refine


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_steps_once(name):
    plan = recipe(name)
    assert plan.name == name
    case, _ = pair()
    levels = tuple(level.model_copy(update={"iterations": 1}) for level in plan.refine.levels)
    warp, history = refine(case, plan.refine.model_copy(update={"levels": levels}))
    assert torch.isfinite(warp.vectors).all()
    assert len(history) == len(levels)


def test_thesis_weights_are_those_of_equations_4_7_to_4_10():
    assert {
        n: recipe(n).refine.weights.model_dump(exclude_defaults=True) for n in recipe_names() if n.startswith("thesis")
    } == {
        "thesis-us": {"mutual_information": 1.0, "diffusion": 2.0},
        "thesis-us-rp": {"mutual_information": 1.0, "diffusion": 2.0, "rigidity": 0.2},
        "thesis-ws": {"mutual_information": 0.5, "dice": 0.5, "diffusion": 2.0},
        "thesis-ws-rp": {"mutual_information": 0.5, "dice": 0.5, "diffusion": 2.0, "rigidity": 0.4},
    }
    assert recipe("thesis-us").prepare.shape == (320, 320, 96)
    assert recipe("thesis-us").refine.bins == 24
    assert not recipe("thesis-us").refine.foreground


def test_plans_are_read_from_toml_and_json(tmp_path):
    level = "[[refine.levels]]\ncontrol_mm = 9\niterations = 3\nstep_mm = 0.5\n"
    (tmp_path / "a.toml").write_text('name = "mine"\n[prepare]\nspacing_mm = 1.5\n' + level)
    plan = Plan.read(tmp_path / "a.toml")
    assert (plan.name, plan.prepare.spacing_mm, plan.refine.levels[0].control_mm) == ("mine", 1.5, 9)
    (tmp_path / "b.json").write_text(plan.model_dump_json())
    assert Plan.read(tmp_path / "b.json") == plan
    assert Plan.read(tmp_path / "b.json").digest() == plan.digest() != recipe("default").digest()


@pytest.mark.parametrize(
    ("text", "says"),
    [("spacing = 2", "spacing"), ("[prepare]\nspacing_mm = -1", "prepare.spacing_mm"), ("not toml", "not a readable plan")],
)
def test_bad_plans_say_where(tmp_path, text, says):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(InputError, match=says):
        Plan.read(tmp_path / "bad.toml")


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(InputError, match="thesis-ws-rp"):
        recipe("nope")
