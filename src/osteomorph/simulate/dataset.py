"""Pairs made while a network trains on them: nothing is read from disk, and the heavy part runs on the tensors' device.

The truth here is a field at the voxels: bones are exactly rigid in it, as in the pairs on disk. Soft tissue is filled in by a
pyramid of averages (Gortler et al. 1996, push-pull) where a pair on disk has an equation solved.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate
from torch.utils.data import IterableDataset, get_worker_info

from osteomorph.fields import jacobian_determinant
from osteomorph.geometry import Grid, sample
from osteomorph.simulate import motion
from osteomorph.simulate.anatomy import FAR_MM, Points, View
from osteomorph.simulate.atlas import Atlas
from osteomorph.simulate.ct import draw_ct
from osteomorph.simulate.motion import DIFFICULTIES, Motion
from osteomorph.simulate.mr import CONTRASTS, draw_mr
from osteomorph.simulate.soft import MARGIN_MM, RAMP_MM, REACH_MM, blend
from osteomorph.simulate.texture import TextureBank, texture
from osteomorph.threads import threads

NODES_MM = 6.0
"""Spacing of the soft field."""

LEAST_DETERMINANT = 0.05

LEAST_GAP_MM = 0.6
"""Between two bones. A motion that falls below, or folds, is made smaller."""

TRIES = 12

BANKS = 8
"""Textures that a dataset draws from."""

PERCENTILES = (0.5, 99.5)
"""Of each image, taken to 0 and 1."""


@final
@dataclass(frozen=True)
class Sample:
    """A pair on one grid, on the dataset's device.

    fixed, moving: (1, i, j, k) in [0, 1], or as the scanners give them.
    fixed_labels, moving_labels: (1, i, j, k), bones by number.
    displacement: (3, i, j, k) mm RAS, fixed -> moving; moving(x + displacement(x)) shows what fixed(x) shows.
    body: (1, i, j, k), whether a fixed voxel lies inside the skin.
    grid: of both images. poses: bone -> (4, 4) fixed mm -> moving mm.
    """

    fixed: Float[Tensor, "1 i j k"]
    moving: Float[Tensor, "1 i j k"]
    fixed_labels: Int[Tensor, "1 i j k"]
    moving_labels: Int[Tensor, "1 i j k"]
    displacement: Float[Tensor, "3 i j k"]
    body: Tensor
    grid: Grid
    poses: Mapping[int, np.ndarray]


@final
class SimulatedPairs(IterableDataset[Sample]):
    """Endless pairs from voxel anatomies (`atlas_from_ct`, `atlas_from_labels`, `voxelised`).

    Pair n of worker w depends on ``seed``, w and n alone. `pair` gives any one of them.

    atlases: drawn from with equal chance. shape, spacing_mm: of the grid, RAS, at a random place in the atlas' first view.
    motions: drawn from with equal chance; of the scanners' offset at most ``offset_deg`` and ``offset_mm``, as after a start.
    contrasts: of the MR, drawn from with equal chance. labelled: bones that appear in the labels, all by default.
    scaled: whether intensities are taken to [0, 1]; otherwise they are the MR's numbers and the CT's HU.
    """

    def __init__(
        self,
        atlases: Sequence[Atlas],
        shape: tuple[int, int, int],
        spacing_mm: float = 1.0,
        *,
        motions: Sequence[Motion] = tuple(DIFFICULTIES.values()),
        offset_deg: float = 3.0,
        offset_mm: float = 3.0,
        contrasts: Sequence[str] = CONTRASTS,
        labelled: Sequence[int] | None = None,
        scaled: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if not atlases:
            raise ValueError("Give at least one atlas.")
        self.atlases = [atlas.to(device) for atlas in atlases]
        self.shape, self.spacing_mm = shape, spacing_mm
        self.motions, self.offset_deg, self.offset_mm = list(motions), offset_deg, offset_mm
        self.contrasts, self.labelled, self.scaled = list(contrasts), labelled, scaled
        self.seed, self.device = seed, torch.device(device)
        self._rooms = [motion.Room(atlas, LEAST_GAP_MM, self.device) for atlas in self.atlases]

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        worker, number = (0 if info is None else info.id), 0
        while True:
            yield self.pair(number, worker)
            number += 1

    @torch.no_grad()
    def pair(self, number: int, worker: int = 0) -> Sample:
        """One of the pairs. On one thread, so that the same bits come out wherever it runs; take workers for speed."""
        with threads(1):
            return self._pair(number, worker)

    def _pair(self, number: int, worker: int) -> Sample:
        generator = np.random.default_rng((self.seed, worker, number))
        which = int(generator.integers(len(self.atlases)))
        atlas = self.atlases[which]
        bank = _bank(self.seed * BANKS + int(generator.integers(BANKS)), self.device)
        grid, view, bones = self._grid(atlas, generator)
        wanted = self.motions[int(generator.integers(len(self.motions)))]
        steps = motion.draw_steps(atlas.joints, wanted.turn, generator, self._rooms[which])
        goal = float(generator.uniform(*wanted.bone_mm))
        steps = motion.scale_to(atlas.joints, steps, bones, motion.reference(atlas, view), goal)
        offset = self._offset(view, generator)
        force, skin = self._force(grid, generator), float(generator.uniform(*wanted.skin_mm))
        points = grid.points(torch.float32, self.device).flatten(1)
        for attempt in range(TRIES):
            less = 0.65**attempt
            poses = motion.poses(atlas, view, motion.scaled(steps, less), bones)
            there, gap_mm = _moved(atlas, poses, grid, points, force * (less * skin))
            if gap_mm > LEAST_GAP_MM and _least_determinant(there - points, grid) > LEAST_DETERMINANT:
                break
        else:
            raise ValueError(f"Pair {number} folds however small its motion is made; its atlas has bones that touch.")
        back = np.linalg.inv(offset)
        mr, ct = draw_mr(generator, str(generator.choice(self.contrasts))), draw_ct(generator)
        fixed = mr.acquire(atlas, lambda _: there, grid, bank)
        moving = ct.acquire(atlas, lambda at: motion.apply(back, at), grid, bank)
        unit = _unit if self.scaled else Tensor.float
        return Sample(
            fixed=unit(fixed.data.to(self.device)),
            moving=unit(moving.data.to(self.device).clamp(min=-1000)),
            fixed_labels=self._labels(atlas, there, grid, poses),
            moving_labels=self._labels(atlas, motion.apply(back, points), grid, dict.fromkeys(poses, back)),
            displacement=(motion.apply(offset, there) - points).unflatten(1, grid.shape),
            body=(atlas.body(there) < 0).unflatten(0, grid.shape)[None],
            grid=grid,
            poses={k: offset @ pose for k, pose in poses.items()},
        )

    def _grid(self, atlas: Atlas, generator: np.random.Generator) -> tuple[Grid, View, dict[int, Points]]:
        """A grid somewhere in the atlas' first view with at least two bones in it, of which one is the reference."""
        whole = next(iter(atlas.views.values()))
        size = self.spacing_mm * np.array(self.shape)
        room = np.maximum((np.array(whole.size_mm) - size) / 2, 4.0)
        for _ in range(50):
            centre = np.array(whole.centre_mm) + generator.uniform(-room, room)
            box = View(_triple(centre), _triple(size), whole.labelled)
            bones = motion.samples(atlas, box, 8.0, self.device)
            seen = tuple(k for k in whole.labelled if k in bones)
            if len(bones) > 1 and seen:
                break
        else:
            raise ValueError("No place in the atlas shows two bones. Give a larger shape.")
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = centre - self.spacing_mm * (np.array(self.shape) - 1) / 2
        return Grid(self.shape, affine), View(box.centre_mm, box.size_mm, seen), bones

    def _offset(self, view: View, generator: np.random.Generator) -> np.ndarray:
        turn, move = (axis / np.linalg.norm(axis) for axis in generator.standard_normal((2, 3)))
        rotation, shift = turn * generator.uniform(0, self.offset_deg), move * generator.uniform(0, self.offset_mm)
        return motion.rigid_about(view.centre_mm, _triple(rotation), _triple(shift))

    def _force(self, grid: Grid, generator: np.random.Generator) -> Float[Tensor, "3 i j k"]:
        """A smooth random field on the lattice, 1 mm at its 95th percentile."""
        lattice = _lattice(grid)
        scale = float(generator.uniform(25.0, 45.0))
        few = [max(2, round(float(s) / scale)) + 2 for s in lattice.size_mm]
        knots = torch.as_tensor(generator.standard_normal((1, 3, *few)), dtype=torch.float32, device=self.device)
        field = interpolate(knots, size=lattice.shape, mode="trilinear")
        field = avg_pool3d(field, 3, 1, 1, count_include_pad=False)[0]
        return field / field.norm(dim=0).flatten().kthvalue(int(0.95 * lattice.voxels)).values

    def _labels(self, atlas: Atlas, points: Points, grid: Grid, places: Mapping[int, np.ndarray]) -> Int[Tensor, "1 i j k"]:
        out = torch.zeros(grid.shape, dtype=torch.int16, device=points.device)
        for label, place in places.items():
            if self.labelled is None or label in self.labelled:
                box = _box(atlas, label, grid, place)
                here = points.unflatten(1, grid.shape)[:, *box]
                inside = atlas.bone(label, here.flatten(1), 1.0) < 0
                out[box][inside.unflatten(0, here.shape[1:])] = label
        return out[None]


@lru_cache(maxsize=BANKS)
def _bank(seed: int, device: torch.device) -> TextureBank:
    return texture(seed, device)


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _lattice(grid: Grid) -> Grid:
    return grid.resampled(NODES_MM).padded((2, 2, 2))


def _moved(atlas: Atlas, poses: Mapping[int, np.ndarray], grid: Grid, points: Points, force: Tensor) -> tuple[Points, float]:
    """Where fixed points go in the anatomy: bones by their poses, between them what a pyramid fills in and ``force``.

    Also the narrowest gap between two bones in mm, as far as voxels tell.
    """
    lattice = _lattice(grid)
    nodes = lattice.points(torch.float32, points.device).flatten(1)
    held, least = torch.zeros_like(nodes), torch.full_like(nodes[0], RAMP_MM)
    for label, pose in poses.items():
        there = motion.apply(pose, nodes)
        distance = atlas.bone(label, there, RAMP_MM)
        inside = distance < 0.25 * NODES_MM
        held[:, inside] = (there - nodes)[:, inside]
        least = torch.minimum(least, distance)
    known = (least < 0.25 * NODES_MM).to(nodes.dtype).reshape(1, 1, *lattice.shape)
    part = (least / RAMP_MM).clamp(0, 1)
    ramp = (part * part * (3 - 2 * part)).reshape(lattice.shape)
    field = _filled(held.reshape(1, 3, *lattice.shape), known)[0] + ramp * force
    base = points + sample(field, lattice, points)
    volume = points.unflatten(1, grid.shape)
    distances = {}
    first, second = (torch.full(grid.shape, FAR_MM, device=points.device) for _ in range(2))
    for label, pose in poses.items():
        box = _box(atlas, label, grid, pose)
        out = torch.full(grid.shape, FAR_MM, device=points.device)
        here = volume[:, *box]
        distance = atlas.bone(label, motion.apply(pose, here.flatten(1)), REACH_MM + MARGIN_MM)
        out[box] = distance.unflatten(0, here.shape[1:])
        distances[label] = out.flatten()
        second[box] = torch.minimum(second[box], torch.maximum(first[box], out[box]))
        first[box] = torch.minimum(first[box], out[box])
    return blend(points, distances, base, poses), float((first + second).min())


def _box(atlas: Atlas, label: int, grid: Grid, place: np.ndarray) -> tuple[slice, slice, slice]:
    """The voxels that a bone's map can reach. place: (4, 4) world of the grid -> anatomy, in the bone."""
    crop = atlas.bones[label].grid
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in crop.shape], indexing="ij")).reshape(3, -1)
    to_index = np.linalg.inv(place @ grid.affine) @ crop.affine
    corners = to_index[:3, :3] @ corners + to_index[:3, 3:]
    low, high = np.floor(corners.min(1)).astype(int), np.ceil(corners.max(1)).astype(int) + 1
    ends = zip(low.tolist(), high.tolist(), grid.shape, strict=True)
    i, j, k = (slice(min(max(a, 0), n), max(min(b, n), 0)) for a, b, n in ends)
    return i, j, k


def _filled(values: Tensor, known: Tensor) -> Tensor:
    """Known values, and around them those of ever coarser averages."""
    if min(values.shape[2:]) < 2 or bool((known > 0).all()):
        return values * known / known.clamp(min=1e-6)
    coarse_known = avg_pool3d(known, 2, ceil_mode=True, count_include_pad=False)
    total = avg_pool3d(values * known, 2, ceil_mode=True, count_include_pad=False)
    coarse = _filled(total / coarse_known.clamp(min=1e-6), coarse_known.clamp(max=1.0).gt(0).to(known.dtype))
    around = interpolate(coarse, size=values.shape[2:], mode="trilinear")
    if min(around.shape[2:]) >= 3:
        around = avg_pool3d(around, 3, 1, 1, count_include_pad=False)
    return known * values + (1 - known) * around


def _least_determinant(vectors: Tensor, grid: Grid) -> float:
    return float(jacobian_determinant(vectors.unflatten(1, grid.shape), grid).min())


def _unit(image: Tensor) -> Tensor:
    """The percentiles, told from some of the voxels, to 0 and 1."""
    some = image.flatten()[:: max(1, image.numel() // 50_000)].float()
    low, high = (some.kthvalue(max(1, round(p / 100 * some.numel()))).values for p in PERCENTILES)
    return ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
