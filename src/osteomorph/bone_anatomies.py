"""The patients that the shipped network is trained on: drawn ones, and real CTs with bone labels."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from osteomorph import io
from osteomorph.descent import Progress
from osteomorph.geometry import sample
from osteomorph.simulate.anatomy import TISSUES, Anatomy, View
from osteomorph.simulate.atlas import Atlas, atlas_from_ct, voxelised
from osteomorph.simulate.naming import BONE_LABELS, VERTEBRAE, names_for
from osteomorph.simulate.subjects import procedural
from osteomorph.simulate.trunk import Trunk
from osteomorph.training_folder import sha256, write_tensors

SPACING_MM = 1.6
"""Of drawn anatomies, once they are voxels."""

DRAWN = {"trunk": 6, "lumbar": 12, "thorax": 6, "knee": 6, "hips": 10}
"""Patients by field of view. "trunk" reaches from T10 to the upper thighs; "hips" is the pelvis of others."""

REGION = {"trunk": "lumbar", "hips": "pelvis"}
"""What `procedural` calls them."""

SPINE = {BONE_LABELS[name] for name in (*VERTEBRAE, "sacrum")}
COLUMN_MM = (180.0, 170.0)
"""Width and depth of what is looked at around a spine."""

BONE_TISSUE = tuple(TISSUES.index(name) for name in ("cortex", "sclerosis", "marrow"))


@final
@dataclass(frozen=True)
class RealCt:
    """A CT of a public collection and its bone labels, in a folder of volumes.

    certain_below_mm: world z above which its labels are not to be believed. unsure: bones whose own labels are not.
    """

    ct: str
    labels: str
    licence: str
    certain_below_mm: float = float("inf")
    unsure: tuple[int, ...] = ()


REAL: Mapping[str, RealCt] = {
    "ct-lumbopelvic": RealCt(
        "ct-lumbopelvic/ct.nii.gz", "ct-lumbopelvic/labels.nii.gz", "CC BY 4.0 (Mayr et al. 2023, TCIA CCTH-A01)", 300.0, (21,)
    ),
    "ct-abdomen-pelvis-3mm": RealCt(
        "ct-abdomen-pelvis-3mm/ct.nii.gz", "ct-abdomen-pelvis-3mm/labels.nii.gz", "Apache-2.0 (TotalSegmentator's example)"
    ),
    "ct-lumbar-crop": RealCt("ct-lumbar-crop/ct.nii.gz", "ct-lumbar-crop/seg-vert.nii.gz", "Apache-2.0 (TPTBox sample)"),
}


@final
class OwnCt(NamedTuple):
    """A user's CT and the label map of its bones, on its grid."""

    ct: Path
    labels: Path

    @property
    def name(self) -> str:
        """By what the files hold and how bones are called, so that what is kept of one is never taken for another."""
        told = (sha256(self.ct), sha256(self.labels), sorted(names_for(self.labels).items()))
        return f"ct-{hashlib.sha256(repr(told).encode()).hexdigest()[:12]}"


@final
@dataclass(frozen=True, eq=False)
class Patient:
    """atlas: the anatomy as voxels. centres_mm: label -> (3,) middle of the bone, anatomy frame.

    certain_below_mm, unsure: see `RealCt`; the labels of drawn patients are exact.
    """

    name: str
    atlas: Atlas = field(repr=False)
    centres_mm: Mapping[int, np.ndarray] = field(repr=False)
    certain_below_mm: float = float("inf")
    unsure: tuple[int, ...] = ()

    @classmethod
    def of(cls, name: str, atlas: Atlas, certain_below_mm: float = float("inf"), unsure: tuple[int, ...] = ()) -> "Patient":
        centres = {}
        for label, part in atlas.bones.items():
            inside = part.grid.points(torch.float64)[:, part.values[0] < 0]
            if inside.shape[1]:
                centres[label] = inside.mean(1).numpy()
        return cls(name, atlas, centres, certain_below_mm, unsure)

    @property
    def focused(self) -> Atlas:
        """The atlas seen in a column around the spine; as it is where there is no sacrum to tell a spine by."""
        spine = [centre for label, centre in self.centres_mm.items() if label in SPINE]
        whole = next(iter(self.atlas.views.values()))
        if BONE_LABELS["sacrum"] not in self.centres_mm:
            return self.atlas
        x, y, _ = np.mean(spine, 0)
        view = View((float(x), float(y) + 15.0, whole.centre_mm[2]), (*COLUMN_MM, whole.size_mm[2]), whole.labelled)
        return replace(self.atlas, fields_of_view={"column": view})

    def doubtful(self, points_mm: Float[Tensor, "3 n"]) -> Bool[Tensor, " n"]:
        """Where what looks like bone may have no label: never in drawn patients."""
        if self.atlas.scan is None:
            return torch.zeros(points_mm.shape[1], dtype=torch.bool)
        tissue = sample(self.atlas.tissue[None], self.atlas.grid, points_mm, "nearest", outside=0)[0]
        return torch.isin(tissue, torch.tensor(BONE_TISSUE, dtype=tissue.dtype)) | (points_mm[2] > self.certain_below_mm)


def drawn_patient(view: str, seed: int, number: int) -> Patient:
    """Patient ``number`` of a seed as voxels; ``view`` as in `DRAWN`."""
    region = REGION.get(view, view)
    anatomy = procedural(region, seed)(number).anatomy
    around = _whole(anatomy) if view == "trunk" else anatomy.views[region]
    around = View(around.centre_mm, around.size_mm, tuple(anatomy.names))
    return Patient.of(f"{view}{number:03d}", voxelised(anatomy, SPACING_MM, around))


def _whole(anatomy: Anatomy) -> View:
    """All fields of view of a trunk in one."""
    assert isinstance(anatomy, Trunk)
    ends = [
        (np.array(v.centre_mm) - np.array(v.size_mm) / 2, np.array(v.centre_mm) + np.array(v.size_mm) / 2)
        for v in anatomy.views.values()
    ]
    low, high = np.min([e[0] for e in ends], 0), np.max([e[1] for e in ends], 0)
    centre, size = (low + high) / 2, high - low
    return View((centre[0], centre[1], centre[2]), (size[0], size[1], size[2]), tuple(anatomy.names))


def real_patient(name: str, folder: Path) -> Patient:
    """One of `REAL`, from the folder that holds them."""
    real = REAL[name]
    ct = io.read_image(folder / real.ct)
    labels = io.read_labels(folder / real.labels, ct.grid)
    atlas = atlas_from_ct(ct, labels, names_for(folder / real.labels) or None)
    return Patient.of(name, atlas, real.certain_below_mm, real.unsure)


def own_patient(own: OwnCt) -> Patient:
    """What looks like bone there and has no label is not learned from. Raises InputError: see `atlas_from_ct`."""
    ct = io.read_image(own.ct)
    labels = io.read_labels(own.labels, ct.grid)
    return Patient.of(own.name, atlas_from_ct(ct, labels, names_for(own.labels) or None))


def patients(
    folder: Path,
    seed: int,
    data: Path | None,
    names: tuple[str, ...],
    own: Sequence[OwnCt] = (),
    drawn: Mapping[str, int] = DRAWN,
    progress: Progress | None = None,
) -> list[Patient]:
    """All that a training draws from; each is made once and kept in ``folder``.

    own: a user's CTs, read first because they may be refused. drawn: patients by field of view.
    """
    given = {one.name: partial(own_patient, one) for one in own}
    simulated = {}
    for view, count in drawn.items():
        for number in range(count):
            other = 100 * list(DRAWN).index(view) + number  # patients of two views are not the same
            simulated[f"{view}{number:03d}"] = partial(drawn_patient, view, seed, other)
    public = {} if data is None else {name: partial(real_patient, name, data) for name in names}
    wanted, made = given | simulated | public, dict[str, Patient]()
    for name, make in wanted.items():
        if progress is not None:
            progress("patients", len(made), len(wanted))
        made[name] = kept(folder / f"{name}.pt", make)
    return [made[name] for name in (*simulated, *public, *given)]


def kept(path: Path, make: Callable[[], Patient]) -> Patient:
    """What a file holds; where there is none yet, it is made and written."""
    if path.is_file():
        read: Patient = torch.load(path, weights_only=False)
        return read
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, made)
    return made
