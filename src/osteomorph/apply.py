"""A finished transform applied to more images, label maps and points, in either direction."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from osteomorph.errors import InputError
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image, Labels
from osteomorph.points import Frame, PointTable
from osteomorph.resampling import resample
from osteomorph.transforms import Transform

Interpolation = Literal["linear", "bspline", "nearest"]

Kind = Literal["image", "labels", "points"]

MOST_LABELS = 255
"""Ids of a label map that is taken for one without being called so."""

LEAST_ALIKE = 0.5
"""Share of a label map's voxels whose neighbour has the same id."""


@final
@dataclass(frozen=True)
class Applied:
    """What became of one input, also in words."""

    source: Path
    target: Path
    kind: Kind
    words: str


def apply_transform(
    transform: str | Path,
    inputs: Sequence[str | Path],
    folder: str | Path,
    *,
    inverse: bool = False,
    reference: str | Path | None = None,
    labels: bool = False,
    interpolation: Interpolation | None = None,
    frame: Frame | None = None,
    overwrite: bool = False,
) -> list[Applied]:
    """Carry things of the moving image into fixed space; with ``inverse``, things of the fixed image into moving space.

    Images and label maps are pulled back: every voxel of the target grid asks the transform (the inverse one with
    ``inverse``) where to look. Points go the other way, so they take the opposite one. Each result is written into
    ``folder`` under its input's name, all of them or none.

    transform: a file as ``register`` writes it, fixed mm -> moving mm, or the folder it lies in. ``inverse.h5`` beside a
        ``transform.h5`` is used for the opposite direction; otherwise the transform is inverted numerically.
    reference: file whose grid results lie on; by default the grid recorded in ``result.json`` beside the transform.
    labels: whether every voxel input is a label map; by default those with few whole numbers in regions are.
    interpolation: of images; by default what ``result.json`` says of ``moved.nii.gz``, else linear.
    frame: of points whose columns are named x,y,z; RAS by default.
    Raises InputError.
    """
    if labels and interpolation in ("linear", "bspline"):
        raise InputError(f"--labels and --interpolation {interpolation} contradict each other: labels take the nearest voxel.")
    way = _Way(_transform_file(Path(transform)), inverse, Path(reference) if reference is not None else None)
    sources = [Path(source) for source in inputs]
    out = Path(folder)
    targets = _targets(sources, out, overwrite, [way.path, way.opposite_path, *([way.reference] if way.reference else [])])
    done = []
    with _staging(out) as staging:
        for source, target in zip(sources, targets, strict=True):
            staged = staging / target.name
            if source.suffix.lower() == ".csv":
                kind, words = _carry_points(source, staged, way, frame)
            else:
                kind, words = _carry_voxels(source, staged, way, labels, interpolation)
            done.append(Applied(source, target, kind, words))
        out.mkdir(parents=True, exist_ok=True)
        for target in targets:
            os.replace(staging / target.name, target)
    return done


@final
class _Way:
    """Both directions of a transform, each read or computed when first asked for, and what is recorded beside it."""

    def __init__(self, path: Path, inverse: bool, reference: Path | None) -> None:
        self.path, self.inverse, self.reference = path, inverse, reference
        self.opposite_path = path.with_name("inverse.h5")
        self.source, self.target = ("fixed", "moving") if inverse else ("moving", "fixed")

    @cached_property
    def _forward(self) -> Transform:
        from osteomorph.io import read_transform

        return read_transform(self.path)

    @cached_property
    def _opposite(self) -> tuple[Transform, str]:
        from osteomorph.io import read_transform

        if self.path.name == "transform.h5" and self.opposite_path.exists():
            return read_transform(self.opposite_path), self.opposite_path.name
        return self._forward.inverse(), f"the numerical inverse of {self.path.name}"

    @property
    def pull(self) -> tuple[Transform, str]:
        """Target points -> source points, for voxels; and its name."""
        return self._opposite if self.inverse else (self._forward, self.path.name)

    def push(self, points_mm: Float[Tensor, "3 n"]) -> tuple[Float[Tensor, "3 n"], str]:
        """Source points -> target points; and what did it."""
        if self.inverse:
            return self._forward(points_mm), self.path.name
        back, name = self._opposite
        return solve(self._forward, back, points_mm), name

    @cached_property
    def record(self) -> dict[str, Any]:
        """``result.json`` beside the transform; empty where there is none."""
        try:
            found = json.loads(self.path.with_name("result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def recorded_grid(self, side: str) -> Grid | None:
        try:
            grid = self.record["grids"][side]
            return Grid(tuple(grid["shape"]), np.array(grid["affine"], dtype=np.float64))
        except (KeyError, TypeError, ValueError):
            return None

    @cached_property
    def onto(self) -> tuple[Grid, str]:
        """The grid of resampled images, and what to call it."""
        if self.reference is not None:
            from osteomorph.io import read_header

            grid = read_header(self.reference).grid
            if grid is None:
                raise InputError(
                    f"{self.reference} has no grid of three axes. Give an image on the grid you want as --reference."
                )
            return grid, f"the grid of {self.reference.name}"
        recorded = self.recorded_grid(self.target)
        if recorded is None:
            raise InputError(
                f"No result.json beside {self.path} says where the {self.target} image lies. Give that image with --reference."
            )
        return recorded, f"the {self.target} grid"


def _transform_file(path: Path) -> Path:
    if path.is_dir():
        path = path / "transform.h5"
    if not path.exists():
        raise InputError(f"{path} does not exist. Give the transform.h5 that register wrote.")
    if path.name == "inverse.h5" and path.with_name("transform.h5").exists():
        raise InputError(f"{path} is the way back. Give {path.with_name('transform.h5')} with --inverse instead.")
    return path


def _targets(sources: list[Path], folder: Path, overwrite: bool, also_read: list[Path]) -> list[Path]:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file. Name a folder with -o.")
    targets = [folder / _result_name(source) for source in sources]
    read = {path.resolve() for path in [*sources, *also_read]}
    for source, target in zip(sources, targets, strict=True):
        if not source.exists():
            raise InputError(f"{source} does not exist. Check the path; images, label maps and points (.csv) can be carried.")
        if target.resolve() in read:
            raise InputError(f"{target} would replace a file that is read. Name another folder with -o.")
        if target.exists() and not overwrite:
            raise InputError(f"{target} exists. Name another folder with -o, or add --overwrite.")
        if targets.count(target) > 1:
            raise InputError(f"Two inputs are called {target.name}, and results keep their names. Carry them one at a time.")
    return targets


def _result_name(source: Path) -> str:
    """The input's own, but one file where its format splits header and voxels into two, and NIfTI for a DICOM series."""
    from osteomorph.io.files import is_dicom

    if is_dicom(source):
        return f"{source.resolve().name.removesuffix('.dcm')}.nii.gz"
    single = {".mhd": ".mha", ".nhdr": ".nrrd"}.get(source.suffix.lower())
    return source.name if single is None else source.with_suffix(single).name


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A hidden folder on the same disk, which vanishes in the end."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        staging = Path(tempfile.mkdtemp(prefix=".osteomorph-", dir=place))
    except OSError as error:
        raise InputError(f"Cannot write into {folder} ({error.strerror}). Name another folder with -o.") from None
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _carry_points(source: Path, staged: Path, way: _Way, frame: Frame | None) -> tuple[Kind, str]:
    table = PointTable.read(source, frame)
    before = table.points_mm()
    after, name = way.push(before)
    table.with_points(after).write(staged)
    words = f"{len(table.rows)} points ({table.frame} mm), {way.source} -> {way.target} space through {name}"
    grid = way.recorded_grid(way.source)
    outside = 0 if grid is None else int((~grid.contains(before)).sum())
    if outside:
        words += f"; {outside} of them outside the {way.source} image's field of view (are they in {table.frame}? see --frame)"
    return "points", words


def _carry_voxels(source: Path, staged: Path, way: _Way, labels: bool, interpolation: Interpolation | None) -> tuple[Kind, str]:
    from osteomorph.io import read_image, read_labels, write_image

    onto, where = way.onto
    transform, name = way.pull
    path = f"{way.source} -> {way.target} space through {name}"
    found = read_labels(source) if labels else detected_labels(source) if interpolation is None else None
    if found is not None:
        carried = resample(found, transform, onto)
        write_image(staged, carried)
        lost = sorted(set(found.ids()) - set(carried.ids()))
        if lost:
            path += f" (no voxel of label {', '.join(map(str, lost))} falls there)"
        why = "" if labels else " (whole numbers, few of them, in regions; should it be an image, say --interpolation linear)"
        return "labels", f"label map{why}, {path}, nearest voxel, onto {where}"
    image = read_image(source)
    chosen = interpolation or _recorded_interpolation(way)
    write_image(staged, _nearest(image, transform, onto) if chosen == "nearest" else resample(image, transform, onto, chosen))
    return "image", f"image, {path}, {chosen}, onto {where}"


def _recorded_interpolation(way: _Way) -> Literal["linear", "bspline"]:
    moved = way.record.get("moved")
    recorded = moved.get("interpolation") if isinstance(moved, dict) else None
    return "bspline" if recorded == "bspline" else "linear"


def _nearest(image: Image, transform: Transform, onto: Grid) -> Image:
    out = torch.empty(image.data.shape[0], *onto.shape, dtype=image.data.dtype)
    fill = float(image.data.min())
    for planes, part in onto.slabs():
        points = transform(part.points(torch.float64).flatten(1))
        out[:, planes] = sample(image.data, image.grid, points, "nearest", fill).unflatten(-1, part.shape)
    return Image(out, onto, image.stored)


def solve(transform: Transform, back: Transform, points_mm: Float[Tensor, "3 n"], steps: int = 10) -> Float[Tensor, "3 n"]:
    """x with transform(x) = points, from an inverse that is only nearly one; each point keeps its best step."""
    aim = points_mm
    best = back(points_mm)
    least = (points_mm - transform(best)).norm(dim=0)
    for _ in range(steps):
        guess = back(aim)
        error = points_mm - transform(guess)
        better = error.norm(dim=0) < least
        best, least = torch.where(better, guess, best), torch.where(better, error.norm(dim=0), least)
        aim = aim + error
    return best


def detected_labels(path: Path) -> Labels | None:
    """The file as labels if it is a label map: few whole numbers, none negative, in regions of one value.

    An image in integers has noise, so that its neighbours differ. Raises InputError for a file that cannot be read.
    """
    from osteomorph.io import read_header, read_labels

    read_header(path)
    try:
        labels = read_labels(path)
    except InputError:
        return None
    data = labels.data[0]
    here, beside = data[:, :-1], data[:, 1:]
    inside = here != 0
    alike = float((here == beside)[inside].float().mean())
    return labels if alike >= LEAST_ALIKE and len(labels.ids()) <= MOST_LABELS else None
