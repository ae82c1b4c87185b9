"""Points in CSV files: three columns are coordinates in mm, the others are carried along."""

import csv
import math
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from osteomorph.errors import InputError

Frame = Literal["RAS", "LPS"]

HEADERS: dict[tuple[str, str, str], Frame | None] = {("x", "y", "z"): None, ("r", "a", "s"): "RAS", ("l", "p", "s"): "LPS"}
"""Column names that are coordinates, in any case, and the frame they name."""


@final
@dataclass(frozen=True, eq=False)
class PointTable:
    """A CSV file's cells, and where in it the coordinates are.

    header: column names, or None where the file has none.
    rows: text of every cell, as read.
    columns: the three columns that hold coordinates in mm, in ``frame``.
    """

    header: list[str] | None
    rows: list[list[str]]
    columns: tuple[int, int, int]
    frame: Frame
    delimiter: str

    @classmethod
    def read(cls, path: Path, frame: Frame | None = None) -> "PointTable":
        """Columns x,y,z (in ``frame``, RAS by default), r,a,s (RAS) or l,p,s (LPS); or, without a header, three numbers a row.

        Raises InputError for a file without such columns, without points, or with a cell that is no number.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise InputError(f"{path} does not exist. Check the path.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a readable CSV file ({error}).") from None
        first = text.lstrip().split("\n", 1)[0]
        delimiter = next((d for d in (",", ";", "\t") if d in first), ",")
        rows = [
            [cell.strip() for cell in row]
            for row in csv.reader(StringIO(text), delimiter=delimiter)
            if any(map(str.strip, row))
        ]
        if not rows:
            raise InputError(f"{path} is empty. Give a CSV file with columns x,y,z in mm.")
        header = None if all(map(_is_number, rows[0])) else rows.pop(0)
        columns, named = _columns(path, header, rows)
        if named is not None and frame is not None and named != frame:
            raise InputError(f"{path} names {named} coordinates in its header, and --frame says {frame}. Leave --frame out.")
        table = cls(header, rows, columns, named or frame or "RAS", delimiter)
        table._check(path)
        return table

    def _check(self, path: Path) -> None:
        first = 1 if self.header is None else 2
        if not self.rows:
            raise InputError(f"{path} holds no points.")
        width = len(self.header) if self.header is not None else len(self.rows[0])
        for line, row in enumerate(self.rows, first):
            if len(row) != width:
                raise InputError(f"{path}: row {line} has {len(row)} columns, not {width}. Correct that row.")
            for column in self.columns:
                if not _is_number(row[column]):
                    raise InputError(f"{path}: row {line} holds {row[column]!r} as a coordinate. Give a finite number in mm.")

    def points_mm(self) -> Float[Tensor, "3 n"]:
        """RAS mm, float64."""
        points = torch.tensor([[float(row[c]) for row in self.rows] for c in self.columns], dtype=torch.float64)
        return self._flipped(points)

    def with_points(self, points_mm: Float[Tensor, "3 n"]) -> "PointTable":
        """The same table with other coordinates (given in RAS mm, stored in the table's frame)."""
        rows = [list(row) for row in self.rows]
        for row, point in zip(rows, self._flipped(points_mm).T.tolist(), strict=True):
            for column, value in zip(self.columns, point, strict=True):
                row[column] = f"{value:.6f}"
        return replace(self, rows=rows)

    def write(self, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=self.delimiter, lineterminator="\n")
            if self.header is not None:
                writer.writerow(self.header)
            writer.writerows(self.rows)

    def _flipped(self, points: Float[Tensor, "3 n"]) -> Float[Tensor, "3 n"]:
        signs = np.array([1.0, 1.0, 1.0] if self.frame == "RAS" else [-1.0, -1.0, 1.0])
        return points * torch.as_tensor(signs, dtype=points.dtype)[:, None]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _columns(path: Path, header: list[str] | None, rows: list[list[str]]) -> tuple[tuple[int, int, int], Frame | None]:
    if header is None:
        if len(rows[0]) != 3:
            raise InputError(
                f"{path} has no header and {len(rows[0])} columns. Name the coordinate columns x,y,z in a first row."
            )
        return (0, 1, 2), None
    lower = [name.lower() for name in header]
    for names, frame in HEADERS.items():
        if all(lower.count(name) == 1 for name in names):
            return (lower.index(names[0]), lower.index(names[1]), lower.index(names[2])), frame
    raise InputError(f"{path} has no columns x,y,z (or r,a,s or l,p,s); its header is {','.join(header)[:80]}. Rename them.")
