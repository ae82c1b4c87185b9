"""An output folder appears whole or not at all; JSON holds what every reader takes."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from osteomorph.errors import InputError
from osteomorph.io import OutputFolder, write_json


def write_result(folder, text):
    (folder / "result.json").write_text(text)
    (folder / "moved").mkdir()
    (folder / "moved" / "slice").write_text(text)


def make(target, text, overwrite=False, then=lambda out: None):
    """Write a result, and do something more before its folder is closed."""
    with OutputFolder(target, overwrite) as out:
        write_result(out.path, text)
        then(out)
    return target


def old_result(tmp_path):
    return make(tmp_path / "out", "old")


def crash(error):
    def then(out):
        raise error

    return then


def test_folder_appears_at_the_end(tmp_path):
    target = tmp_path / "out"
    with OutputFolder(target) as out:
        write_result(out.path, "new")
        assert not target.exists()
    assert (target / "moved" / "slice").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o777 & ~mask


def test_parents_are_made(tmp_path):
    make(tmp_path / "a" / "b" / "out", "new")
    assert (tmp_path / "a" / "b" / "out" / "result.json").is_file()


@pytest.mark.parametrize("error", [RuntimeError("crash"), KeyboardInterrupt(), MemoryError(), SystemExit(1)], ids=repr)
def test_crash_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        make(tmp_path / "a" / "b" / "out", "half", then=crash(error))
    assert not list(tmp_path.iterdir())


def test_parent_that_others_used_meanwhile_stays(tmp_path):
    def then(out):
        (tmp_path / "a" / "other").write_text("mine")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        make(tmp_path / "a" / "out", "half", then=then)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["other"]


def test_result_is_refused_and_untouched(tmp_path):
    target = old_result(tmp_path)
    with pytest.raises(InputError, match=r"out exists\. Give another folder, or replace it with --overwrite\."):
        OutputFolder(target)
    assert (target / "result.json").read_text() == "old"


def test_overwrite_replaces_all(tmp_path):
    target = old_result(tmp_path)
    (target / "leftover").write_text("old")
    with OutputFolder(target, overwrite=True) as out:
        write_result(out.path, "new")
        assert (target / "result.json").read_text() == "old"
    assert sorted(p.name for p in target.iterdir()) == ["moved", "result.json"]
    assert (target / "result.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_crash_while_overwriting_keeps_the_old(tmp_path):
    target = old_result(tmp_path)
    with pytest.raises(RuntimeError):
        make(target, "half", overwrite=True, then=crash(RuntimeError()))
    assert (target / "moved" / "slice").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_failed_rename_brings_the_old_back(tmp_path, monkeypatch):
    target = old_result(tmp_path)
    rename = Path.rename

    def fail_into_place(self, to):
        if Path(to) == target and self.name != "old":
            raise OSError(28, "No space left on device")
        return rename(self, to)

    with pytest.raises(InputError, match="No space left"):
        make(target, "new", overwrite=True, then=lambda out: monkeypatch.setattr(Path, "rename", fail_into_place))
    monkeypatch.undo()
    assert (target / "result.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_that_is_no_result_is_never_replaced(tmp_path, overwrite):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    with pytest.raises(InputError, match="no result of osteomorph"):
        OutputFolder(tmp_path / "photos", overwrite=overwrite)
    assert (tmp_path / "photos" / "a.jpg").read_text() == "mine"


def test_other_commands_know_their_folders_by_another_file(tmp_path):
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "cohort.json").write_text("old")
    with OutputFolder(tmp_path / "cohort", overwrite=True, marker="cohort.json") as out:
        (out.path / "cohort.json").write_text("new")
    assert (tmp_path / "cohort" / "cohort.json").read_text() == "new"


def test_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", "new")
    assert (tmp_path / "out" / "result.json").read_text() == "new"


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        OutputFolder(tmp_path / "out", overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        OutputFolder(tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text() == "mine"


def test_no_permission_is_found_early(tmp_path, monkeypatch):
    monkeypatch.setattr("osteomorph.io.output.os.access", lambda *_: False)
    with pytest.raises(InputError, match=r"out cannot be written: no permission"):
        OutputFolder(tmp_path / "out")


def test_file_system_that_refuses_is_said_on_entering(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    out = OutputFolder(tmp_path / "a" / "out")
    monkeypatch.setattr("osteomorph.io.output.tempfile.mkdtemp", refuse)
    with pytest.raises(InputError, match="Read-only file system"), out:
        pass
    assert not list(tmp_path.iterdir())


def test_target_that_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(InputError, match="exists"):
        make(tmp_path / "out", "late", then=lambda out: make(tmp_path / "out", "first"))
    assert (tmp_path / "out" / "result.json").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_path_is_for_inside_the_block(tmp_path):
    out = OutputFolder(tmp_path / "out")
    with pytest.raises(ValueError, match="inside its with block"):
        _ = out.path


def test_json_is_plain_sorted_and_the_same_twice(tmp_path):
    content = {
        "b": np.float32(0.5),
        "a": [1, np.int64(2), float("nan"), np.inf, True, None],
        3: torch.tensor([[1.0, torch.nan]], dtype=torch.float64),
        "path": Path("x") / "y",
        "array": np.eye(2),
        "set": {3, 1, 2},
        "dtype": np.dtype(np.int16),
        "small": 1e-12,
    }
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text()
    back = json.loads(text, parse_constant=pytest.fail)
    assert back == {
        "b": 0.5,
        "a": [1, 2, None, None, True, None],
        "3": [[1.0, None]],
        "path": str(Path("x") / "y"),
        "array": [[1.0, 0.0], [0.0, 1.0]],
        "set": [1, 2, 3],
        "dtype": "int16",
        "small": 1e-12,
    }
    assert list(back) == sorted(back)
    assert text.endswith("}\n")
    write_json(tmp_path / "b.json", dict(reversed(content.items())))
    assert (tmp_path / "b.json").read_text() == text


def test_json_of_something_else_is_a_programming_error(tmp_path):
    with pytest.raises(TypeError, match="no JSON form"):
        write_json(tmp_path / "a.json", {"a": object()})
    assert not list(tmp_path.iterdir())
