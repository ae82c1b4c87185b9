"""An anatomy from voxels: a CT with bone labels, a label map alone, or a procedural anatomy drawn once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import conv3d, pad

from osteomorph.distances import DistanceMap
from osteomorph.errors import InputError
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image, Labels
from osteomorph.simulate import tree
from osteomorph.simulate.anatomy import CHUNK, FAR_MM, TISSUES, Anatomy, Distance, Joint, Look, Palette, Points, Textures, View
from osteomorph.simulate.naming import Structure, structure
from osteomorph.simulate.skeleton import REACH_MM, dense_labels, skeleton, views_of
from osteomorph.simulate.tissues import Bones, body_of, classify, classify_labels, hull_of

GAP_MM = 2.0
"""Joint space left between bones that touch."""

LEAST_FIELD_MM = 60.0
LEAST_FIELD_VOXELS = 24
AROUND_MM = 24.0
"""By which the lattice of a procedural anatomy is larger than its view."""

STIFFNESS = {
    "air": 0.01,
    "gas": 0.05,
    "lung": 0.1,
    "fat": 0.3,
    "bowel": 0.5,
    "skin": 1.5,
    "ligament": 6.0,
    "annulus": 5.0,
    "cartilage": 5.0,
    "cortex": 30.0,
    "marrow": 30.0,
    "sclerosis": 30.0,
    "metal": 30.0,
}
"""Young's modulus relative to muscle's; 1 for the rest."""


@final
@dataclass(frozen=True, eq=False)
class Atlas(Anatomy):
    """Tissue by the voxel; its frame is the world of the scan it was made from.

    grid, tissue: number in TISSUES of every voxel.
    bones: label -> distance, known to REACH_MM, on a crop of its own.
    skin: distance to the skin, on a coarser lattice.
    sources: label -> ids it had in the label map that was given. notes: what the user should know of the making.
    """

    grid: Grid
    tissue: UInt8[Tensor, "i j k"] = field(repr=False)
    bones: Mapping[int, DistanceMap] = field(repr=False)
    skin: DistanceMap = field(repr=False)
    bone_names: Mapping[int, str]
    tree: tuple[Joint, ...] = field(repr=False)
    fields_of_view: Mapping[str, View] = field(repr=False)
    ct: Image | None = field(default=None, repr=False)
    sources: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> Mapping[int, str]:
        return self.bone_names

    @property
    def joints(self) -> tuple[Joint, ...]:
        return self.tree

    @property
    def views(self) -> Mapping[str, View]:
        return self.fields_of_view

    @property
    def scan(self) -> Image | None:
        return self.ct

    def to(self, device: torch.device | str) -> "Atlas":
        """The same with its voxels, but for the scan's, on a device."""
        bones = {label: DistanceMap(part.values.to(device), part.grid) for label, part in self.bones.items()}
        skin = DistanceMap(self.skin.values.to(device), self.skin.grid)
        return replace(self, tissue=self.tissue.to(device), bones=bones, skin=skin)

    def bone(self, label: int, points: Points, reach_mm: float) -> Distance:
        """Distance to a bone; FAR_MM where it is above about ``reach_mm`` or REACH_MM."""
        part = self.bones[label]
        spare = max(REACH_MM - reach_mm, 0.0)
        last = np.array(part.grid.shape) - 1.0
        half = np.abs(part.grid.affine[:3, :3]) @ (last / 2) - spare
        off = (points - torch.as_tensor(part.grid.centre_mm).to(points)[:, None]).abs()
        near = (off <= torch.as_tensor(half).to(points)[:, None]).all(0).nonzero()[:, 0]
        index = part.grid.index(points[:, near])
        inset = torch.as_tensor(np.minimum(spare / part.grid.spacing_mm, last / 2)).to(points)[:, None]
        near = near[((index >= inset) & (index <= torch.as_tensor(last).to(points)[:, None] - inset)).all(0)]
        out = torch.full_like(points[0], FAR_MM)
        out[near] = _linear(part, points[:, near])
        return out

    def body(self, points: Points) -> Distance:
        return _linear(self.skin, points)

    def stiffness(self, points: Points) -> Float[Tensor, " n"]:
        if points.shape[1] == 0:
            return points[0]
        table = torch.tensor([STIFFNESS.get(name, 1.0) for name in TISSUES])[:, None]
        box, tissue = self._around(points)
        return sample(_looked_up(table, tissue), box, points.float())[0].to(points.dtype)

    def paint(self, points: Points, palettes: Sequence[Palette], edge_mm: float, textures: Textures) -> Float[Tensor, "c n"]:
        """Means are linear between voxels and blurred where ``edge_mm`` is wider than that; texture is the nearest voxel's.

        Beyond the lattice its outermost voxels go on.
        """
        points = points.float()
        if points.shape[1] == 0:
            return points.new_zeros(len(palettes), 0)
        looks = torch.tensor([[tuple(palette[name]) for palette in palettes] for name in TISSUES], device=points.device)
        box, tissue = self._around(points)
        means = _blurred(_looked_up(looks[..., 0], tissue), box.spacing_mm, edge_mm)
        grain = looks[..., 1:].permute(1, 2, 0).contiguous()  # palette, texture, tissue
        used = (grain != 0).any(-1).nonzero().tolist()
        out = []
        for part in points.split(CHUNK if points.device.type == "cpu" else points.shape[1], dim=1):
            value = sample(means, box, part)
            kind = sample(tissue[None], box, part, "nearest")[0].int()
            texture = textures(part)
            for channel, which in used:
                value[channel].addcmul_(grain[channel, which].index_select(0, kind), texture[which])
            out.append(value)
        return torch.cat(out, 1)

    def _around(self, points: Points) -> tuple[Grid, UInt8[Tensor, "i j k"]]:
        """The part of the tissue map that points see."""
        index = self.grid.index(points)
        low = [int(v) - 3 for v in index.amin(1).floor().tolist()]
        high = [int(v) + 4 for v in index.amax(1).ceil().tolist()]
        start = [min(max(a, 0), n - 1) for a, n in zip(low, self.grid.shape, strict=True)]
        stop = [max(min(b, n), a + 1) for a, b, n in zip(start, high, self.grid.shape, strict=True)]
        after = tuple(b - n for b, n in zip(stop, self.grid.shape, strict=True))
        grid = self.grid.padded((-start[0], -start[1], -start[2]), (after[0], after[1], after[2]))
        return grid, self.tissue[start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]]


def _linear(part: DistanceMap, points: Points) -> Distance:
    """Between voxel centres, in the points' precision: float32 would spoil the finite differences taken of it."""
    if points.shape[1] == 0:
        return points[0]
    if points.dtype == torch.float32:
        return sample(part.values, part.grid, points)[0]
    index = part.grid.index(points)
    shape = part.grid.shape
    low, share = [], []
    for axis, n in enumerate(shape):
        at = index[axis].clamp(0, n - 1)
        low.append(at.floor().long().clamp(max=max(n - 2, 0)))
        share.append(at - low[-1])
    flat = part.values.flatten()
    out = torch.zeros_like(points[0])
    for corner in range(8):
        place, weight = torch.zeros_like(low[0]), torch.ones_like(out)
        for axis, n in enumerate(shape):
            up = corner >> axis & 1
            place = place * n + (low[axis] + up).clamp(max=n - 1)
            weight = weight * (share[axis] if up else 1 - share[axis])
        out += weight * flat[place]
    return out


def _looked_up(table: Float[Tensor, "t c"], tissue: UInt8[Tensor, "i j k"]) -> Float[Tensor, "c i j k"]:
    flat = tissue.flatten().int()
    columns = [column.float().to(tissue.device).index_select(0, flat) for column in table.T.contiguous()]
    return torch.stack(columns).unflatten(1, tissue.shape)


def _blurred(means: Float[Tensor, "c i j k"], spacing_mm: np.ndarray, edge_mm: float) -> Float[Tensor, "c i j k"]:
    """Gaussian that makes up what linear interpolation lacks to an edge of a wanted width."""
    out = means[:, None]
    for axis, step in enumerate(spacing_mm):
        sigma = np.sqrt(max(edge_mm**2 / 12 - float(step) ** 2 / 6, 0.0)) / float(step)
        if sigma < 0.3:
            continue
        reach = int(np.ceil(3 * sigma))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        weight = torch.as_tensor(kernel / kernel.sum(), dtype=means.dtype, device=means.device)
        sides, shape = [0] * 6, [1] * 5
        sides[2 * (2 - axis)] = sides[2 * (2 - axis) + 1] = reach
        shape[2 + axis] = 2 * reach + 1
        out = conv3d(pad(out, sides, mode="replicate"), weight.reshape(shape))
    return out[:, 0]


# -- makers -------------------------------------------------------------------------------------------------------------------
def atlas_from_ct(ct: Image, labels: Labels, names: Mapping[int, str] | None = None, gap_mm: float = GAP_MM) -> Atlas:
    """Anatomy from a CT in HU and a label map on its grid.

    names: label id -> name as TotalSegmentator or anyone writes it; those in ``labels`` by default. Without any, bones are
    the labels that are dense with a denser rim. Bones nearer than ``gap_mm`` are drawn apart, and the notes say which.

    Raises InputError: no CT in HU, no bone or only one, a field of view too small, labels on another grid.
    """
    _check_field(ct.grid)
    if not ct.grid.isclose(labels.grid):
        raise InputError(
            "The labels are on another grid than the CT. Resample them onto its grid, with nearest-neighbour interpolation."
        )
    if float(ct.data.min()) > -200:
        raise InputError(
            f"The CT's least value is {float(ct.data.min()):g}: it does not look like CT in Hounsfield units, "
            "where air is -1000. Convert it (HU = slope x stored value + intercept)."
        )
    labels = replace(labels, grid=ct.grid)
    known = {label: structure(name) for label, name in (names or labels.names).items()}
    if not known:
        known = {label: Structure("bone", f"bone_{label}", "marrow") for label in dense_labels(ct, labels)}
    bones, bone_names, notes = skeleton(labels, known, gap_mm)
    body = body_of(ct)
    tissue = classify(ct, labels, known, bones, body)
    return _assembled(labels.grid, tissue, bones, bone_names, body, ct, notes)


def atlas_from_labels(labels: Labels, names: Mapping[int, str] | None = None, gap_mm: float = GAP_MM) -> Atlas:
    """Anatomy from a label map alone: the body is a hull of all labels, filled with fat and muscle by depth.

    Raises InputError: as `atlas_from_ct`, or no names.
    """
    _check_field(labels.grid)
    given = names or labels.names
    if not given:
        raise InputError(
            "Without a CT, bones are told by name. Name the labels in JSON beside their file, "
            'labels.json such as {"1": "vertebrae_L5", "8": "sacrum"}.'
        )
    known = {label: structure(name) for label, name in given.items()}
    bones, bone_names, notes = skeleton(labels, known, gap_mm)
    body = hull_of(labels)
    return _assembled(labels.grid, classify_labels(labels, known, bones, body), bones, bone_names, body, None, notes)


def voxelised(anatomy: Anatomy, spacing_mm: float, view: View) -> Atlas:
    """An anatomy drawn once around a view, for quick painting ever after; bones and joints are the anatomy's."""
    size = np.ceil((np.array(view.size_mm) + 2 * AROUND_MM) / spacing_mm).astype(int)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = np.array(view.centre_mm) - spacing_mm * (size - 1) / 2
    grid = Grid((int(size[0]), int(size[1]), int(size[2])), affine)
    points = grid.points().flatten(1)
    palette = {name: Look(float(number)) for number, name in enumerate(TISSUES)}
    numbers = anatomy.paint(points, [palette], 1e-3, lambda part: part.new_zeros(4, part.shape[1]))[0]
    tissue = numbers.round().clamp(0, len(TISSUES) - 1).to(torch.uint8).unflatten(0, grid.shape)
    bones = {}
    for label in anatomy.names:
        distance = anatomy.bone(label, points, REACH_MM).float().unflatten(0, grid.shape)
        bones[label] = _cropped(distance, grid)
    coarse = grid.resampled(3.0)
    skin = DistanceMap(anatomy.body(coarse.points().flatten(1)).float().unflatten(0, coarse.shape)[None], coarse)
    name = next((name for name, other in anatomy.views.items() if other == view), "whole")
    return Atlas(grid, tissue, bones, skin, dict(anatomy.names), anatomy.joints, {name: view})


def _cropped(distance: Float[Tensor, "i j k"], grid: Grid) -> DistanceMap:
    """Where a distance is at most REACH_MM."""
    near = (distance <= REACH_MM).nonzero()
    if len(near) == 0:
        return DistanceMap(torch.full((1, 2, 2, 2), FAR_MM), grid.about_centre((2, 2, 2)))
    low, high = near.amin(0).tolist(), (near.amax(0) + 1).tolist()
    after = tuple(b - n for b, n in zip(high, grid.shape, strict=True))
    crop = grid.padded((-low[0], -low[1], -low[2]), (after[0], after[1], after[2]))
    return DistanceMap(distance[None, low[0] : high[0], low[1] : high[1], low[2] : high[2]].clone(), crop)


def _check_field(grid: Grid) -> None:
    if grid.size_mm.min() < LEAST_FIELD_MM or min(grid.shape) < LEAST_FIELD_VOXELS:
        size = " x ".join(f"{s:.0f}" for s in grid.size_mm)
        raise InputError(
            f"The field of view is too small ({size} mm, {' x '.join(map(str, grid.shape))} voxels). "
            f"Give a scan of at least {LEAST_FIELD_MM:g} mm and {LEAST_FIELD_VOXELS} voxels along every axis."
        )


def _assembled(
    grid: Grid,
    tissue: Tensor,
    bones: Bones,
    names: dict[int, str],
    body: DistanceMap,
    ct: Image | None,
    notes: tuple[str, ...],
) -> Atlas:
    discs = {pair: disc.turning for pair, disc in bones.spine.discs.items()}
    joints = tree.joints(names, bones.maps, grid, discs)
    views = views_of(grid, names, bones.maps)
    return Atlas(grid, tissue, bones.maps, body, names, joints, views, ct, dict(bones.sources), notes)
