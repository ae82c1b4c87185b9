import io
import json

import pytest
from rich.console import Console

from osteomorph import progress
from osteomorph.progress import Reporter


def test_plain_lines_name_the_stage_and_are_few(capsys):
    with Reporter(terminal=False) as report:
        for done in range(1, 101):
            report("refine", done, 100)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("refine 1/100")
    assert lines[-1].startswith("refine 100/100")
    assert len(lines) == 2


def test_plain_lines_say_the_time_left(monkeypatch, capsys):
    clock = iter(float(t) for t in range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Reporter(terminal=False) as report:
        report("refine", 0, 4)
        report("refine", 1, 4)
        report("refine", 2, 4)
    assert "about 20 s left" in capsys.readouterr().out.splitlines()[-1]


def test_the_log_is_json_lines_that_end_in_done(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    with Reporter(log, terminal=False) as report:
        assert not log.exists()
        report("read", 1, 1)
        report("refine", 1, 2)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    seen = [(line["stage"], line["done"], line["total"]) for line in lines]
    assert seen == [("read", 1, 1), ("refine", 1, 2), ("done", 1, 1)]
    assert all(line["seconds"] >= 0 for line in lines)


def _fails(log, *stages):
    with Reporter(log, terminal=False) as report:
        for stage in stages:
            report(stage, 1, 1)
        raise ValueError("no contrast")


def test_the_log_says_why_it_ended(tmp_path, capsys):
    with pytest.raises(ValueError, match="no contrast"):
        _fails(tmp_path / "log.jsonl", "read")
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (last["stage"], last["reason"]) == ("failed", "no contrast")


def test_a_refused_input_leaves_no_log(tmp_path):
    with pytest.raises(ValueError, match="no contrast"):
        _fails(tmp_path / "log.jsonl")
    assert not (tmp_path / "log.jsonl").exists()


def test_a_terminal_gets_a_bar_with_every_stage(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "_console", lambda: Console(file=screen, force_terminal=True, width=100))
    with Reporter(terminal=True) as report:
        report("rigid start", 1, 1)
        report("refine", 40, 80)
    shown = screen.getvalue()
    assert "rigid start" in shown
    assert "40/80" in shown
    assert "left" in shown
