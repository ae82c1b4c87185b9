"""Output folders, written whole or not at all; JSON that every reader takes."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
import torch

from osteomorph.errors import InputError
from osteomorph.io.files import PathLike, writing


@final
class OutputFolder:
    """``with OutputFolder("out", overwrite=False) as folder:`` write into ``folder.path``; "out" appears at the end, whole.

    Files go into a hidden folder beside the target, which takes the target's name where the block ends well. Where it ends
    by an exception or Ctrl-C, the hidden folder and any parent made for it are removed, and what the target held stays.

    target: the folder to make.
    overwrite: whether an earlier result may be replaced.
    marker: file by which an earlier result is known; a folder without it is never replaced.

    Raises InputError, on construction and on entering: the target is a file, holds something and may not be overwritten,
    or cannot be written.
    """

    def __init__(self, target: PathLike, overwrite: bool = False, marker: str = "result.json") -> None:
        self.target = Path(os.path.realpath(target))
        self.overwrite = overwrite
        self.marker = marker
        self._shown = Path(target)
        self._path: Path | None = None
        self._made: list[Path] = []
        self._check()

    @property
    def path(self) -> Path:
        """Where to write, inside the block alone."""
        if self._path is None:
            raise ValueError("An OutputFolder is written to inside its with block.")
        return self._path

    def _check(self) -> None:
        target, shown = self.target, self._shown
        if target.exists() and not target.is_dir():
            raise InputError(f"{shown} is a file. Give the output another folder.")
        if target.is_dir() and any(target.iterdir()):
            if not (target / self.marker).is_file():
                raise InputError(
                    f"{shown} exists and is no result of osteomorph (no {self.marker} inside), so it is not replaced. "
                    "Give another folder."
                )
            if not self.overwrite:
                raise InputError(f"{shown} exists. Give another folder, or replace it with --overwrite.")
        above = next(p for p in target.parents if p.exists())
        if not above.is_dir():
            raise InputError(f"{shown} cannot be made: {above} is a file. Give another folder.")
        if not os.access(above, os.W_OK | os.X_OK):
            raise InputError(f"{shown} cannot be written: no permission in {above}. Give another folder.")

    def __enter__(self) -> "OutputFolder":
        self._check()
        try:
            for parent in reversed([p for p in self.target.parents if not p.exists()]):
                parent.mkdir()
                self._made.append(parent)
            self._path = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent))
            self._path.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        except OSError as error:
            self._remove()
            raise InputError(f"{self._shown} cannot be written ({error.strerror}). Give another folder.") from None
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            self._remove()

    def _publish(self) -> None:
        """Rename into place; an earlier result steps aside first and comes back where that fails."""
        self._check()
        aside: Path | None = None
        try:
            if self.target.exists():
                aside = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.old.", dir=self.target.parent)) / "old"
                self.target.rename(aside)
            self.path.rename(self.target)
            self._made.clear()
        except BaseException as error:
            if aside is not None and aside.exists() and not self.target.exists():
                aside.rename(self.target)
            if isinstance(error, OSError):
                raise InputError(f"{self._shown} cannot be written ({error.strerror}). Give another folder.") from None
            raise
        finally:
            if aside is not None:
                shutil.rmtree(aside.parent, ignore_errors=True)

    def _remove(self) -> None:
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._path = None
        for parent in reversed(self._made):
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        self._made.clear()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: PathLike, obj: Any) -> None:
    """Indented JSON with sorted keys; NaN and infinity become null, arrays lists, paths text."""
    text = json.dumps(_plain(obj), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with writing(path) as target:
        target.write_text(text + "\n", encoding="utf-8")


def _plain(obj: Any) -> Any:
    if isinstance(obj, torch.Tensor):
        obj = obj.detach().cpu().numpy()
    if isinstance(obj, np.ndarray | np.generic):
        obj = obj.tolist()
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple | set | frozenset):
        return [_plain(value) for value in (sorted(obj) if isinstance(obj, set | frozenset) else obj)]
    if isinstance(obj, Path | np.dtype):
        return str(obj)
    if obj is None or isinstance(obj, str | int):
        return obj
    raise TypeError(f"{type(obj).__name__} has no JSON form.")
