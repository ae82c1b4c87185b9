"""What a training leaves on disk: its request, a checkpoint after every epoch, a log; each file whole or not at all."""

import csv
import hashlib
import json
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, final

import torch

from osteomorph.cohort import Cohort
from osteomorph.errors import InputError

REQUEST, CHECKPOINT, LOG, CARD, WEIGHTS = "train.json", "checkpoint.pt", "log.csv", "model_card.md", "weights.safetensors"


def write_whole(path: Path, content: bytes) -> None:
    """A file that is there with all of its content or, whenever the process is killed, as it was."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with hidden.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}). Check the space left and the permissions.") from None
    finally:
        hidden.unlink(missing_ok=True)


def write_tensors(path: Path, kept: Any) -> None:
    """What torch saves, likewise whole; several processes may write one file."""
    buffer = BytesIO()
    torch.save(kept, buffer)
    write_whole(path, buffer.getvalue())


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cohort_digest(cohort: Cohort, fold: int) -> str:
    """Of the pairs of a fold: their ids, patients, parts, and the names and sizes of their files."""
    parts = cohort.folds[fold]
    named = {*parts.train, *parts.validation}
    files = [
        [pair.id, pair.patient, {name: [str(path), cohort.path(path).stat().st_size] for name, path in pair.files().items()}]
        for pair in cohort.pairs
        if pair.id in named
    ]
    content = [files, list(parts.train), list(parts.validation)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@final
class TrainingFolder:
    """Where a training of one request is kept; running it again goes on from the last whole epoch.

    Nothing random is stored: the first weights follow from the seed, the order of pairs from the seed and the epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def weights(self) -> Path:
        """The result; where it is, the training is finished."""
        return self.path / WEIGHTS

    def open(self, request: Mapping[str, Any]) -> None:
        """Makes the folder, or finds the same request in it; one of which no epoch was done is replaced.

        Raises InputError: the folder holds something else, or a training of which a named part differs.
        """
        told = self.path / REQUEST
        if not told.is_file() and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(f"{self.path} exists and holds no training. Give another folder.")
        if self.weights.is_file() or (self.path / CHECKPOINT).is_file():
            try:
                before = json.loads(told.read_text(encoding="utf-8"))
            except ValueError:
                before = {}
            other = [name for name in request if before.get(name) != json.loads(json.dumps(request[name]))]
            if other:
                raise InputError(f"{self.path} holds a training with another {', another '.join(other)}. Give another folder.")
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path} cannot be made ({error.strerror}). Give another folder.") from None
        write_whole(told, json.dumps(dict(request), indent=2).encode())

    def checkpoint(self) -> dict[str, Any] | None:
        """State after the last whole epoch, or None before the first."""
        path = self.path / CHECKPOINT
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            raise InputError(f"{path} is damaged. Remove it to train from the beginning.") from None
        return state

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        write_tensors(self.path / CHECKPOINT, dict(state))

    def save_log(self, rows: list[dict[str, float]]) -> None:
        """One row an epoch; an epoch without validation leaves its cells empty."""
        from io import StringIO

        names = list(dict.fromkeys(name for row in rows for name in row))
        text = StringIO(newline="")
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows({name: f"{value:.8g}" for name, value in row.items()} for row in rows)
        write_whole(self.path / LOG, text.getvalue().encode())

    def finish(self) -> None:
        (self.path / CHECKPOINT).unlink(missing_ok=True)
