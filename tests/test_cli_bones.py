"""The bones of one image from the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from osteomorph import found_bones, io
from osteomorph.bone_network import BoneNetwork, save_bone_network
from osteomorph.cli import app
from osteomorph.commands.options import bone_labels
from osteomorph.errors import InputError
from osteomorph.found_bones import FoundBones
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.network import load_network
from osteomorph.shipped import weights_file


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "ct.nii.gz"
    data = torch.randn(1, 20, 22, 24, generator=torch.Generator().manual_seed(0)) * 50
    io.write_image(path, Image(data, Grid((20, 22, 24), np.diag([-1.5, -1.5, 2.0, 1.0])), np.dtype(np.int16)))
    return path


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["bones", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_bones_are_written_with_their_names(image, tmp_path, monkeypatch) -> None:
    def find(given: Image, network: object) -> FoundBones:
        assert network is None
        data = torch.zeros(given.data.shape, dtype=torch.int16)
        data[:, 2:8, 2:8, 2:8], data[:, 10:16, 2:8, 2:8], data[:, 2:8, 12:18, 2:8] = 1, 2, 3
        return FoundBones(Labels(data, given.grid, {1: "L5", 3: "rib 3"}), {1: 0.95, 2: 0.7, 3: 0.2})

    monkeypatch.setattr(found_bones, "find_bones", find)
    out = tmp_path / "found"
    printed = run(image, "-o", out)
    assert {path.name for path in out.iterdir()} == {"bones.nii.gz", "labels.json"}
    labels = io.read_labels(out / "bones.nii.gz", io.read_image(image).grid)
    assert labels.ids() == [1, 2]
    assert bone_labels(str(out / "labels.json")) == {1: "L5", 2: "2"}  # as register takes them
    assert "L5" in printed.output
    assert "left out: 1" in printed.output
    run(image, "-o", out, code=2)
    run(image, "-o", out, "--overwrite")


def test_a_network_of_ones_own_is_asked(image, tmp_path, monkeypatch) -> None:
    own, thesis, asked = tmp_path / "own.safetensors", weights_file(Path("thesis-ws-rp")), []

    def find(given: Image, network: BoneNetwork) -> FoundBones:
        asked.append(network.widths)
        return FoundBones(Labels(torch.zeros(given.data.shape, dtype=torch.int16), given.grid))

    save_bone_network(own, BoneNetwork((4, 8)), {})
    monkeypatch.setattr(found_bones, "find_bones", find)
    run(image, "-o", tmp_path / "found", "--network", own, code=2)
    assert asked == [(4, 8)]
    assert "holds no bone network" in run(image, "-o", tmp_path / "found", "--network", thesis, code=2).output
    with pytest.raises(InputError, match="Give it to --network"):
        load_network(own)
    assert "does not exist" in run(image, "-o", tmp_path / "found", "--network", tmp_path / "no.safetensors", code=2).output


def test_an_image_without_bones_is_said_to_have_none(image, tmp_path) -> None:
    assert "No bone was found" in run(image, "-o", tmp_path / "none", code=2).output
    assert not (tmp_path / "none").exists()
