"""The shipped network goes on to learn from a user's CTs."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from osteomorph import io, stopping, train_bones, tune_bones
from osteomorph.bone_anatomies import OwnCt, own_patient
from osteomorph.bone_network import BoneNetwork, load_bone_network, save_bone_network
from osteomorph.cli import app
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels

SMALL = (4, 8, 8, 8)


@pytest.fixture
def own(tmp_path):
    """Three vertebrae in a body of an LPS grid; the uppermost has no label."""
    grid = Grid((64, 60, 72), np.array([[-2.5, 0, 0, 80], [0, -2.5, 0, 75], [0, 0, 2.5, 300], [0, 0, 0, 1]]))
    hu = torch.full((1, *grid.shape), -1000.0)
    hu[:, 4:-4, 4:-4] = 40.0
    labels = torch.zeros(1, *grid.shape, dtype=torch.int16)
    for number, lowest in enumerate((12, 26, 40)):
        hu[:, 22:40, 28:42, lowest : lowest + 11] = 700.0
        hu[:, 24:38, 30:40, lowest + 2 : lowest + 9] = 250.0
        if number < 2:
            labels[:, 22:40, 28:42, lowest : lowest + 11] = number + 1
    hu += 15 * torch.randn(hu.shape, generator=torch.Generator().manual_seed(0))
    files = OwnCt(tmp_path / "ct.nii.gz", tmp_path / "bones.nii.gz")
    io.write_image(files.ct, Image(hu, grid, np.dtype(np.int16)))
    io.write_image(files.labels, Labels(labels, grid))
    (tmp_path / "bones.json").write_text('{"1": "L5", "2": "L4"}')
    return files


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """A small network, few patients and few steps."""
    few = tune_bones.settings_of
    small = {"pool": 6, "patch": 24, "widths": SMALL, "every": 1, "bf16": False}
    monkeypatch.setattr(tune_bones, "settings_of", lambda steps, seed: replace(few(steps, seed), **small))
    monkeypatch.setattr(tune_bones, "DRAWN", {"knee": 1})
    monkeypatch.setattr(train_bones, "HELD_OUT", (("knee", 0),))
    torch.manual_seed(0)
    save_bone_network(tmp_path / "begin.safetensors", BoneNetwork(SMALL), {"of": "a test"})
    return tmp_path / "begin.safetensors"


def test_a_ct_is_learned_from_where_its_bones_have_labels(own) -> None:
    patient = own_patient(own)
    assert patient.name == own.name
    assert len(patient.centres_mm) == 2
    middle, side = [0.0, -12.5], [60.0, -12.5]
    points = torch.tensor([[*middle, 412.5], [*side, 412.5]]).T  # in the bone without a label, and in muscle beside it
    assert patient.doubtful(points).tolist() == [True, False]


def test_other_names_make_another_ct(own) -> None:
    before = own.name
    (own.labels.parent / "bones.json").write_text('{"1": "L5", "2": "rib_left_1"}')
    assert own.name != before


def test_a_training_stops_goes_on_and_says_what_it_saw(own, begin, tmp_path) -> None:
    heard: list[tuple[str, int, int]] = []

    def stopped(stage, done, total):
        heard.append((stage, done, total))
        if (stage, done) == ("train", 2):
            raise stopping.Stopped(130)

    with pytest.raises(stopping.Stopped):
        tune_bones.tune(tmp_path / "out", [own], begin, 3, progress=stopped)
    assert not (tmp_path / "out" / "bones.safetensors").exists()
    assert {stage for stage, *_ in heard} == {"patients", "train"}
    heard.clear()
    path = tune_bones.tune(tmp_path / "out", [own], begin, 3, progress=lambda *told: heard.append(told))
    assert [done for stage, done, _ in heard if stage == "train"] == [2]
    network, about = load_bone_network(path)
    rest = about["rest"]["about"]
    assert (about["own"], rest["settings"]["own_cts"], rest["drawn"], rest["real"]) == ([own.name], [own.name], {"knee": 1}, {})
    assert rest["begun_from"]["about"] == {"of": "a test"}
    before = load_bone_network(begin)[0].state_dict()
    assert all(not torch.equal(before[name], value) for name, value in network.state_dict().items() if value.ndim > 1)
    with (tmp_path / "out" / "training" / "log.csv").open() as file:
        assert [float(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3]
    whole = path.read_bytes()
    straight = tune_bones.tune(tmp_path / "again", [own], begin, 3, shared=tmp_path / "out" / "shared")
    other = load_bone_network(straight)[0].state_dict()
    assert all(torch.equal(other[name], value) for name, value in network.state_dict().items())

    (tmp_path / "bones.json").write_text(json.dumps({"1": "L5"}))
    io.write_image(own.labels, io.read_labels(own.labels).only([1]))
    with pytest.raises(InputError, match="another own_cts"):
        tune_bones.tune(tmp_path / "out", [own], begin, 3)
    assert path.read_bytes() == whole


def test_from_the_command_line(own, begin, tmp_path) -> None:
    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["train-bones", "-o", str(tmp_path / "out"), *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result.output

    assert "1 CTs and 2 label maps" in run("--ct", own.ct, "--labels", own.labels, "--labels", own.labels, code=2)
    assert "no-such" in run("--ct", tmp_path / "no-such.nii.gz", "--labels", own.labels, code=2)
    given = ("--ct", own.ct, "--labels", own.labels)
    assert "does not exist" in run(*given, "--from", tmp_path / "none.safetensors", code=2)
    assert "label" in run("--ct", own.labels, "--labels", own.labels, "--from", begin, code=2)
    assert not (tmp_path / "out").exists()
    told = run(*given, "--from", begin, "--steps", 1, "--threads", 1)
    assert "--network" in told
    assert (tmp_path / "out" / "bones.safetensors").is_file()
