"""Training: what is minimised, that it goes on to the same bits, and what it refuses before the first epoch."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_cohort import FOLD, GRID, SHAPE, small_cohort, small_pair, small_plan

from osteomorph import io
from osteomorph.carried import carried_pair
from osteomorph.cohort import Fold, read_cohort
from osteomorph.errors import InputError
from osteomorph.image import Labels
from osteomorph.network import UNet, load_network, warp
from osteomorph.plan import NetworkPlan, Weights
from osteomorph.regularity import diffusion
from osteomorph.similarity import mutual_information
from osteomorph.train import loss_of, train
from osteomorph.training_pairs import TrainingCase

TESTS = Path(__file__).parent

CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from small_cohort import small_plan
from osteomorph.cohort import read_cohort
from osteomorph.train import train
torch.set_num_threads(1)
def progress(stage, done, total):
    if (stage, done) == ("train", {kill_at}):
        os.kill(os.getpid(), signal.SIGKILL)
train(read_cohort(Path({cohort!r})), 0, small_plan({epochs}), Path({out!r}), progress=progress)
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return small_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    """Six epochs without a break."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained") / "out"
    return train(cohort, 0, small_plan(6), folder).parent


@pytest.fixture
def own(cohort, tmp_path):
    """A copy of the cohort that a test may spoil, and its manifest."""
    folder = tmp_path / "cohort"
    shutil.copytree(cohort.root, folder)
    return folder, json.loads((folder / "cohort.json").read_text())


def changed(own, change):
    folder, content = own
    change(content)
    (folder / "cohort.json").write_text(json.dumps(content))
    return read_cohort(folder)


def rows(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def same_weights(a, b):
    one, other = load_network(a)[0].state_dict(), load_network(b)[0].state_dict()
    return all(torch.equal(one[name], other[name]) for name in one)


# -- what comes out -------------------------------------------------------------------------------------------------------
def test_the_loss_falls_and_the_log_holds_every_term(trained):
    log = rows(trained)
    assert [row["epoch"] for row in log] == [str(n) for n in range(1, 7)]
    assert float(log[-1]["train_loss"]) < float(log[0]["train_loss"]) - 0.005
    weights = {"mutual_information": 0.5, "dice": 0.5, "diffusion": 0.2, "rigidity": 0.4}
    for part in ("train", "validation"):
        for row in log:
            total = sum(weight * float(row[f"{part}_{name}"]) for name, weight in weights.items())
            assert float(row[f"{part}_loss"]) == pytest.approx(total, abs=1e-6)


def test_the_first_loss_is_that_of_no_motion(cohort):
    """At zero weights in the last layer the terms are those of the carried images themselves."""
    plan = small_plan(weights=Weights(mutual_information=1.0, dice=2.0, diffusion=3.0))
    case = carried_pair(cohort, "p0", plan).case
    loss, values = loss_of(UNet(plan.network), TrainingCase.of(case), plan)
    information = float(mutual_information(case.fixed.data.flatten(), case.moving.data.flatten()))
    overlaps = []
    for label in (23, 24):
        one, other = ((labels.data == label).numpy() for labels in (case.fixed_labels, case.moving_labels))
        overlaps.append(2 * np.logical_and(one, other).sum() / (one.sum() + other.sum()))
    assert values["mutual_information"] == pytest.approx(-information, rel=1e-5)
    assert values["dice"] == pytest.approx(1 - np.mean(overlaps), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(-information + 2 * (1 - np.mean(overlaps)), rel=1e-5)


def test_the_loss_sees_the_networks_field(cohort):
    plan = small_plan(weights=Weights(mutual_information=1.0, diffusion=3.0))
    network, case = UNet(plan.network).eval(), carried_pair(cohort, "p0", plan).case
    torch.nn.init.normal_(network.last.weight, std=5.0)
    with torch.no_grad():
        field = warp(network, case)
        _, values = loss_of(network, TrainingCase.of(case), plan)
    assert values["diffusion"] == pytest.approx(float(diffusion(field.vectors, field.grid)), rel=1e-5)
    assert values["diffusion"] > 1e-5


def test_weights_are_those_of_the_best_epoch(trained, cohort):
    log = rows(trained)
    network, plan, about = load_network(trained / "weights.safetensors")
    losses = [float(row["validation_loss"]) for row in log]
    assert about["best_epoch"] == 1 + int(np.argmin(losses))
    with torch.no_grad():
        loss, _ = loss_of(network, TrainingCase.of(carried_pair(cohort, "p3", plan).case), plan)
    assert float(loss) == pytest.approx(min(losses), rel=1e-5)
    assert plan == small_plan(6)


def test_the_card_names_data_plan_and_limits(trained):
    card = (trained / "model_card.md").read_text()
    for word in ("3 pairs", "L4, L5", "0.4 x rigidity", "Seed 0", "Licence", "Limits", "validation_dice"):
        assert word in card
    assert {file.name for file in trained.iterdir()} == {
        "carried",
        "log.csv",
        "model_card.md",
        "train.json",
        "weights.safetensors",
    }


@pytest.mark.parametrize(
    "more",
    [{"bf16": True}, {"checkpointing": True}, {"channels_last": False}, {"network": NetworkPlan(channels=4, norm="group")}],
    ids=str,
)
def test_each_way_to_compute_trains(cohort, trained, tmp_path, more):
    path = train(cohort, 0, small_plan(2, **more), tmp_path / "out", cache=trained / "carried")
    log = rows(path.parent)
    assert float(log[1]["train_loss"]) < float(log[0]["train_loss"])
    if "network" not in more:
        assert float(log[0]["train_loss"]) == pytest.approx(float(rows(trained)[0]["train_loss"]), abs=2e-3)


def test_validation_may_come_less_often(cohort, trained, tmp_path):
    path = train(cohort, 0, small_plan(3, validate_every=2), tmp_path / "out", cache=trained / "carried")
    assert [bool(row["validation_loss"]) for row in rows(path.parent)] == [False, True, True]


# -- going on -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kill_at", [5, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_and_run_again_it_ends_in_the_same_bits(cohort, trained, tmp_path, kill_at):
    """Three steps an epoch: in the middle of the second, and at the end of the fourth before it is kept."""
    out = tmp_path / "out"
    shutil.copytree(trained / "carried", out / "carried")
    shutil.copy(trained / "train.json", out)
    code = CHILD.format(tests=str(TESTS), kill_at=kill_at, cohort=str(cohort.root), epochs=6, out=str(out))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert (out / "checkpoint.pt").is_file()
    assert not (out / "weights.safetensors").exists()
    told = []
    train(cohort, 0, small_plan(6), out, progress=lambda stage, done, total: told.append((stage, done)))
    assert ("train", kill_at // 3 * 3 - (3 if kill_at % 3 == 0 else 0)) == next(step for step in told if step[0] == "train")
    assert same_weights(out / "weights.safetensors", trained / "weights.safetensors")
    drop = {"seconds"}
    for here, there in zip(rows(out), rows(trained), strict=True):
        assert {k: v for k, v in here.items() if k not in drop} == {k: v for k, v in there.items() if k not in drop}


def test_a_finished_training_is_not_run_again(trained, cohort):
    before = (trained / "weights.safetensors").stat().st_mtime_ns
    stages = set()
    train(cohort, 0, small_plan(6), trained, progress=lambda stage, *_: stages.add(stage))
    assert (trained / "weights.safetensors").stat().st_mtime_ns == before
    assert not stages


def test_another_request_is_refused(trained, cohort, own, tmp_path):
    with pytest.raises(InputError, match="another seed"):
        train(cohort, 0, small_plan(6), trained, seed=1)
    with pytest.raises(InputError, match="another plan"):
        train(cohort, 0, small_plan(7), trained)
    with pytest.raises(InputError, match="another labels"):
        train(cohort, 0, small_plan(6), trained, observed=False)
    other = changed(own, lambda content: content["pairs"][0].update(patient="somebody"))
    with pytest.raises(InputError, match="another cohort"):
        train(other, 0, small_plan(6), trained)
    with pytest.raises(InputError, match="does not exist"):
        train(cohort, 0, small_plan(6), tmp_path / "new", weights=tmp_path / "gone")
    assert not (tmp_path / "new").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(InputError, match="no training"):
        train(cohort, 0, small_plan(6), tmp_path / "full")


def test_other_seeds_begin_and_go_elsewhere(cohort, trained, tmp_path):
    first, second = (
        train(cohort, 0, small_plan(1), tmp_path / str(seed), seed=seed, cache=trained / "carried") for seed in (1, 2)
    )
    assert not same_weights(first, second)


def test_from_given_weights(cohort, trained, tmp_path):
    given, cache = trained / "weights.safetensors", trained / "carried"
    path = train(cohort, 0, small_plan(1), tmp_path / "more", weights=given, cache=cache)
    assert float(rows(path.parent)[0]["train_loss"]) < float(rows(trained)[2]["train_loss"])
    other = small_plan(1, network=NetworkPlan(channels=4))
    with pytest.raises(InputError, match="not the network"):
        train(cohort, 0, other, tmp_path / "other", weights=given, cache=cache)


def test_a_loss_that_is_no_number_is_said(cohort, trained, tmp_path):
    plan = small_plan(3)
    plan = plan.model_copy(update={"train": plan.train.model_copy(update={"learning_rate": 1e30})})
    with pytest.raises(InputError, match="learning_rate"):
        train(cohort, 0, plan, tmp_path / "out", cache=trained / "carried")


# -- refused before the first epoch ---------------------------------------------------------------------------------------
def one_line(cohort, plan, out, match, fold=0):
    with pytest.raises(InputError, match=match) as caught:
        train(cohort, fold, plan, out)
    assert "\n" not in str(caught.value)
    assert not (out / "log.csv").exists()


def test_a_fold_that_is_not_there(cohort, own, tmp_path):
    one_line(cohort, small_plan(), tmp_path / "a", "no fold 1", fold=1)
    one_line(changed(own, lambda c: c.update(folds=[])), small_plan(), tmp_path / "b", "no folds")


def test_missing_labels_are_said_where_a_weight_needs_them(own, tmp_path):
    cohort = changed(own, lambda c: c["pairs"][1].pop("fixed_labels"))
    one_line(cohort, small_plan(), tmp_path / "a", r"p1: There are no fixed labels.*dice")
    one_line(cohort, small_plan(weights=Weights(mutual_information=1, rigidity=1)), tmp_path / "b", "rigidity")
    alone = small_plan(1, weights=Weights(mutual_information=1.0, diffusion=2.0))
    assert train(cohort, 0, alone, tmp_path / "c").is_file()


def test_a_bad_file_is_named_with_its_pair(own, tmp_path):
    folder, _ = own
    cohort = read_cohort(folder)
    whole = (folder / "p2" / "moving.nii.gz").read_bytes()
    (folder / "p2" / "moving.nii.gz").write_bytes(whole[: len(whole) // 2])
    one_line(cohort, small_plan(), tmp_path / "a", r"p2: .*moving.nii.gz")
    (folder / "p2" / "moving.nii.gz").write_bytes(b"nothing of the kind")
    one_line(cohort, small_plan(), tmp_path / "b", r"p2: .*moving.nii.gz")


def test_a_patient_or_a_file_in_two_parts(own, tmp_path):
    cohort = read_cohort(own[0])
    pairs = tuple(pair.model_copy(update={"patient": "s0"}) if pair.id == "p4" else pair for pair in cohort.pairs)
    one_line(cohort.model_copy(update={"pairs": pairs}), small_plan(), tmp_path / "a", "patient s0 in train .* and in test")
    copied = changed(own, lambda c: c["pairs"][3].update(fixed=c["pairs"][0]["fixed"]))
    one_line(copied, small_plan(), tmp_path / "b", r"p0.*fixed.nii.gz in train .* and in validation")
    twice = cohort.model_copy(update={"folds": (Fold(train=("p0", "p0"), validation=("p3",), test=("p4",)),)})
    one_line(twice, small_plan(), tmp_path / "c", "p0 twice")
    none = cohort.model_copy(update={"folds": (Fold(train=FOLD.train, validation=(), test=("p4",)),)})
    one_line(none, small_plan(), tmp_path / "d", "no pairs for validation")


def test_ids_of_one_side_alone(own, tmp_path):
    folder, _ = own
    labels = small_pair(1)[2]
    io.write_image(folder / "p1" / "fixed_labels.nii.gz", Labels(labels.data * (labels.data == 23), GRID))
    out = tmp_path / "a"
    one_line(read_cohort(folder), small_plan(), out, "p1: The fixed labels are 23 and the moving ones 23, 24")
    io.write_image(folder / "p1" / "fixed_labels.nii.gz", labels)
    assert train(read_cohort(folder), 0, small_plan(1), out).is_file()


def test_a_plan_that_matches_nothing(cohort, tmp_path):
    one_line(cohort, small_plan(weights=Weights(diffusion=1.0)), tmp_path / "a", "weighs nothing")


# -- carried pairs --------------------------------------------------------------------------------------------------------
def test_a_carried_pair_is_kept_until_its_files_or_its_plan_change(own, tmp_path):
    folder, cache = own[0], tmp_path / "cache"
    cohort, plan = read_cohort(folder), small_plan()
    first = carried_pair(cohort, "p0", plan, cache)
    (file,) = cache.iterdir()
    stamp = file.stat().st_mtime_ns
    again = carried_pair(cohort, "p0", plan.model_copy(update={"refine": plan.refine.model_copy(update={"bins": 8})}), cache)
    assert [f.stat().st_mtime_ns for f in cache.iterdir()] == [stamp]
    assert again.case.fixed.grid == first.case.fixed.grid == again.case.moving.grid
    for name in ("fixed", "moving", "fixed_labels", "moving_labels"):
        one, other = getattr(first.case, name), getattr(again.case, name)
        assert torch.equal(one.data, other.data)
        assert one.stored == other.stored
    assert (again.id, again.start.matrix.tolist()) == ("p0", np.eye(4).tolist())
    coarser = plan.model_copy(update={"prepare": plan.prepare.model_copy(update={"spacing_mm": 4.0})})
    assert carried_pair(cohort, "p0", coarser, cache).case.fixed.grid != first.case.fixed.grid
    os.utime(folder / "p0" / "fixed.nii.gz", ns=(0, 0))
    carried_pair(cohort, "p0", plan, cache)
    assert len(list(cache.iterdir())) == 3


def test_a_broken_cache_is_made_again(cohort, tmp_path):
    first = carried_pair(cohort, "p0", small_plan(), tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:500])
    assert torch.equal(carried_pair(cohort, "p0", small_plan(), tmp_path).case.moving.data, first.case.moving.data)
    assert file.read_bytes() == whole


def test_observed_labels_are_taken_where_there_are_any(own, tmp_path):
    folder, _ = own
    seen = torch.zeros(1, *SHAPE, dtype=torch.int16)
    seen[0, 4:8, 4:8, 4:8] = 23
    io.write_image(folder / "p0" / "seen.nii.gz", Labels(seen, GRID))
    cohort = changed(own, lambda c: c["pairs"][0].update(fixed_labels_observed="p0/seen.nii.gz"))
    for observed, voxels in ((True, 64), (False, None)):
        labels = carried_pair(cohort, "p0", small_plan(), tmp_path / "cache", observed).case.fixed_labels
        found = int((labels.data == 23).sum())
        assert found == voxels if observed else found > 100


def test_the_moving_side_is_carried_by_the_start(cohort):
    """A start found on labels brings their centres together on the fixed grid."""
    plan = small_plan()
    plan = plan.model_copy(update={"initialise": plan.initialise.model_copy(update={"method": "labels"})})
    pair = carried_pair(cohort, "p2", plan)

    def centre(labels):
        return np.argwhere((labels.data[0] > 0).numpy()).mean(0) * 3.0

    still = carried_pair(cohort, "p2", small_plan()).case
    before = np.linalg.norm(centre(still.fixed_labels) - centre(still.moving_labels))
    after = np.linalg.norm(centre(pair.case.fixed_labels) - centre(pair.case.moving_labels))
    assert after < 0.5 < 2 < before
    assert np.abs(pair.start.matrix - np.eye(4)).max() > 1


# -- several processes ----------------------------------------------------------------------------------------------------
WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from small_cohort import small_plan
from osteomorph.cohort import read_cohort
from osteomorph.parallel import leave
from osteomorph.plan import NetworkPlan
from osteomorph.train import train
torch.set_num_threads(1)
train(read_cohort(Path({cohort!r})), 0, small_plan(1, network=NetworkPlan(channels=4, norm="group")), Path({out!r}))
leave()
"""


@pytest.mark.slow
def test_two_processes_take_the_step_of_their_mean_gradient(cohort, tmp_path):
    """Three pairs are one step of two and one of one; group normalisation has no state that could differ."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(TESTS), cohort=str(cohort.root), out=str(tmp_path / "two")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    plan = small_plan(1, network=NetworkPlan(channels=4, norm="group"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(plan.network)
    optimiser = torch.optim.Adam(network.parameters(), lr=plan.train.learning_rate)
    order = np.random.default_rng((0, 1)).permutation(3)
    for step in (order[:2], order[2:]):
        optimiser.zero_grad()
        for n in step:
            loss, _ = loss_of(network.train(), TrainingCase.of(carried_pair(cohort, FOLD.train[n], plan).case), plan)
            (loss / len(step)).backward()
        optimiser.step()
    found = load_network(tmp_path / "two" / "weights.safetensors")[0].state_dict()
    for name, value in network.state_dict().items():
        assert torch.allclose(found[name], value, atol=2e-5), name
    assert len(rows(tmp_path / "two")) == 1


@pytest.mark.slow
def test_pairs_simulated_on_the_fly(cohort, trained, tmp_path):
    from osteomorph.simulate.anatomy import View
    from osteomorph.simulate.atlas import voxelised
    from osteomorph.simulate.build import draw_build
    from osteomorph.simulate.dataset import SimulatedPairs
    from osteomorph.simulate.trunk import Trunk

    patient = Trunk(draw_build(np.random.default_rng(0)))
    view = patient.views["lumbar"]
    atlas = voxelised(patient, 4.0, View(view.centre_mm, (80.0, 100.0, 110.0), view.labelled))
    simulated = SimulatedPairs([atlas], (16, 24, 24), 4.0, seed=3)
    paths = [
        train(cohort, 0, small_plan(2), tmp_path / name, simulated=simulated, cache=trained / "carried") for name in ("a", "b")
    ]
    assert same_weights(*paths)
    assert float(rows(tmp_path / "a")[0]["train_diffusion"]) > 0
    assert "simulated on the fly" in (tmp_path / "a" / "model_card.md").read_text()
    with pytest.raises(InputError, match="another simulation"):
        train(cohort, 0, small_plan(2), tmp_path / "a", cache=trained / "carried")
