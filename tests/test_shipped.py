"""Weights that come with the package: by name, whole, with their cards."""

from pathlib import Path

import pytest
import torch

from osteomorph.errors import InputError
from osteomorph.learned import Learned
from osteomorph.network import load_network
from osteomorph.shipped import FOLDER, shipped_names, weights_file
from osteomorph.train import _State


def test_every_file_has_a_card_and_all_stay_small():
    files = sorted(FOLDER.glob("*.safetensors"))
    assert [path.stem for path in files] == ["bones", "thesis-ws-rp"]
    for path in files:
        assert path.with_suffix(".md").read_text(encoding="utf-8").startswith("# ")
    assert sum(path.stat().st_size for path in files) < 8_000_000


def test_a_network_is_taken_by_its_name(tmp_path, monkeypatch):
    assert shipped_names() == ["thesis-ws-rp"]
    by_name = Learned.read(Path("thesis-ws-rp"))
    assert by_name.plan.name == "thesis-ws-rp"
    assert by_name.plan.initialise.method == "auto"  # labels are not asked for
    assert by_name.sha256 == Learned.read(FOLDER / "thesis-ws-rp.safetensors").sha256
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis-ws-rp").write_bytes(b"mine")
    assert weights_file(Path("thesis-ws-rp")) == Path("thesis-ws-rp")  # a file of that name comes first


def test_training_goes_on_from_it():
    network, plan, _ = load_network(Path("thesis-ws-rp"))
    state = _State.begin(plan, 0, weights_file(Path("thesis-ws-rp")), torch.device("cpu"))
    for begun, shipped in zip(state.network.parameters(), network.parameters(), strict=True):
        assert torch.equal(begun, shipped)
    assert any(float(weight.abs().max()) > 0 for weight in state.network.parameters())


def test_a_name_that_is_not_there_is_said_with_those_that_are():
    with pytest.raises(InputError, match=r"thesis-us does not exist.*thesis-ws-rp"):
        load_network(Path("thesis-us"))
