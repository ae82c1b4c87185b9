"""How well the shipped network tells bones apart, and how well its features find their partner.

    python benchmarks/bones.py drawn [--weights FILE] [--patients 20] [--seed 77] [--views VIEW ...] [--cache DIR]
    python benchmarks/bones.py real --data FOLDER [--only NAME ...] [--pictures DIR]
    python benchmarks/bones.py features

drawn     patients of a seed that training never saw, one CT and one MR (contrasts in turn) each, at 1.5 mm
real      the real CTs, and real MRs of which vertebral bodies alone are labelled; FOLDER as in docs/training.md
features  share of points whose best match in a window of 48 mm lies within 4 mm, for features and for MIND-SSC, CT rotated

Of bones with at least 3 cm^3 in the field of view, in the label map `truth` and the found one:
Dice      of a bone with the found one that shares most with it
merged    found bones that cover more than 30 % of each of several true ones
split     true bones of which several found ones cover more than 15 % each
missed    true bones of which no found one covers a third
extra     found bones of which less than a fifth is labelled, where the label map is complete
named     vertebrae, sacra, hips and femurs whose found bone has their very name (of all of them), and those that have another's
"""

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from bone_pictures import overlay
from scipy.spatial.transform import Rotation
from torch.nn.functional import avg_pool3d

from osteomorph.bone_anatomies import REAL, drawn_patient, kept
from osteomorph.bone_network import BoneNetwork, load_bone_network, shipped_network, unit_intensities
from osteomorph.found_bones import FoundBones, features_of, find_bones
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image, Labels
from osteomorph.io import read_image, read_labels
from osteomorph.similarity import mind_ssc
from osteomorph.simulate.dataset import Sample, SimulatedPairs
from osteomorph.simulate.mr import CONTRASTS
from osteomorph.simulate.naming import BONE_LABELS, SPINE_IDS, names_for, structure
from osteomorph.threads import threads

SEED = 77
VIEWS = ("lumbar", "thorax", "lumbar", "pelvis", "lumbar", "knee")
LEAST_MM3 = 3000.0
WINDOW_MM, HIT_MM = 24.0, 4.0


# -- what is measured --------------------------------------------------------------------------------------------------------
class Names(NamedTuple):
    """Of true bones that have a level or a side: those whose found bone is called by it, those called by another's, and all."""

    right: int
    wrong: int
    all: int

    def __str__(self) -> str:
        return f"{self.right} of {self.all}, {self.wrong} wrong"


def named(shared: np.ndarray, found: Labels, true_names: Mapping[int, str], wanted: Sequence[int]) -> Names:
    """shared: (true ids, found ids) voxels that both have. A true bone's found one is that which has most of it."""
    asked = [k for k in wanted if true_names.get(k) in NAMED]
    said = {}
    for k in asked:
        best = int(shared[k, 1:].argmax()) + 1 if shared.shape[1] > 1 else 0
        said[k] = found.name(best) if best and shared[k, best] else ""
    right = sum(said[k] == true_names[k] for k in asked)
    return Names(right, sum(said[k] in NAMED for k in asked) - right, len(asked))


NAMED = {name for name in BONE_LABELS if not name.startswith(("rib", "tibia", "fibula", "patella"))}


@dataclass(frozen=True)
class Count:
    """Of one image."""

    name: str
    bones: int
    dice: float
    least_dice: float
    bone_dice: float
    merged: int
    split: int
    missed: int
    extra: int
    seconds: float
    names: Names
    sureness: tuple[tuple[float, float], ...] = ()
    """Of every found bone of a complete label map, its confidence and its Dice with the true bone it shares most with."""


def count(
    name: str,
    truth: Labels,
    found: FoundBones,
    seconds: float,
    complete: bool = True,
    among: Sequence[int] | None = None,
    names: Mapping[int, str] | None = None,
) -> Count | None:
    """Of one image; None where no bone is wanted. among: labels that count, all by default. names: of the true labels, those
    of drawn patients by default.

    Without ``complete``, what is found beside the labelled bones is not judged.
    """
    voxel = float(np.prod(truth.grid.spacing_mm))
    true, said = truth.data[0].numpy().astype(int), found.labels.data[0].numpy().astype(int)
    sizes = np.bincount(true.ravel())
    shared = np.zeros((true.max() + 1, said.max() + 1), int)
    np.add.at(shared, (true.ravel(), said.ravel()), 1)
    wanted = [k for k in range(1, len(sizes)) if sizes[k] * voxel >= LEAST_MM3 and (among is None or k in among)]
    if not wanted:
        return None
    said_sizes = shared.sum(0)
    dice, split, missed = [], 0, 0
    for k in wanted:
        share = shared[k, 1:] / sizes[k]
        best = int(share.argmax()) + 1 if share.size else 0
        dice.append(2 * shared[k, best] / (sizes[k] + said_sizes[best]) if best and shared[k, best] else 0.0)
        split += int((share > 0.15).sum() > 1)
        missed += int(share.size == 0 or share.max() < 1 / 3)
    covers = shared[wanted][:, 1:] / sizes[wanted][:, None] > 0.3
    inside = 1 - shared[0, 1:] / np.maximum(said_sizes[1:], 1)
    both = int(((true > 0) & (said > 0)).sum())
    overlap = 2 * shared[1:] / np.maximum(sizes[1:, None] + said_sizes, 1)
    sureness = tuple((c, float(overlap[:, k].max(initial=0.0))) for k, c in found.confidence.items())
    return Count(
        name, len(wanted), float(np.mean(dice)), float(np.min(dice)),
        2 * both / max(int((true > 0).sum() + (said > 0).sum()), 1), int((covers.sum(0) > 1).sum()), split, missed,
        int((inside < 0.2).sum()) if complete else 0, seconds,
        named(shared, found.labels, DRAWN_NAMES if names is None else names, wanted),
        sureness if complete else (),
    )  # fmt: skip


def timed(image: Image, network: BoneNetwork) -> tuple[FoundBones, float]:
    began = time.process_time()
    found = find_bones(image, network)
    return found, time.process_time() - began


def table(rows: Sequence[Count | None]) -> str:
    names = ("image", "bones", "Dice", "least", "bone Dice", "merged", "split", "missed", "extra", "named", "CPU s")
    head = f"| {' | '.join(names)} |\n{'|---' * len(names)}|"
    lines = [
        f"| {r.name} | {r.bones} | {r.dice:.3f} | {r.least_dice:.3f} | {r.bone_dice:.3f} | {r.merged} | {r.split} | {r.missed} "
        f"| {r.extra} | {r.names} | {r.seconds:.1f} |"
        for r in rows
        if r is not None
    ]
    return "\n".join([head, *lines])


# -- drawn patients ----------------------------------------------------------------------------------------------------------
def drawn_pair(number: int, folder: Path | None, seed: int = SEED, views: Sequence[str] = VIEWS) -> tuple[str, str, Sample]:
    """What it is, the MR's contrast, and the whole view of a patient as one pair; made once where there is a folder, which is
    that of one seed."""
    view, contrast = views[number % len(views)], CONTRASTS[number % len(CONTRASTS)]
    path = None if folder is None else folder / f"{view}{number}.pt"
    if path is not None and path.is_file():
        return f"{view} {number}", contrast, torch.load(path, weights_only=False)
    patient = drawn_patient(view, seed, number)
    i, j, k = (int(s / 1.5) for s in next(iter(patient.atlas.views.values())).size_mm)
    pairs = SimulatedPairs(
        [patient.atlas], (i, j, k), 1.5, offset_deg=0, offset_mm=0, contrasts=[contrast], scaled=False, seed=seed
    )
    pair = pairs.pair(number)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(pair, path)
    return f"{view} {number}", contrast, pair


def drawn(
    network: BoneNetwork, number: int, folder: Path | None, seed: int = SEED, views: Sequence[str] = VIEWS
) -> list[Count]:
    rows: list[Count | None] = []
    some: list[Count | None] = []
    for n in range(number):
        name, contrast, pair = drawn_pair(n, folder, seed, views)
        for kind, data, labels in (("CT", pair.moving, pair.moving_labels), (contrast, pair.fixed, pair.fixed_labels)):
            found, seconds = timed(Image(data, pair.grid), network)
            truth = Labels(labels, pair.grid)
            rows += [count(f"{name} {kind}", truth, found, seconds)]
            some += [count(f"{name} {kind}", truth, found, seconds, False, VERTEBRAE_IDS)]
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    whole = []
    for what, among in (("", rows), (", vertebrae", some)):
        there = [r for r in among if r is not None]
        for kind in ("CT", "MR"):
            whole.append(summary(f"all {kind}{what}", [r for r in there if r.name.endswith(" CT") == (kind == "CT")]))
    return [*(r for r in rows if r is not None), *whole]


VERTEBRAE_IDS = range(1, 26)
"""Of drawn patients."""

DRAWN_NAMES = {number: name for name, number in BONE_LABELS.items()}


def summary(name: str, rows: Sequence[Count]) -> Count:
    """Dice over all bones; the rest are sums."""
    bones = sum(r.bones for r in rows)
    return Count(
        name, bones, sum(r.bones * r.dice for r in rows) / bones, min(r.least_dice for r in rows),
        float(np.mean([r.bone_dice for r in rows])), sum(r.merged for r in rows), sum(r.split for r in rows),
        sum(r.missed for r in rows), sum(r.extra for r in rows), float(np.mean([r.seconds for r in rows])),
        Names(*(sum(part) for part in zip(*(r.names for r in rows), strict=True))),
    )  # fmt: skip


SURE = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97, 1.01)
RIGHT = 0.6


def reliability(rows: Sequence[Count]) -> str:
    """How right found bones are, by the confidence that is said of them."""
    lines = ["| confidence | found bones | Dice | said, mean | of them Dice of .6 or more |", "|---|---|---|---|---|"]
    for low, high in pairwise(SURE):
        some = np.array([pair for row in rows for pair in row.sureness if low <= pair[0] < high])
        if len(some):
            said, dice = some.mean(0)
            right = (some[:, 1] >= RIGHT).mean()
            lines.append(f"| {low:.2f} to {min(high, 1):.2f} | {len(some)} | {dice:.3f} | {said:.0%} | {right:.0%} |")
    return "\n".join(lines)


# -- real volumes ------------------------------------------------------------------------------------------------------------
MR = (
    ("mr-lumbar-crop", "mr-lumbar-crop/mr.nii.gz", "mr-lumbar-crop/seg-vert.nii.gz"),
    *(
        (f"mr-lumbar-t2 {n:02d}", f"mr-lumbar-t2/{n:02d}_mr.nii.gz", f"mr-lumbar-t2/{n:02d}_labels.nii.gz")
        for n in (2, 4, 5, 6)
    ),
    *(
        (f"mr-lumbar-water {n:02d}", f"mr-lumbar-water/{n:02d}_mr.nii.gz", f"mr-lumbar-water/{n:02d}_labels.nii.gz")
        for n in (1, 2, 3, 4)
    ),
)


DISCS = 100
"""Ids from here on are discs and end plates in the TPTBox sample, which labels whole vertebrae."""


class Bodies(NamedTuple):
    """Vertebral bodies, the share of their voxels found, and how many have a bone of their own that covers most of them."""

    name: str
    bodies: int
    recall: float
    least_recall: float
    alone: int
    shared: int
    split: int
    names: Names
    seconds: float


def bodies(name: str, truth: Labels, found: FoundBones, seconds: float) -> Bodies:
    """Levels are known of the MRs at 1 mm alone, whose last label is L5."""
    true, said = truth.data[0].numpy().astype(int), found.labels.data[0].numpy().astype(int)
    ids = [int(k) for k in np.unique(true) if 0 < k < DISCS]
    shares = np.zeros((len(ids), max(said.max(), 1) + 1))
    for row, k in enumerate(ids):
        np.add.at(shares[row], said[true == k], 1)
    last = max(ids)
    levels = {} if name == "mr-lumbar-crop" else {row: UPWARDS[last - k] for row, k in enumerate(ids)}
    names = named(shares, found.labels, levels, range(len(ids)))
    for row, k in enumerate(ids):
        shares[row] /= (true == k).sum()
    recall = 1 - shares[:, 0]
    covers = shares[:, 1:] > 0.3
    shared = covers.sum(0) > 1
    alone = sum(int((covers[row] & ~shared).any() and shares[row, 1:].max() > 0.5) for row in range(len(ids)))
    split = int(((shares[:, 1:] > 0.15).sum(1) > 1).sum())
    return Bodies(name, len(ids), float(recall.mean()), float(recall.min()), alone, int(shared.sum()), split, names, seconds)


UPWARDS = ("L5", "L4", "L3", "L2", "L1", "T12", "T11")


def bodies_table(rows: Sequence[Bodies]) -> str:
    head = "| image | bodies | recall | least | alone | shared | split | named | CPU s |\n|---|---|---|---|---|---|---|---|---|"
    lines = [
        f"| {b.name} | {b.bodies} | {b.recall:.3f} | {b.least_recall:.3f} | {b.alone} | {b.shared} | {b.split} "
        f"| {b.names} | {b.seconds:.1f} |"
        for b in rows
    ]
    return "\n".join([head, *lines])


def bone_labels(file: Path, grid: Grid) -> Labels:
    """Without what is no bone."""
    labels = read_labels(file, grid)
    bone = ("vert", "sacrum", "hip", "femur", "rib", "L1", "L2", "L3", "L4", "L5")
    names = names_for(file)
    return labels.only([k for k in labels.ids() if any(word in names.get(k, "L1") for word in bone)])


def real(
    network: BoneNetwork, data: Path, pictures: Path | None, only: Sequence[str] | None = None
) -> tuple[list[Count], list[Bodies]]:
    """only: images that are looked at, by name; all by default."""
    rows: list[Count | None] = []
    some = []
    for name, entry in REAL.items():
        if only is not None and name not in only:
            continue
        image = read_image(data / entry.ct)
        truth = bone_labels(data / entry.labels, image.grid)
        found, seconds = timed(image, network)
        names = {k: structure(text).name for k, text in (names_for(data / entry.labels) or SPINE_IDS).items()}
        rows += [count(name, truth, found, seconds, name == "ct-abdomen-pelvis-3mm", names=names)]
        among = [k for k in truth.ids() if re.search(r"vert|^L\d", names_for(data / entry.labels).get(k, "L"))]
        rows += [count(f"{name}, vertebrae", truth, found, seconds, False, among, names)]
        print(table(rows[-2:]), {k: round(c, 2) for k, c in found.confidence.items()}, flush=True)
        if pictures is not None:
            overlay(image, found.labels, pictures / f"bones-{name}.png")
    for name, file, labels in MR:
        if only is not None and name not in only:
            continue
        image = read_image(data / file)
        found, seconds = timed(image, network)
        some.append(bodies(name, read_labels(data / labels, image.grid), found, seconds))
        print(some[-1], {k: round(c, 2) for k, c in found.confidence.items()}, flush=True)
        if pictures is not None:
            overlay(image, found.labels, pictures / f"bones-{name.replace(' ', '-')}.png")
    return [r for r in rows if r is not None], some


# -- features ----------------------------------------------------------------------------------------------------------------
def mind_features(image: Image, wide: bool) -> Image:
    """MIND-SSC at 2 mm on a lattice of 4 mm; wide: averaged over 12 mm."""
    data = avg_pool3d(mind_ssc(unit_intensities(image.data))[None], 2, ceil_mode=True, count_include_pad=False)
    if wide:
        data = avg_pool3d(data, 3, 1, 1, count_include_pad=False)
    affine = image.grid.affine.copy()
    affine[:3, :3] *= 2
    affine[:3, 3] += image.grid.affine[:3, :3].sum(1) / 2
    return Image(data[0], Grid(tuple(data.shape[2:]), affine))  # type: ignore[arg-type]


def features(network: BoneNetwork, number: int, folder: Path | None, points: int = 400) -> dict[str, dict[str, float]]:
    """method -> "angle, bone or soft" -> share found."""
    hits: dict[str, dict[str, list[float]]] = {}
    steps = torch.arange(-WINDOW_MM, WINDOW_MM + 1, 4.0)
    window = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij")).flatten(1)
    for n in range(number):
        make = partial(drawn_patient, ("lumbar", "thorax")[n % 2], SEED + 1, n)
        patient = make() if folder is None else kept(folder / f"features{n}.pt", make)
        contrasts = [c for c in CONTRASTS if c != "random"]
        size = tuple(min(64, int(s / 2)) for s in next(iter(patient.atlas.views.values())).size_mm)
        pairs = SimulatedPairs(
            [patient.focused], size, 2.0, offset_deg=0, offset_mm=0, contrasts=contrasts, scaled=False, seed=SEED
        )  # type: ignore[arg-type]
        pair = pairs.pair(n)
        generator = np.random.default_rng((SEED, n))
        for degrees in (0, 15, 30):
            axis = generator.standard_normal(3)
            turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * degrees, degrees=True).as_matrix()
            about = np.eye(4)
            about[:3, :3], about[:3, 3] = turn, pair.grid.centre_mm - turn @ pair.grid.centre_mm
            turned = pair.grid.moved(about)  # the CT's lattice, which the features take for upright
            moving = sample(pair.moving, pair.grid, turned.points().flatten(1), outside=-1000.0).unflatten(1, turned.shape)
            places = pair.grid.points().flatten(1)
            partners = places + pair.displacement.flatten(1)
            back = torch.as_tensor(np.linalg.inv(about), dtype=torch.float32)
            partners = back[:3, :3] @ partners + back[:3, 3:]
            inner = Grid(pair.grid.shape, pair.grid.affine).padded((-4, -4, -4))
            usable = inner.contains(places) & inner.contains(partners) & pair.body.flatten()
            bone = pair.fixed_labels.flatten() > 0
            for name, describe in (
                ("network", lambda image: features_of(image, network)),
                ("MIND-SSC", lambda image: mind_features(image, False)),
                ("MIND-SSC over 12 mm", lambda image: mind_features(image, True)),
            ):
                one, other = describe(Image(pair.fixed, pair.grid)), describe(Image(moving, pair.grid))
                for part, among in (("bone", usable & bone), ("soft", usable & ~bone)):
                    some = among.nonzero()[:, 0]
                    if len(some) < 50:
                        continue
                    draw = np.random.default_rng((SEED, n, degrees, part == "bone"))
                    some = some[torch.from_numpy(draw.integers(len(some), size=points))]
                    shift = torch.as_tensor(draw.uniform(-12, 12, (3, points)), dtype=torch.float32)
                    wanted = sample(one.data, one.grid, places[:, some])
                    candidates = (partners[:, some] + shift)[:, :, None] + window[:, None, :]
                    values = sample(other.data, other.grid, candidates.flatten(1)).unflatten(1, (points, -1))
                    cost = (values - wanted[:, :, None]).square().sum(0)
                    cost[~pair.grid.contains(candidates.flatten(1)).unflatten(0, (points, -1))] = float("inf")
                    best = cost.argmin(1)
                    off = (candidates[:, torch.arange(points), best] - partners[:, some]).norm(dim=0)
                    hits.setdefault(name, {}).setdefault(f"{degrees} {part}", []).append(float((off < HIT_MM).float().mean()))
    return {name: {key: float(np.mean(values)) for key, values in rows.items()} for name, rows in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("drawn", "real", "features"))
    parser.add_argument("--weights", type=Path, help="other weights than those of the package")
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--seed", type=int, default=SEED, help="of drawn patients")
    parser.add_argument("--views", nargs="+", default=VIEWS, help="of drawn patients, in turn")
    parser.add_argument("--cache", type=Path, help="folder that keeps drawn patients")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*REAL, *(row[0] for row in MR)], help="of the real images")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    network = shipped_network() if given.weights is None else load_bone_network(given.weights)[0]
    print(f"{date.today()}, {' '.join(vars(given)['part'].split())}, seed {given.seed}\n")
    with threads(1):
        if given.part == "drawn":
            rows = drawn(network, given.patients, given.cache, given.seed, given.views)
            print(f"\n{table(rows)}\n\nCT\n{reliability([r for r in rows if r.name.endswith(' CT')])}\n")
            print(f"MR\n{reliability([r for r in rows if not r.name.endswith(' CT')])}")
            result: object = [asdict(r) for r in rows]
        elif given.part == "real":
            if given.data is None:
                parser.error("real needs --data FOLDER")
            if given.pictures is not None:
                given.pictures.mkdir(parents=True, exist_ok=True)
            rows, some = real(network, given.data, given.pictures, given.only)
            print(f"\n{table(rows)}\n\n{bodies_table(some)}")
            result = {"ct": [asdict(r) for r in rows], "mr": [b._asdict() for b in some]}
        else:
            result = features(network, min(given.patients, 4), given.cache)
            print(json.dumps(result, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
