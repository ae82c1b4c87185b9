"""Which tissue every voxel of a scan is: by its label where it has one, by Hounsfield units, and by where it lies."""

from collections.abc import Mapping
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import UInt8
from scipy import ndimage
from torch import Tensor

from osteomorph.distances import DistanceMap
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image, Labels
from osteomorph.simulate.anatomy import TISSUES
from osteomorph.simulate.levels import Spine
from osteomorph.simulate.naming import Structure

BODY_HU = -300
GAS_HU = -400
FAT_HU = -30
"""Between fat and water-like tissue."""
DENSE_HU = 150
CORTEX_HU = 300
METAL_HU = 2500

RIM_MM = 0.8
"""Part of a bone that is cortex whatever its density, with a CT; without one, `BLIND_RIM_MM`."""
BLIND_RIM_MM = 1.2
SKIN_MM = 2.0
JOINT_MM = 2.2
"""Soft tissue this near to two bones is cartilage."""
BODY_SPACING_MM = 3.0

NUMBER = {name: number for number, name in enumerate(TISSUES)}
BY_INTENSITY = 255

Volume = np.ndarray


@final
class Bones(NamedTuple):
    """maps: on crops of the scan's lattice. sources: bone -> ids of the label map that make it up."""

    maps: Mapping[int, DistanceMap]
    sources: Mapping[int, tuple[int, ...]]
    spine: Spine
    cord_end_mm: float


def classify(
    ct: Image, labels: Labels, structures: Mapping[int, Structure], bones: Bones, body: DistanceMap
) -> UInt8[Tensor, "i j k"]:
    """Number of the tissue (in TISSUES) of every voxel of a CT in HU.

    structures: label id -> what it stands for; those without one are left to the HU. body: signed distance to the skin.
    """
    hu = _denoised(ct.data[0].numpy().clip(-1024, 3071).astype(np.int16))
    label = labels.data[0].numpy()
    distance = _onto(body, ct.grid)
    inside = (distance < -4.0) | ((distance < 2.0) & (hu > BODY_HU))
    kinds = _kinds(label, structures, bones)
    bony = np.isin(label, [source for parts in bones.sources.values() for source in parts])
    free = inside & (kinds == BY_INTENSITY) & ~bony
    out = np.where(inside, _by_intensity(hu, free, _grown(bony, 3.0, ct.grid.spacing_mm), distance, ct.grid), 0).astype(
        np.uint8
    )
    out[~inside & (hu > GAS_HU)] = NUMBER["table"]
    _paint_named(out, kinds, hu, inside)
    out[bony] = NUMBER["cartilage"]  # what is left of it below was taken from a rim
    _paint_skeleton(out, bones, ct.grid, hu)
    out[(ct.data[0].numpy() > METAL_HU) & inside] = NUMBER["metal"]
    rim = inside & ~_shrunk(inside, SKIN_MM, ct.grid.spacing_mm) & (out != NUMBER["metal"])
    out[rim] = NUMBER["skin"]
    return torch.from_numpy(out)


def classify_labels(
    labels: Labels, structures: Mapping[int, Structure], bones: Bones, body: DistanceMap
) -> UInt8[Tensor, "i j k"]:
    """As `classify` without a CT: what has no label is skin, fat, then muscle by its depth."""
    depth = -_onto(body, labels.grid)
    out = np.select([depth <= 0, depth <= SKIN_MM, depth <= 12.0], [0, NUMBER["skin"], NUMBER["fat"]], NUMBER["muscle"])
    out = out.astype(np.uint8)
    kinds = _kinds(labels.data[0].numpy(), structures, bones)
    named = kinds != BY_INTENSITY
    out[named] = kinds[named]
    _paint_skeleton(out, bones, labels.grid, None)
    return torch.from_numpy(out)


# -- the body ----------------------------------------------------------------------------------------------------------
def body_of(ct: Image) -> DistanceMap:
    """Signed distance to the skin on a coarse lattice: the largest part above BODY_HU, the table opened off, holes filled."""
    coarse = ct.grid.resampled(np.maximum(BODY_SPACING_MM, ct.grid.spacing_mm))
    values = sample(ct.data[:1], ct.grid, coarse.points().flatten(1)).unflatten(-1, coarse.shape)[0].numpy()
    values = ndimage.gaussian_filter(values.clip(-1000, 200), 0.6, mode="nearest")
    bright = values > BODY_HU
    apart = np.pad(bright, 3, mode="edge")
    apart = ndimage.binary_opening(apart, iterations=2, border_value=0)[3:-3, 3:-3, 3:-3]
    parts, count = ndimage.label(apart)
    if count == 0:
        return _signed(bright, coarse)
    core = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    body = ndimage.binary_dilation(core) & bright  # twice would reach the table again
    return _signed(_without_holes(body, coarse), coarse)


def hull_of(labels: Labels, margin_mm: float = 30.0) -> DistanceMap:
    """Signed distance to a body guessed around everything labelled: bays of up to 100 mm filled, then ``margin_mm`` more."""
    grid = labels.grid.resampled(np.maximum(4.0, labels.grid.spacing_mm))
    seen = _coarse_any((labels.data[0] != 0).numpy(), labels.grid, grid)
    more = np.ceil((margin_mm + 54.0) / grid.spacing_mm).astype(int)
    wide = np.pad(seen, [(n, n) for n in more])
    spread = ndimage.distance_transform_edt(~wide, sampling=grid.spacing_mm) <= margin_mm + 50.0
    hull = ndimage.distance_transform_edt(spread, sampling=grid.spacing_mm) > 50.0
    return _signed(hull, grid.padded((int(more[0]), int(more[1]), int(more[2]))))


def _coarse_any(mask: Volume, grid: Grid, coarse: Grid) -> Volume:
    out = np.zeros(coarse.shape, dtype=bool)
    at = coarse.index(grid.world(torch.as_tensor(np.argwhere(mask).T.copy()).double())).round().int().numpy()
    out[tuple(np.clip(at, 0, np.array(coarse.shape)[:, None] - 1))] = True
    return out


def _signed(mask: Volume, grid: Grid) -> DistanceMap:
    """Distance to a mask's faces; what lies beyond the field of view counts as more of the same."""
    if mask.all() or not mask.any():
        return DistanceMap(torch.full((1, *grid.shape), -60.0 if mask.all() else 60.0), grid)
    half = float(grid.spacing_mm.min()) / 2
    within, without = (ndimage.distance_transform_edt(m, sampling=grid.spacing_mm) for m in (mask, ~mask))
    signed = np.where(mask, half - within, without - half).astype(np.float32)
    return DistanceMap(torch.from_numpy(signed)[None], grid)


def _without_holes(mask: Volume, grid: Grid) -> Volume:
    """Filled in axial slices; then what is small, such as bowel gas that opens at the border of the scan."""
    out = mask.copy()
    axis = grid.axis("IS")
    for n in range(mask.shape[axis]):
        plane = (slice(None),) * axis + (n,)
        out[plane] |= ndimage.binary_fill_holes(mask[plane])
    parts, _ = ndimage.label(~out)
    small = np.bincount(parts.ravel()) * float(np.prod(grid.spacing_mm)) / 1000 < 150
    return out | small[parts]


def _onto(part: DistanceMap, grid: Grid) -> Volume:
    """A coarse map on a finer grid of the same directions."""
    first = part.grid.index(torch.as_tensor(grid.affine[:3, 3:].copy()))[:, 0].numpy()
    steps = grid.spacing_mm / part.grid.spacing_mm
    return ndimage.affine_transform(part.values[0].numpy(), steps, first, grid.shape, order=1, mode="nearest")


# -- by intensity ------------------------------------------------------------------------------------------------------
def _denoised(hu: Volume) -> Volume:
    """Median of three along each axis in turn."""
    for axis in range(3):
        a, b, c = (np.take(hu, range(n, hu.shape[axis] - 2 + n), axis=axis) for n in range(3))
        middle = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
        inner = (slice(None),) * axis + (slice(1, -1),)
        hu = hu.copy()
        hu[inner] = middle
    return hu


def _by_intensity(hu: Volume, free: Volume, rims: Volume, distance: Volume, grid: Grid) -> Volume:
    """Tissue of the voxels in ``free``: gas and lung, fat, muscle, bowel around gas, bone without a label, vessels.

    rims: around labelled bones, where what is dense is their rim. distance: to the skin.
    """
    spacing, voxel_ml = grid.spacing_mm, float(np.prod(grid.spacing_mm)) / 1000
    out = np.full(hu.shape, NUMBER["muscle"], dtype=np.uint8)
    out[hu < FAT_HU] = NUMBER["fat"]
    gas = free & (hu < GAS_HU)
    parts, count = ndimage.label(gas)
    lung = np.zeros(count + 1, dtype=bool)
    if count:
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        mean = np.bincount(parts.ravel(), hu.ravel(), minlength=count + 1) / np.maximum(sizes, 1)
        lung[1:] = (sizes[1:] * voxel_ml > 200) & (mean[1:] > -880)
    airy = lung[parts]
    blown = gas & ~airy & (distance < -12)  # nearer to the skin it is a fold of it, or a gap above the table
    wall = _grown(blown, 2.0, spacing) & (hu < FAT_HU)  # half gas, half wall: no fat
    out[wall | (_grown(blown, 7.0, spacing) & (hu >= FAT_HU))] = NUMBER["bowel"]
    out[gas] = NUMBER["gas"]
    out[airy] = NUMBER["lung"]
    parts, count = ndimage.label(free & (hu > DENSE_HU))
    if count:
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        hard = np.bincount(parts.ravel(), (hu > 350).ravel(), minlength=count + 1) / np.maximum(sizes, 1) > 0.1
        hard[0] = False
        bone = hard[parts]
        out[(parts > 0) & ~bone & ~rims & (sizes[parts] * voxel_ml > 0.2)] = NUMBER["vessel"]
        out[_marrow_of(bone, hu, grid) & free] = NUMBER["marrow"]
        out[(bone | (rims & (parts > 0))) & (hu > 220)] = NUMBER["cortex"]
    return out


def _marrow_of(bone: Volume, hu: Volume, grid: Grid) -> Volume:
    """Bone that has no label, with what it encloses in axial slices where that is dense on the whole: canals are not."""
    wide = _grown(bone, 2.0, grid.spacing_mm)
    axis = grid.axis("IS")
    for n in range(wide.shape[axis]):
        plane = (slice(None),) * axis + (n,)
        if wide[plane].any():
            wide[plane] = ndimage.binary_fill_holes(wide[plane])
    held = _shrunk(wide, 2.0, grid.spacing_mm) & ~bone
    parts, count = ndimage.label(held)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    dense = np.bincount(parts.ravel(), hu.ravel(), minlength=count + 1) / np.maximum(sizes, 1) > 100
    dense[0] = False
    return bone | dense[parts]


def _steps(reach_mm: float, spacing_mm: np.ndarray) -> list[int]:
    return [max(1, round(reach_mm / float(s))) for s in spacing_mm]


def _grown(mask: Volume, reach_mm: float, spacing_mm: np.ndarray) -> Volume:
    out = mask.view(np.uint8)
    for axis, n in enumerate(_steps(reach_mm, spacing_mm)):
        out = ndimage.maximum_filter1d(out, 2 * n + 1, axis=axis, mode="nearest")
    return out.view(bool)


def _shrunk(mask: Volume, reach_mm: float, spacing_mm: np.ndarray) -> Volume:
    return ~_grown(~mask, reach_mm, spacing_mm)


# -- by name and place -------------------------------------------------------------------------------------------------
def _kinds(label: Volume, structures: Mapping[int, Structure], bones: Bones) -> Volume:
    """Tissue's number where the label tells, else BY_INTENSITY. Bones are painted later, and the canal is where bones say."""
    last = max([0, *structures])
    table = np.full(last + 2, BY_INTENSITY, dtype=np.uint8)
    for one, known in structures.items():
        placed = known.tissue in ("cord", "csf") and bones.spine.canal is not None
        if known.kind == "tissue" and known.tissue is not None and not placed:
            table[one] = NUMBER[known.tissue]
    return table[np.minimum(label, last + 1)]


def _paint_named(out: Volume, kinds: Volume, hu: Volume, inside: Volume) -> None:
    """Named soft tissue, but for fat in muscle, gas in bowel and what is no part of an organ."""
    named = (kinds != BY_INTENSITY) & inside
    keeps_gas = kinds == NUMBER["lung"]
    fatty = np.isin(kinds, [NUMBER["muscle"], NUMBER["organ"]]) & (hu < FAT_HU)
    out[named] = kinds[named]
    out[named & fatty] = NUMBER["fat"]
    out[named & ~keeps_gas & (hu < GAS_HU)] = NUMBER["gas"]


def _paint_skeleton(out: Volume, bones: Bones, grid: Grid, hu: Volume | None) -> None:
    """Discs, canal, joint cartilage and bones over what is there."""
    for disc in bones.spine.discs.values():
        box = _box(disc.grid, grid)
        if out[box].size == 0:
            continue
        code = sample(torch.from_numpy(disc.codes)[None], disc.grid, _centres(box, grid), "nearest", outside=0)[0].numpy()
        code = code.reshape(out[box].shape)
        core = NUMBER["dry nucleus" if disc.dry else "nucleus"]
        part = np.where(code == 2, core, NUMBER["annulus"])
        if hu is not None:
            part = np.where(hu[box] < -200, NUMBER["gas"], part)
            code = np.where(hu[box] > CORTEX_HU, 0, code)
        out[box] = np.where(code > 0, part, out[box])
    _paint_canal(out, bones, grid, hu)
    near = np.zeros(out.shape, dtype=np.uint8)
    for bone in bones.maps.values():
        box, crop = _shared(bone, grid)
        near[box] += bone.values[0].numpy()[crop] < JOINT_MM
    soft = np.isin(out, [NUMBER[name] for name in ("muscle", "fat", "organ", "bowel", "cortex", "marrow", "vessel")])
    out[(near > 1) & soft] = NUMBER["cartilage"]
    for bone in bones.maps.values():
        box, crop = _shared(bone, grid)
        distance = bone.values[0].numpy()[crop]
        inside = distance < 0
        if hu is None:
            hard = distance > -BLIND_RIM_MM
        else:
            deep = hu[box][distance < -2.5]
            limit = np.clip(np.median(deep) + 180 if deep.size else CORTEX_HU, CORTEX_HU, 2 * CORTEX_HU)
            hard = (hu[box] > limit) | (distance > -RIM_MM)
        out[box] = np.where(inside, np.where(hard, NUMBER["cortex"], NUMBER["marrow"]), out[box])


def _paint_canal(out: Volume, bones: Bones, grid: Grid, hu: Volume | None) -> None:
    """Epidural fat, the sac in it, and in the sac the cord, further down its roots."""
    canal = bones.spine.canal
    if canal is None:
        return
    ends = np.stack([canal.line.min(0) - 16, canal.line.max(0) + 16])
    corners = np.array(np.meshgrid(*ends.T, indexing="ij")).reshape(3, -1)
    box = _span(grid.index(torch.as_tensor(corners)).numpy(), grid)
    points = _centres(box, grid).numpy().T
    middle = canal.line[np.clip(np.searchsorted(canal.line[:, 2], points[:, 2]), 0, len(canal.line) - 1)]
    close = np.flatnonzero((np.abs(points[:, :2] - middle[:, :2]) < 26).all(1))
    side, front, beside = canal.coordinates(points[close])
    radius = np.hypot(side, front)
    kind = np.where(radius < 0.9, NUMBER["csf"], NUMBER["fat"])
    above = points[close, 2] - bones.cord_end_mm
    cord = radius < 0.5 * np.clip(0.5 + above / 20, 0, 1)
    root = np.zeros_like(cord)
    for angle in np.radians(np.linspace(200, 340, 6)):
        root |= np.hypot(side - 0.52 * np.cos(angle), front - 0.52 * np.sin(angle)) < 0.15
    kind = np.where(cord | root, NUMBER["cord"], kind)
    if hu is not None:
        kind = np.where(hu[box].ravel()[close] < FAT_HU, NUMBER["fat"], kind)
    part = out[box].ravel()
    bony = np.isin(part[close], [NUMBER["cortex"], NUMBER["marrow"]])
    disc = np.isin(part[close], [NUMBER["annulus"], NUMBER["nucleus"], NUMBER["dry nucleus"]])
    chosen = beside & ~bony & np.where(disc, radius < 0.9, radius < 1.3)
    part[close[chosen]] = kind[chosen]
    out[box] = part.reshape(out[box].shape)


def _box(part: Grid, grid: Grid) -> tuple[slice, ...]:
    """The voxels of ``grid`` around another grid."""
    ends = torch.stack(torch.meshgrid(*[torch.tensor([0.0, n - 1.0]).double() for n in part.shape], indexing="ij")).flatten(1)
    return _span(grid.index(part.world(ends)).numpy(), grid)


def _span(index: np.ndarray, grid: Grid) -> tuple[slice, ...]:
    low = np.clip(np.floor(index.min(1)).astype(int), 0, grid.shape)
    high = np.clip(np.ceil(index.max(1)).astype(int) + 1, 0, grid.shape)
    return tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))


def _centres(box: tuple[slice, ...], grid: Grid) -> Tensor:
    """(3, n) world mm of the voxels in a box."""
    before = tuple(-s.start for s in box)
    after = tuple(s.stop - n for s, n in zip(box, grid.shape, strict=True))
    part = grid.padded((before[0], before[1], before[2]), (after[0], after[1], after[2]))
    return part.points(torch.float64).flatten(1)


def _shared(part: DistanceMap, grid: Grid) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """A crop's voxels in the scan, and the same in the crop."""
    first = part.grid.affine[:3, 3:].copy()
    start = grid.index(torch.as_tensor(first)).round().int()[:, 0].tolist()
    box, crop = [], []
    for a, m, n in zip(start, part.grid.shape, grid.shape, strict=True):
        low, high = max(a, 0), min(a + m, n)
        box.append(slice(low, high))
        crop.append(slice(low - a, high - a))
    return tuple(box), tuple(crop)
