"""A study does each unit once, goes on where it stopped, and tells what was shown from the data."""

import numpy as np
import pytest
from typer.testing import CliRunner

from osteomorph.cli import app
from osteomorph.errors import InputError
from osteomorph.recipes import recipe
from osteomorph.simulate.subjects import procedural
from osteomorph.study import Unit, claim, digests, duration, run_units, seconds_of
from osteomorph.study_arms import LABELS, SIZES, Arm, Context, coarser, lumbar_patients, study_plan, with_weights
from osteomorph.study_effects import folding_falls, thesis_effects
from osteomorph.study_figures import example_pairs
from osteomorph.study_questions import QUESTIONS, question_units
from osteomorph.study_thesis import METHODS, THESIS_TABLE, beside_thesis, sweep_arms, sweep_values, thesis_units


# -- units --------------------------------------------------------------------------------------------------------------------
def chain(log, middle=1):
    def does(name):
        return lambda progress: log.append(name)

    return [
        Unit("a/one", does("a")),
        Unit("b/one", does("b"), {"value": middle}, ("a/one",)),
        Unit("c/one", does("c"), needs=("b/one",)),
        Unit("c/two", does("other"), needs=("a/one",)),
    ]


def test_every_unit_runs_once(tmp_path):
    log, said = [], []
    assert run_units(tmp_path, chain(log), say=said.append) == ["a/one", "b/one", "c/one", "c/two"]
    assert run_units(tmp_path, chain(log)) == []
    assert log == ["a", "b", "c", "other"]
    assert set(seconds_of(tmp_path)) == {"a/one", "b/one", "c/one", "c/two"}
    assert "1 of 4 units, about" in said[0]
    assert said[-1].endswith("4 of 4 units")


def test_other_settings_are_done_again_with_all_that_needs_them(tmp_path):
    log = []
    run_units(tmp_path, chain(log))
    log.clear()
    run_units(tmp_path, chain(log, middle=2))
    assert log == ["b", "c"]


def test_an_interrupted_study_goes_on(tmp_path):
    log = []

    def stop(progress):
        raise KeyboardInterrupt

    units = chain(log)
    with pytest.raises(KeyboardInterrupt):
        run_units(tmp_path, [units[0], Unit("b/one", stop, {"value": 1}, ("a/one",)), *units[2:]])
    run_units(tmp_path, units)
    assert log == ["a", "b", "c", "other"]


def test_a_torn_mark_is_no_mark(tmp_path):
    log = []
    run_units(tmp_path, chain(log))
    (tmp_path / "done" / "c" / "two.json").write_text("{", encoding="utf-8")
    log.clear()
    units = chain(log)
    assert run_units(tmp_path, units) == ["c/two"]


def test_only_one_step(tmp_path):
    log = []
    with pytest.raises(InputError, match="b/one needs a/one, which is not done"):
        run_units(tmp_path, chain(log), only="b")
    assert run_units(tmp_path, chain(log), only="a") == ["a/one"]
    assert run_units(tmp_path, chain(log), only="b") == ["b/one"]
    with pytest.raises(InputError, match="no step 'x'"):
        run_units(tmp_path, chain(log), only="x")


def test_units_out_of_order_are_refused():
    with pytest.raises(ValueError, match="c/two"):
        digests(list(reversed(chain([]))))


def test_a_folder_belongs_to_one_study(tmp_path):
    claim(tmp_path / "s", {"study": "thesis", "seed": 1})
    claim(tmp_path / "s", {"study": "thesis", "seed": 1})
    with pytest.raises(InputError, match="another study \\(seed 1\\)"):
        claim(tmp_path / "s", {"study": "thesis", "seed": 2})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    with pytest.raises(InputError, match="is no study"):
        claim(tmp_path / "other", {})


def test_durations_read_well():
    assert [duration(s) for s in (0.4, 59.6, 200.0, 7500.0)] == ["0 s", "1 min 0 s", "3 min 20 s", "2 h 05 min"]


# -- what studies are made of -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("study", ["thesis", *QUESTIONS])
def test_every_study_of_every_size_is_in_order(study, size, tmp_path):
    context = Context(tmp_path, SIZES[size])
    units = thesis_units(context) if study == "thesis" else question_units(context, study)
    assert len(digests(units)) == len(units)
    assert units[-1].step == "report"
    trained = sum(unit.step in ("train", "sweep") for unit in units)
    assert trained == sum(unit.step == "evaluate" and "fold" in unit.name for unit in units)
    if study == "thesis":
        assert trained == 4 * SIZES[size].folds + len(SIZES[size].sweep) - 1


def test_plans_are_the_recipes_at_another_size():
    plan = study_plan("thesis-ws-rp", SIZES["small"])
    assert (plan.prepare.spacing_mm, plan.prepare.shape) == (2.0, (48, 64, 32))
    assert plan.initialise.labels == (24,)
    assert (plan.refine.weights.rigidity, plan.refine.weights.diffusion) == (0.4, 0.2)  # for a motion three times as large
    full = study_plan("thesis-us", SIZES["full"])
    assert (full.prepare.shape, full.train.epochs, full.train.learning_rate) == ((320, 320, 96), 1000, 4e-4)
    assert full.refine.weights == recipe("thesis-us").refine.weights
    assert with_weights(full, diffusion=0.1).refine.weights.mutual_information == 1.0
    assert coarser(plan, 2).prepare.shape == (24, 32, 16)
    with pytest.raises(InputError, match="multiple of 5"):
        coarser(plan, 5)


def test_sweep_leaves_out_the_variants_weight(tmp_path):
    arms = sweep_arms(Context(tmp_path, SIZES["small"]))
    assert [arm.plan.refine.weights.diffusion for arm in arms] == [0.01, 1.0]


def test_patients_have_l3_to_l5_whole():
    """Of seed 1, patient 13 as first drawn has four lumbar vertebrae, and L2 to L4 in the view."""
    assert procedural("lumbar", 1)(13).anatomy.views["lumbar"].labelled != LABELS
    subject = lumbar_patients(1)
    assert all(subject(n).anatomy.views["lumbar"].labelled == LABELS for n in (0, 13))
    assert subject(0).record == procedural("lumbar", 1)(0).record


# -- what the data show -------------------------------------------------------------------------------------------------------
def rows_with(dice, det_sd, pairs=9):
    """Rows of fold 0; a little noise so that no two pairs are alike."""
    noise = np.random.default_rng(0).normal(size=pairs) * 1e-3
    rows = []
    for method in METHODS:
        for pair in range(pairs):
            same = {"pair": f"p{pair}", "method": method, "fold": 0, "folding_percent": 0.1}
            values = {"dice": dice[method] + noise[pair], "det_sd": det_sd[method] * (1 + 10 * noise[pair])}
            rows.append({**same, **values, "bone": "L5", "label": 24, "role": "labelled"})
            rows.append({**same, **values, "bone": "L5+L4+L3", "label": 0, "role": "pooled"})
    return rows


SWEEP = {gamma: {f"p{n}": 10 / gamma + 0.1 * n for n in range(9)} for gamma in (0.1, 1.0, 10.0)}
FOUND = (
    dict(zip(METHODS, (0.95, 0.92, 0.921, 0.97, 0.969), strict=True)),
    dict(zip(METHODS, (0.0, 0.1, 0.025, 0.15, 0.02), strict=True)),
)


def test_effects_of_the_thesis_are_found_where_they_are():
    effects = thesis_effects(rows_with(*FOUND), SWEEP)
    assert [effect.verdict for effect in effects] == ["shown"] * 8
    assert "ratio of SDs, median 4.00" in effects[2].evidence


def test_effects_are_not_found_where_they_are_not():
    dice, det_sd = dict.fromkeys(METHODS, 0.9), dict.fromkeys(METHODS, 0.05)
    flat = {gamma: dict.fromkeys((f"p{n}" for n in range(9)), 0.0) for gamma in SWEEP}
    assert [effect.shown for effect in thesis_effects(rows_with(dice, det_sd), flat)] == [
        *(False, False),
        *(False, True),  # Dice is equal: all are
        *(False, True),
        *(False, False),
    ]
    worse = {**FOUND[0], "WS-RP": 0.90}
    assert [e.shown for e in thesis_effects(rows_with(worse, FOUND[1]), SWEEP)[4:6]] == [True, False]  # it costs Dice


def test_too_few_pairs_cannot_tell():
    few = {gamma: {"p0": 1.0} for gamma in SWEEP}
    assert [effect.shown for effect in thesis_effects(rows_with(*FOUND, pairs=3), few)] == [None] * 8


def test_rising_folding_is_no_fall():
    rising = {1 / gamma: pairs for gamma, pairs in SWEEP.items()}
    assert folding_falls(SWEEP).shown is True
    assert folding_falls(rising).shown is False


def test_sweep_takes_the_unsupervised_model_of_fold_0():
    rows = rows_with(*FOUND, pairs=1)
    rows.append({"pair": "p0", "method": "US gamma1 0.5", "fold": 0, "role": "pooled", "gamma1": 0.5, "folding_percent": 3.0})
    rows.append({"pair": "p0", "method": "US", "fold": 1, "role": "pooled", "folding_percent": 9.0})
    assert sweep_values(rows, 2.0) == {2.0: {"p0": 0.1}, 0.5: {"p0": 3.0}}


def test_thesis_table_says_what_the_thesis_says():
    """Its abstract's figures: Dice .924 to .939, SD of det J .095 to .025 and .151 to .020."""
    at = {method: place for place, method in enumerate(METHODS)}
    pooled = {key: THESIS_TABLE[key, "pooled"] for key in ("dice", "det_sd")}
    assert (pooled["dice"][at["US"]][0], pooled["dice"][at["WS"]][0]) == (0.924, 0.939)
    assert [pooled["det_sd"][at[m]][0] for m in ("US", "US-RP", "WS", "WS-RP")] == [0.095, 0.025, 0.151, 0.020]
    assert "| DSC | L5 | 0.9" in beside_thesis(rows_with(*FOUND))


def test_examples_run_from_the_worst_to_the_best_start():
    rows = [
        {"pair": p, "method": "Rigid", "role": "pooled", "bone": "x", "dice": v}
        for p, v in zip("abcde", (3, 1, 5, 2, 4), strict=True)
    ]
    assert example_pairs(rows) == ["b", "a", "c"]
    assert example_pairs(rows[:1]) == ["a"]


def test_weights_of_arms_do_not_collide(tmp_path):
    context = Context(tmp_path, SIZES["small"])
    for study in QUESTIONS:
        paths = [arm.weights(context, f) for arm in QUESTIONS[study](context).arms for f in arm.folds]
        assert len(set(paths)) == len(paths)
    assert isinstance(QUESTIONS["width"](context).arms[0], Arm)


# -- the command --------------------------------------------------------------------------------------------------------------
def test_command_refuses_an_unknown_step_in_one_line(tmp_path):
    result = CliRunner().invoke(app, ["study", "thesis", "--size", "tiny", "-o", str(tmp_path / "s"), "--only", "nothing"])
    assert result.exit_code == 2
    assert "no step 'nothing'" in result.output


@pytest.mark.slow
def test_the_whole_study_runs_and_is_not_run_again(tmp_path):
    folder = tmp_path / "study"
    command = ["study", "thesis", "--size", "tiny", "-o", str(folder), "--threads", "1", "--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert all(f"figure-{number}.png" in report for number in ("3.1", "3.3", "3.5", "4.1", "4.2", "4.3"))
    assert "| DSC | L5+L4+L3 |" in report
    assert (folder / "table.tex").is_file()
    assert "everything was done already" in CliRunner().invoke(app, command).output
    weights = folder / "models" / "ws-fold0" / "weights.safetensors"
    again = ["evaluate", "-c", str(folder / "cohort"), "--weights", str(weights), "-o", str(tmp_path / "rows")]
    cohort = CliRunner().invoke(app, again)
    assert cohort.exit_code == 0, cohort.output
    mine = (tmp_path / "rows" / "rows.csv").read_text(encoding="utf-8").splitlines()[1].split(",")
    theirs = (folder / "rows" / "ws-fold0.csv").read_text(encoding="utf-8").splitlines()[1].split(",")
    assert mine[3:9] == theirs[3:9]
