"""osteomorph train, and its weights in osteomorph register."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import torch
from small_cohort import small_cohort, small_plan
from typer.testing import CliRunner

from osteomorph.carried import carried_pair
from osteomorph.cli import app
from osteomorph.network import load_network, predict
from osteomorph.registration import register

QUICK_REFINE = """
name = "few-steps"
[initialise]
method = "none"
[refine]
field_spacing_mm = 3.0
levels = [{control_mm = 12.0, iterations = 3, step_mm = 0.05}]
weights = {mutual_information = 1.0, bending = 5.0}
"""


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort, a plan's file, and the folder of a training by them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cli")
    cohort = small_cohort(folder / "cohort")
    plan = folder / "plan.json"
    plan.write_text(small_plan(9).model_dump_json())
    log = folder / "log.jsonl"
    arguments = ("-c", folder / "cohort", "--plan", plan, "--seed", 5, "--threads", 1, "--device", "cpu")
    result = run("train", *arguments, "-o", folder / "out", "--epochs", 3, "--json-log", log)
    return cohort, plan, folder / "out", result.output, log


def inputs(cohort, name="p4"):
    folder = cohort.root / name
    return ("-f", folder / "fixed.nii.gz", "-m", folder / "moving.nii.gz")


def refused(*arguments, told):
    """Exit code 2 and one line."""
    output = run(*arguments, code=2).output.strip()
    assert told in output
    assert len([line for line in output.splitlines() if line.startswith("osteomorph: ")]) == 1


def test_train_says_what_came_out(made):
    _, _, folder, output, log = made
    _, plan, about = load_network(folder / "weights.safetensors")
    assert (plan.train.epochs, about["seed"], about["fold"], about["labels"]) == (3, 5, 0, "observed")
    assert "train 9/9" in output
    assert f"best     epoch {about['best_epoch']}" in output
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"check", "prepare", "train", "done"}


def test_train_goes_on_from_weights_by_their_plan(made, tmp_path):
    cohort, _, folder, _, _ = made
    given = folder / "weights.safetensors"
    run("train", "-c", cohort.root / "cohort.json", "-o", tmp_path / "b", "--from", given, "--epochs", 1, "--exact-labels")
    _, plan, about = load_network(tmp_path / "b" / "weights.safetensors")
    assert (plan.name, about["labels"], about["epochs"]) == ("small", "exact", 1)
    with (tmp_path / "b" / "log.csv").open() as later, (folder / "log.csv").open() as earlier:
        assert float(next(csv.DictReader(later))["train_loss"]) < float(next(csv.DictReader(earlier))["train_loss"])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--fold", 3), "no fold 3"),
        (("--plan", "thesis"), "no recipe"),
        (("--from", "gone.safetensors"), "gone.safetensors does not exist"),
        (("--plan", "rigid"), "weighs nothing"),
        (("-c", "nowhere"), "does not exist"),
    ],
)
def test_train_refuses_in_one_line(made, tmp_path, more, told):
    refused("train", "-c", made[0].root, "-o", tmp_path / "out", *more, told=told)
    assert not (tmp_path / "out").exists()


def test_drawn_patients_need_to_know_how_large_pairs_are(made, tmp_path):
    cohort, plan, *_ = made
    refused("train", "-c", cohort.root, "-o", tmp_path / "out", "--plan", plan, "--simulate", 1, told="no prepare.shape")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_training_on_drawn_patients(made, tmp_path):
    cohort, file, *_ = made
    plan = json.loads(file.read_text())
    plan["prepare"] |= {"spacing_mm": 6.0, "shape": [16, 24, 16]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    arguments = ("-c", cohort.root, "--plan", tmp_path / "plan.json", "--simulate", 1, "--epochs", 1, "--device", "cpu")
    run("train", *arguments, "-o", tmp_path / "out")
    about = load_network(tmp_path / "out" / "weights.safetensors")[2]
    assert (about["pairs"], about["train"]) == ("simulated on the fly", 3)


def test_a_stopped_training_says_how_to_go_on(made, tmp_path):
    cohort, plan, _, _, _ = made
    out = tmp_path / "out"
    command = [sys.executable, "-m", "osteomorph", "train", "-c", cohort.root, "-o", out, "--plan", plan]
    arguments = [str(part) for part in [*command, "--epochs", 2000, "--threads", 1]]
    child = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    while not (out / "checkpoint.pt").is_file() and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=120)
    assert child.returncode == 130, told
    assert "run the same command again" in told
    assert "Traceback" not in told
    assert torch.load(out / "checkpoint.pt", weights_only=True)["epoch"] >= 1
    assert not (out / "weights.safetensors").exists()


# -- register -------------------------------------------------------------------------------------------------------------
def test_register_with_weights_writes_the_networks_field(made, tmp_path):
    cohort, _, folder, _, _ = made
    given, out = folder / "weights.safetensors", tmp_path / "out"
    result = CliRunner().invoke(app, [str(a) for a in ("register", *inputs(cohort), "--weights", given, "-o", out)])
    assert result.exit_code in (0, 3), result.output
    network, plan, _ = load_network(given)
    expected = predict(network, carried_pair(cohort, "p4", plan).case).vectors.numpy()
    found = nib.load(out / "displacement.nii.gz").get_fdata()[:, :, :, 0].transpose(3, 0, 1, 2)
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(expected).max() > 0.01
    record = json.loads((out / "result.json").read_text())
    assert record["inputs"]["weights"] == hashlib.sha256(given.read_bytes()).hexdigest()
    assert record["plan"]["name"] == "small"
    assert record["terms"] == {}
    assert "network" in record["seconds"]


def test_refinement_begins_from_the_networks_field(made, tmp_path):
    cohort, _, folder, _, _ = made
    (tmp_path / "few.toml").write_text(QUICK_REFINE)
    files = [path for path in inputs(cohort) if str(path) not in ("-f", "-m")]
    given = {"weights": folder / "weights.safetensors", "threads": 1}
    alone = register(*files, **given)
    refined = register(*files, **given, plan=tmp_path / "few.toml", refine=True)
    kept = register(*files, **given, plan=tmp_path / "few.toml")
    assert torch.equal(kept.warp.vectors, alone.warp.vectors)
    change = (refined.warp.vectors - alone.warp.vectors).norm(dim=0).max()
    assert 0 < change < 0.5 * alone.warp.vectors.norm(dim=0).max() + 0.2
    assert len(refined.history) == 3
    assert refined.plan.prepare == alone.plan.prepare


def test_register_refuses_other_weights_and_plans(made, tmp_path):
    cohort, plan, folder, _, _ = made
    (tmp_path / "w.safetensors").write_text("none")
    out = ("-o", tmp_path / "out")
    refused("register", *inputs(cohort), *out, "--weights", tmp_path / "w.safetensors", told="cannot be read as a network")
    refused("register", *inputs(cohort), *out, "--weights", tmp_path / "gone", told="does not exist")
    refused("register", *inputs(cohort), *out, "--weights", plan, told="cannot be read as a network")
    given = folder / "weights.safetensors"
    refused("register", *inputs(cohort), *out, "--weights", given, "--plan", "default", told="--plan penalty")
    assert not (tmp_path / "out").exists()
