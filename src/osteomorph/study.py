"""A study: units of work in a folder, each done once. What was stopped goes on where it was."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from osteomorph.descent import Progress
from osteomorph.errors import InputError

DONE = "done"
"""Folder of the files that say which units are done."""

REQUEST = "study.json"
"""What the folder was made for."""


@final
@dataclass(frozen=True)
class Unit:
    """A piece of work that is done whole or again.

    name: also the path of the file that says it is done. settings: fit for JSON; another digest of them, or of the units it
    needs, and it is done again. run: does it, telling its progress. needs: names of units done before.
    cost: guess of its time, in a unit of its own; times left are scaled by it.
    """

    name: str
    run: Callable[[Progress], None] = field(compare=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    cost: float = 1.0

    @property
    def step(self) -> str:
        """First part of its name: what ``--only`` takes."""
        return self.name.partition("/")[0]


def digests(units: Sequence[Unit]) -> dict[str, str]:
    """Unit -> SHA-256 of its settings and of the digests of what it needs. ValueError: a unit needs one that comes later."""
    found: dict[str, str] = {}
    for unit in units:
        if unit.name in found or not set(unit.needs) <= set(found):
            raise ValueError(f"{unit.name} is there twice, or needs a unit that does not come before it.")
        content = [unit.name, dict(unit.settings), [found[need] for need in unit.needs]]
        found[unit.name] = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    return found


def claim(folder: Path, request: Mapping[str, Any]) -> None:
    """Makes the folder, or goes on in it. Raises InputError where it holds another study or something else."""
    from osteomorph.io import write_json

    file = folder / REQUEST
    asked = json.loads(json.dumps(dict(request), default=str))
    if file.is_file():
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(f"{file} cannot be read. Give another folder.") from None
        if held != asked:
            other = ", ".join(f"{key} {held.get(key)}" for key in asked if held.get(key) != asked[key])
            raise InputError(f"{folder} holds another study ({other}). Give another folder.")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no study (no {REQUEST} inside). Give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, asked)


def seconds_of(folder: Path) -> dict[str, float]:
    """Unit -> seconds it took, of those that are done."""
    found = {}
    for file in sorted((folder / DONE).rglob("*.json")):
        told = json.loads(file.read_text(encoding="utf-8"))
        found[str(told["unit"])] = float(told["seconds"])
    return found


def run_units(
    folder: Path,
    units: Sequence[Unit],
    only: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> list[str]:
    """Runs what is not done yet, in order; returns the names of what was run.

    only: a step's name: its units alone, which need those before them to be done.
    say: takes a line after each unit: how many are done, how long it took, and how long the rest will take.

    Raises InputError: no such step, or a unit it needs is not done.
    """
    keys = digests(units)
    steps = list(dict.fromkeys(unit.step for unit in units))
    if only is not None and only not in steps:
        raise InputError(f"The study has no step {only!r}. Choose from {', '.join(steps)}.")
    tell, line = progress or (lambda stage, done, total: None), say or (lambda text: None)
    open_ = [unit for unit in units if not _is_done(folder, unit, keys[unit.name])]
    chosen = [unit for unit in open_ if only in (None, unit.step)]
    ran: list[str] = []
    began, spent = time.monotonic(), 0.0
    for unit in chosen:
        if missing := [need for need in unit.needs if any(o.name == need for o in open_) and need not in ran]:
            raise InputError(f"{unit.name} needs {missing[0]}, which is not done. Run the study without --only, or that first.")
        started = time.monotonic()
        unit.run(_named(tell, unit.name))
        _mark(folder, unit, keys[unit.name], time.monotonic() - started)
        ran.append(unit.name)
        spent += unit.cost
        left = sum(other.cost for other in chosen) - spent
        rest = f", about {duration((time.monotonic() - began) / spent * left)} left" if left > 0 else ""
        place = len(units) - len(open_) + len(ran)
        line(f"{unit.name} done in {duration(time.monotonic() - started)}; {place} of {len(units)} units{rest}")
    return ran


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _named(tell: Progress, name: str) -> Progress:
    return lambda stage, done, total: tell(name if stage in name.split("/") else f"{name} ({stage})", done, total)


def _file(folder: Path, unit: Unit) -> Path:
    return folder / DONE / f"{unit.name}.json"


def _is_done(folder: Path, unit: Unit, key: str) -> bool:
    try:
        return bool(json.loads(_file(folder, unit).read_text(encoding="utf-8"))["digest"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _mark(folder: Path, unit: Unit, key: str, seconds: float) -> None:
    """The file appears by one rename, so that it is there whole or not at all."""
    from osteomorph.io import write_json

    file = _file(folder, unit)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    write_json(aside, {"unit": unit.name, "digest": key, "seconds": seconds, "settings": dict(unit.settings)})
    aside.replace(file)
