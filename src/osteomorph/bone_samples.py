"""What one step of training sees: a simulated pair, kept on disk once made, and patches of it that are turned and disturbed.

Nothing random is stored: pair n follows from the seed and n, a patch from the seed and the step.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate

from osteomorph.bone_anatomies import DRAWN, REAL, OwnCt, Patient, patients
from osteomorph.bone_network import SPACING_MM, unit_intensities
from osteomorph.descent import Progress
from osteomorph.geometry import Grid, sample
from osteomorph.simulate.dataset import SimulatedPairs
from osteomorph.simulate.scanner import blur
from osteomorph.training_folder import write_tensors

PAIR_VOXELS = 80
PATCH_VOXELS = 48

SHARES: Mapping[str, float] = {"trunk": 0.34, "lumbar": 0.18, "thorax": 0.10, "knee": 0.08, "hips": 0.08, "ct": 0.22}
"""Of the pairs, by the start of the patient's name; others have none."""

LATER, LATER_SHARES = 700, {"hips": 0.5, "trunk": 0.1, "knee": 0.15, "thorax": 0.25}
"""Number from which on, and shares of the pairs then: of what is learned last."""

FOCUSED = 0.5
"""Of the pairs of a patient, are looked for near the spine; others anywhere."""

REAL_SHARE = 0.65
"""Of the pairs of a real CT: its own intensities are the moving image, rather than simulated ones."""

CENTRED = 0.6
"""Of the patches are centred on bone, as nearly as their pair allows."""

LONGEST_MM = 48.0
"""An offset to the middle of a bone that is farther keeps its direction and has this length."""

TILT_DEG, TURN_DEG = 15.0, 30.0
"""Largest rotation of both images together, and of one against the other in `TURNED` of the samples."""
TURNED = 0.6

POINTS = 512
"""With a known partner, half of them within `NEAR_MM` of one another, so that some are hard to tell apart."""
NEAR_MM = 30.0


@final
@dataclass(frozen=True, eq=False)
class StoredPair:
    """One anatomy as an MR (0) and as a CT (1) on one grid; the CT's frame is the anatomy's.

    images: prepared, in [0, 1]. labels: bones by number, -1 where nothing is known. displacement: mm, MR -> CT.
    body: inside the skin, of the MR. centres_mm: for each image, label -> middle of the bone.
    """

    images: Float[Tensor, "2 i j k"] = field(repr=False)
    labels: Int[Tensor, "2 i j k"] = field(repr=False)
    displacement: Float[Tensor, "3 i j k"] = field(repr=False)
    body: Bool[Tensor, "1 i j k"] = field(repr=False)
    grid: Grid
    centres_mm: Sequence[Mapping[int, np.ndarray]] = field(repr=False)


@final
@dataclass(frozen=True, eq=False)
class Patches:
    """images: (2, 1, n, n, n). labels: -1 where nothing is known. offset_mm: along the lattices' axes, 0 outside bone.

    grids: the lattices of the two patches, in the world of the pair. points, partners: (3, p) world mm of what is the same
    place in the first and in the second.
    """

    images: Float[Tensor, "2 1 i j k"] = field(repr=False)
    labels: Int[Tensor, "2 i j k"] = field(repr=False)
    offset_mm: Float[Tensor, "2 3 i j k"] = field(repr=False)
    grids: tuple[Grid, Grid]
    points: Float[Tensor, "3 p"] = field(repr=False)
    partners: Float[Tensor, "3 p"] = field(repr=False)


@final
class Pairs:
    """Pair n of some patients, made at first need and kept in ``folder``.

    places: names of all patients that numbers fall on, whether they are there or not, so that pair n is the same whoever is
    left out; those given by default.
    """

    def __init__(
        self,
        patients: Sequence[Patient],
        folder: Path | None,
        seed: int,
        shape: int = PAIR_VOXELS,
        places: Sequence[str] | None = None,
    ) -> None:
        self.patients, self.folder, self.seed = {p.name: p for p in patients}, folder, seed
        self.shape, self._simulated = (shape,) * 3, dict[tuple[str, bool], Any]()  # simulators, made at first need
        self._places = list(self.patients if places is None else places)
        self._chance, self._later_chance = (self._chances(shares) for shares in (SHARES, LATER_SHARES))

    def _chances(self, shares: Mapping[str, float]) -> Float[np.ndarray, " n"]:
        """Of every place; all alike where none has a share."""
        kinds = [next((kind for kind in shares if name.startswith(kind)), "") for name in self._places]
        weight = np.array([shares.get(kind, 0.0) / kinds.count(kind) for kind in kinds])
        return weight / weight.sum() if weight.any() else np.full(len(kinds), 1 / max(len(kinds), 1))

    def numbers(self, pool: int) -> tuple[list[int], list[int]]:
        """Of the first ``pool``, those of the drawn patients that are there, and those of the real ones."""
        there = [(n, self.patients.get(self.whose(n))) for n in range(pool)]
        drawn = [n for n, patient in there if patient is not None and patient.atlas.scan is None]
        return drawn, [n for n, patient in there if patient is not None and patient.atlas.scan is not None]

    def whose(self, number: int) -> str:
        """The patient's name."""
        return self._drawn(number)[0]

    def _drawn(self, number: int) -> tuple[str, np.random.Generator]:
        """The patient's name, and the generator of the rest."""
        generator = np.random.default_rng((self.seed, number, 1))
        chance = self._chance if number < LATER else self._later_chance
        return self._places[int(generator.choice(len(self._places), p=chance))], generator

    def __getitem__(self, number: int) -> StoredPair:
        if self.folder is None:
            return self._made(number)
        path = self.folder / f"pair{number:05d}.pt"
        if path.is_file():
            return _unpacked(torch.load(path, weights_only=False))
        self.folder.mkdir(parents=True, exist_ok=True)
        packed = _packed(self._made(number))
        write_tensors(path, packed)
        return _unpacked(packed)  # as it will be read back

    def _made(self, number: int) -> StoredPair:
        name, generator = self._drawn(number)
        patient, focused = self.patients[name], bool(generator.random() < FOCUSED)
        if (name, focused) not in self._simulated:
            atlas = [patient.focused if focused else patient.atlas]
            self._simulated[name, focused] = SimulatedPairs(
                atlas, self.shape, SPACING_MM, offset_deg=0.0, offset_mm=0.0, scaled=False, seed=self.seed
            )
        drawn = self._simulated[name, focused].pair(number)
        grid, scan = drawn.grid, patient.atlas.scan
        points = grid.points().flatten(1)
        moving = drawn.moving
        if scan is not None and generator.random() < REAL_SHARE:
            moving = sample(scan.data, scan.grid, points, outside=-1000.0).unflatten(1, grid.shape)
        labels = torch.cat([drawn.fixed_labels, drawn.moving_labels]).to(torch.int16)
        there = points + drawn.displacement.flatten(1)
        for volume, places in zip(labels, (there, points), strict=True):
            unknown = (volume == 0) & patient.doubtful(places).unflatten(0, grid.shape)
            for label in patient.unsure:
                unknown |= volume == label
            volume[unknown] = -1
        centres = {k: c for k, c in patient.centres_mm.items() if k in drawn.poses}
        back = {k: np.linalg.inv(drawn.poses[k]) for k in centres}
        images = torch.cat([unit_intensities(drawn.fixed), unit_intensities(moving)])
        return StoredPair(
            images, labels, drawn.displacement, drawn.body, grid,
            ({k: back[k][:3, :3] @ c + back[k][:3, 3] for k, c in centres.items()}, centres),
        )  # fmt: skip


def pairs_of(
    shared: Path,
    seed: int,
    data: Path | None,
    real: Sequence[str],
    own: Sequence[OwnCt] = (),
    drawn: Mapping[str, int] = DRAWN,
    progress: Progress | None = None,
) -> Pairs:
    """Of all that a training draws from, in a folder of patients and pairs.

    data: folder of the real CTs, real: which of these; pair n is the same whichever are left out. own: a user's, whose pairs
    are others and lie apart. drawn: patients by field of view.
    """
    seen = patients(shared / "patients", seed, data, tuple(real), own, drawn, progress)
    public = () if own and data is None else tuple(REAL)
    places = [p.name for p in seen if p.name not in REAL] + list(public)
    apart = hashlib.sha256("".join(places).encode()).hexdigest()[:12]
    return Pairs(seen, shared / (f"pairs-{apart}" if own else "pairs"), seed, places=places)


def _packed(pair: StoredPair) -> dict[str, Any]:
    return {
        "images": pair.images.half(),
        "labels": pair.labels.to(torch.int8) if int(pair.labels.max()) < 128 else pair.labels,
        "displacement": pair.displacement.half(),
        "body": pair.body,
        "grid": pair.grid,
        "centres_mm": pair.centres_mm,
    }


def _unpacked(kept: dict[str, Any]) -> StoredPair:
    floats = {name: kept[name].float() for name in ("images", "displacement")}
    return StoredPair(**{**kept, **floats, "labels": kept["labels"].to(torch.int16)})


# -- patches --------------------------------------------------------------------------------------------------------------
def patches_of(
    pair: StoredPair,
    generator: np.random.Generator,
    size: int = PATCH_VOXELS,
    augment: bool = True,
    porous: float = 0.0,
    empty: float = 0.0,
) -> Patches:
    """Two patches, each about a place of its own, on turned, mirrored and scaled lattices; or on plain ones.

    porous: share of the CTs whose trabecular bone is thinned, as in the old. empty: share that show nothing but noise.
    """
    grids = _lattices(pair, generator, size, augment)
    if empty and generator.random() < empty:
        return _noise(grids, generator, size)
    images, labels, offsets = [], [], []
    for side, grid in enumerate(grids):
        stored = pair.images[side : side + 1]
        if augment:
            stored = _as_slices(stored, side == 1, generator)
        points = grid.points().flatten(1)
        image = sample(stored, pair.grid, points, outside=0.0).unflatten(1, grid.shape)
        label = sample(pair.labels[side : side + 1], pair.grid, points, "nearest", outside=-1)[0]
        if augment and side == 1 and porous and generator.random() < porous:
            image = _thinned(image, label.unflatten(0, grid.shape) > 0, generator)
        inside = pair.grid.contains(points).unflatten(0, grid.shape)
        images.append(_disturbed(image, side == 1, generator) * inside if augment else image)
        labels.append(label.unflatten(0, grid.shape))
        offsets.append(_offsets(label, points, pair.centres_mm[side], grid).unflatten(1, grid.shape))
    points, partners = _partners(pair, grids, torch.stack(labels), generator)
    return Patches(torch.stack(images), torch.stack(labels), torch.stack(offsets), grids, points, partners)


def _lattices(pair: StoredPair, generator: np.random.Generator, size: int, augment: bool) -> tuple[Grid, Grid]:
    """Each about a place of its own, within bone or anywhere: where something lies in one patch must not tell where its
    partner lies in the other, or the padding of the convolutions, which gives the place away, is all that features learn."""
    common = Rotation.identity()
    other, flip, scale = Rotation.identity(), np.eye(3), 1.0
    if augment:
        common = _turn(generator, TILT_DEG * generator.random())
        if generator.random() < TURNED:
            other = _turn(generator, TURN_DEG * generator.random())
        if generator.random() < 0.5:
            flip = np.diag([-1.0, 1.0, 1.0])
        scale = float(generator.uniform(0.92, 1.08))
    turned_side = int(generator.integers(2))
    out = []
    for side in (0, 1):
        columns = (common * other if side == turned_side else common).as_matrix() @ flip * (SPACING_MM * scale)
        affine = np.eye(4)
        affine[:3, :3] = columns
        affine[:3, 3] = _centre_mm(pair, side, generator, size) - columns @ np.full(3, (size - 1) / 2)
        out.append(Grid((size,) * 3, affine))
    return out[0], out[1]


def _centre_mm(pair: StoredPair, side: int, generator: np.random.Generator, size: int) -> np.ndarray:
    """Of a patch that lies about within its image."""
    middle, spare = pair.grid.centre_mm, SPACING_MM * (PAIR_VOXELS - size) / 2 + 4.0
    bone = (pair.labels[side] > 0).nonzero()
    if len(bone) and generator.random() < CENTRED:
        voxel = bone[int(generator.integers(len(bone)))].double()[:, None]
        return np.asarray(pair.grid.world(voxel)[:, 0].numpy().clip(middle - spare, middle + spare))
    return middle + generator.uniform(-spare, spare, 3)


def _turn(generator: np.random.Generator, degrees: float) -> Rotation:
    axis = generator.standard_normal(3)
    return Rotation.from_rotvec(axis / np.linalg.norm(axis) * degrees, degrees=True)


def _offsets(label: Tensor, points: Tensor, centres_mm: Mapping[int, np.ndarray], grid: Grid) -> Float[Tensor, "3 n"]:
    """From bone to the middle of its bone, in mm along the lattice's axes."""
    out = torch.zeros_like(points)
    to_lattice = torch.as_tensor(SPACING_MM * np.linalg.inv(grid.affine[:3, :3]), dtype=points.dtype)
    for number in torch.unique(label[label > 0]).tolist():
        here = (label == number).nonzero()[:, 0]
        centre = torch.as_tensor(centres_mm[number], dtype=points.dtype)[:, None]
        out[:, here] = to_lattice @ (centre - points[:, here])
    length = out.norm(dim=0).clamp(min=1e-6)
    return out * (LONGEST_MM / length).clamp(max=1.0)


def _partners(
    pair: StoredPair, grids: tuple[Grid, Grid], labels: Tensor, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Places in the body that both patches show, half of them in bone where there is enough of it."""
    places = grids[0].points().flatten(1)
    body = sample(pair.body.to(torch.uint8), pair.grid, places, "nearest", outside=0)[0] > 0
    known = body & (labels[0].flatten() >= 0)
    bone = known & (labels[0].flatten() > 0)
    anchor = places[:, bone if bool(bone.any()) else known]
    if anchor.shape[1] == 0:
        return places[:, :0], places[:, :0]
    near = (places - anchor[:, int(generator.integers(anchor.shape[1])), None]).norm(dim=0) < NEAR_MM
    chosen = []
    for among, share in ((known, 2), (bone, 4), (known & near, 4)):
        some = among.nonzero()[:, 0]
        if len(some):
            chosen.append(some[torch.from_numpy(generator.integers(len(some), size=POINTS // share))])
    points = places[:, torch.unique(torch.cat(chosen))]
    partners = points + sample(pair.displacement, pair.grid, points)
    both = grids[1].contains(partners) & (sample(labels[1:], grids[1], partners, "nearest", outside=-1)[0] >= 0)
    return points[:, both], partners[:, both]


# -- what scanners do besides ------------------------------------------------------------------------------------------------
def _as_slices(image: Float[Tensor, "1 i j k"], ct: bool, generator: np.random.Generator) -> Float[Tensor, "1 i j k"]:
    """Some images come in slices of 4 or 6 mm."""
    if generator.random() > (0.2 if ct else 0.4):
        return image
    axis = 2 if ct else int(generator.choice(3, p=(0.6, 0.2, 0.2)))
    stride = [1, 1, 1]
    stride[axis] = int(generator.choice((2, 3), p=(0.7, 0.3)))
    return interpolate(avg_pool3d(image[None], stride), size=image.shape[1:], mode="trilinear")[0]


def _noise(grids: tuple[Grid, Grid], generator: np.random.Generator, size: int) -> Patches:
    """Two patches of noise of any strength and grain, without bone and without partners."""
    images = []
    for _ in grids:
        image = torch.from_numpy(generator.standard_normal((1, size, size, size), dtype=np.float32))
        if generator.random() < 0.5:
            sigma = float(generator.uniform(0.3, 1.2))
            for axis in (1, 2, 3):
                image = blur(image, axis, sigma)
        image = image / image.std() * float(generator.uniform(0, 0.5)) + float(generator.uniform(0, 1))
        images.append(image.clamp(0, 1))
    labels, nowhere = torch.zeros(2, size, size, size, dtype=torch.int16), torch.zeros(3, 0)
    return Patches(torch.stack(images), labels, torch.zeros(2, 3, size, size, size), grids, nowhere, nowhere)


TRABECULAR, CORTICAL = 0.6, 0.8
"""Prepared intensities (200 and 600 HU) up to which bone loses all that it loses, and from which on it loses nothing."""
MOST_LOST = 0.35
"""Of marrow, 140 HU, but never below `SOFT`, fat and muscle half and half."""
SOFT = 0.3


def _thinned(
    image: Float[Tensor, "1 i j k"], bone: Bool[Tensor, "i j k"], generator: np.random.Generator
) -> Float[Tensor, "1 i j k"]:
    """A CT with less trabecular bone: drawn marrow has 100 HU and more, in the old it may have the HU of muscle and less."""
    lost = float(generator.uniform(0.0, MOST_LOST))
    less = image - lost * ((CORTICAL - image) / (CORTICAL - TRABECULAR)).clamp(0, 1)
    return torch.where(bone, torch.maximum(less, image.clamp(max=SOFT)), image)


def _disturbed(image: Float[Tensor, "1 i j k"], ct: bool, generator: np.random.Generator) -> Float[Tensor, "1 i j k"]:
    """Other windows, gamma, receive fields, blur and noise than the simulated scanners have."""
    strong = 0.3 if ct else 1.0
    if generator.random() < 0.3:
        sigma = float(generator.uniform(0.3, 0.8))
        for axis in (1, 2, 3):
            image = blur(image, axis, sigma)
    if generator.random() < 0.7:
        image = image.clamp(min=1e-4) ** float(np.exp(generator.normal(0, 0.2 * strong)))
    if not ct and generator.random() < 0.4:
        knots = torch.as_tensor(generator.normal(0, 0.25, (1, 1, 3, 3, 3)), dtype=image.dtype)
        image = image * interpolate(knots, size=image.shape[1:], mode="trilinear")[0].exp()
    image = image * float(np.exp(generator.normal(0, 0.12 * strong))) + float(generator.normal(0, 0.02 * strong))
    if generator.random() < 0.5:
        noise = torch.from_numpy(generator.standard_normal(image.shape, dtype=np.float32))
        image = image + noise * float(generator.uniform(0, 0.05))
    return image.clamp(0, 1)
