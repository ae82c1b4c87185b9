"""From bone and the way to each bone's middle to one number per bone.

Every voxel of bone votes for where the middle of its bone lies. Votes for one bone are connected, votes for its neighbours lie
apart: about each vertebra's middle in a lump, and for a bone longer than the votes reach along a shrunken copy of it.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage


@final
@dataclass(frozen=True)
class InstanceSettings:
    """bone: least probability. blur_mm: of the votes. density: votes per voxel, once blurred, from which on they are connected.

    valley: factor by which votes at each of two peaks outnumber those between them, so that they are two bones.
    reach_mm: how far from a lump of votes a vote still counts for it. least_mm3: of a bone; what is smaller is left out.
    apart: probabilities, and voxels that are peeled off; what hangs together then, and votes for several bones, may have some
    votes astray.
    fragment_mm3: of a piece of a bone that hangs on nothing; what is smaller goes to the bone it touches or is left out.
    """

    bone: float = 0.5
    blur_mm: float = 3.0
    density: float = 0.5
    valley: float = 2.0
    reach_mm: float = 20.0
    apart: tuple[tuple[float, int], ...] = ((0.5, 0), (0.9, 0), (0.9, 1), (0.97, 1))
    least_mm3: float = 1000.0
    fragment_mm3: float = 400.0


def instances(
    bone: Float[np.ndarray, "i j k"],
    offset_mm: Float[np.ndarray, "3 i j k"],
    spacing_mm: float,
    settings: InstanceSettings | None = None,
) -> tuple[Int[np.ndarray, "i j k"], dict[int, float]]:
    """Number of the bone at every voxel, 0 elsewhere, and how sure each is, in [0, 1].

    bone: probability. offset_mm: along the array axes. Sureness is the mean probability of a bone's voxels times the share of
    them that voted for it.
    """
    settings = settings or InstanceSettings()
    voxel = spacing_mm**3
    inside = bone > settings.bone
    if inside.sum() * voxel < settings.least_mm3:
        return np.zeros(bone.shape, np.int32), {}
    places = np.stack(np.nonzero(inside))
    votes = places + offset_mm[:, inside] / spacing_mm
    lumps, origin = _lumps(votes, spacing_mm, settings)
    near = _nearest(lumps, settings.reach_mm / spacing_mm)
    at = np.rint(votes).astype(int) - origin[:, None]
    within = ((at >= 0) & (at < np.array(lumps.shape)[:, None])).all(0)
    own = np.where(within, near[tuple(at.clip(0, np.array(lumps.shape)[:, None] - 1))], 0)
    voted = np.zeros(bone.shape, np.int32)
    voted[tuple(places)] = own
    settled = voted
    for level, peeled in settings.apart:
        settled = _at_home(settled, _pieces(bone > level, peeled), settings.least_mm3 / voxel)
    found = _tidied(settled, inside, voxel, settings)
    sure = {}
    numbers = [int(n) for n in np.unique(found) if n]
    for number in numbers:
        here = found == number
        sure[number] = float(bone[here].mean() * (voted[here] == number).mean())
    return found, sure


def _lumps(
    votes: Float[np.ndarray, "3 n"], spacing_mm: float, settings: InstanceSettings
) -> tuple[Int[np.ndarray, "p q r"], Int[np.ndarray, "3"]]:
    """Votes for one bone each, numbered, on a lattice of their own; and the voxel at its first corner.

    Connected votes are cut in two where between two peaks they are much fewer than at either.
    """
    margin = int(np.ceil(4 * settings.blur_mm / spacing_mm))
    low = np.floor(votes.min(1)).astype(int) - margin
    shape = np.ceil(votes.max(1)).astype(int) + margin + 1 - low
    at = np.rint(votes).astype(int) - low[:, None]
    counted = np.bincount(np.ravel_multi_index(tuple(at), tuple(shape)), minlength=int(np.prod(shape)))
    density = ndimage.gaussian_filter(counted.reshape(shape).astype(np.float32), settings.blur_mm / spacing_mm)
    connected = ndimage.label(density > settings.density)[0]
    out, least, count = np.zeros_like(connected), settings.least_mm3 / spacing_mm**3, 0
    for number, box in enumerate(ndimage.find_objects(connected), 1):
        region = connected[box] == number
        if density[box][region].sum() < least:
            continue
        cores = _cores(density[box], region, settings.density, least, settings.valley)
        numbers = np.zeros(region.shape, np.int32)
        for core in cores:
            count += 1
            numbers[core] = count
        index = ndimage.distance_transform_edt(numbers == 0, return_distances=False, return_indices=True)
        out[box][region] = numbers[tuple(index)][region]
    return out, low


def _cores(density: np.ndarray, region: np.ndarray, level: float, least: float, valley: float) -> list[np.ndarray]:
    """The region, or what it falls apart into as the level rises, if each part has votes enough and rises well above it."""
    peak = float(density[region].max())
    inside = region
    while (level := level * RISE) * valley < peak:
        parts, count = ndimage.label(inside & (density > level))
        if count < 2:
            continue
        numbers = np.arange(1, count + 1)
        enough = ndimage.sum_labels(density, parts, numbers) >= least
        high = ndimage.maximum(density, parts, numbers) >= valley * level
        good = numbers[enough & high]
        if len(good) > 1:
            return [core for number in good for core in _cores(density, parts == number, level, least, valley)]
        if len(good) == 1:
            inside = parts == good[0]
    return [region]


RISE = 1.3
"""Factor from one level of votes to the next."""


def _nearest(numbers: Int[np.ndarray, "i j k"], reach: float) -> Int[np.ndarray, "i j k"]:
    """The number of the nearest numbered voxel, 0 where none is within ``reach`` voxels."""
    if not numbers.any():
        return numbers
    far, index = ndimage.distance_transform_edt(numbers == 0, return_indices=True)
    return np.where(far <= reach, numbers[tuple(index)], 0)


def _pieces(inside: np.ndarray, peeled: int) -> Int[np.ndarray, "i j k"]:
    """What hangs together once so many voxels are peeled off, numbered, and put on again."""
    if not peeled:
        return ndimage.label(inside)[0]
    return np.where(inside, _nearest(ndimage.label(ndimage.binary_erosion(inside, iterations=peeled))[0], peeled + 0.8), 0)


MOST = 0.6
"""Share of the votes of a piece that carries all of it, though the rest of that bone lies elsewhere."""


def _at_home(voted: Int[np.ndarray, "i j k"], pieces: Int[np.ndarray, "i j k"], least: float) -> Int[np.ndarray, "i j k"]:
    """Votes of one piece for a bone most of which is another piece go to the bone that most of this piece voted for.

    The head of a femur may vote for the hip around it, but it does not hang on it.
    """
    count = int(pieces.max()) + 1
    places = voted.astype(np.int64) * count + pieces
    table = np.bincount(places.ravel(), minlength=(int(voted.max()) + 1) * count).reshape(-1, count)
    table[0], table[:, 0] = 0, 0
    home, sizes = table.argmax(1), table.sum(0)
    out = voted.copy()
    for piece, box in enumerate(ndimage.find_objects(pieces), 1):
        own = int(table[:, piece].argmax())
        if home[own] == piece:
            if sizes[piece] < least:
                continue
        elif table[own, piece] < MOST * sizes[piece]:
            continue
        away = [k for k in np.flatnonzero(table[:, piece]) if home[k] != piece]
        here = (pieces[box] == piece) & np.isin(voted[box], away)
        out[box][here] = own
    return out


def _tidied(
    voted: Int[np.ndarray, "i j k"], inside: np.ndarray, voxel: float, settings: InstanceSettings
) -> Int[np.ndarray, "i j k"]:
    """Every bone without its specks; voxels without a bone go to the nearest one that they hang on."""
    kept = np.zeros_like(voted)
    boxes = ndimage.find_objects(voted)
    for number, box in enumerate(boxes, 1):
        if box is None:
            continue
        pieces, count = ndimage.label(voted[box] == number)
        sizes = ndimage.sum_labels(np.ones_like(pieces), pieces, np.arange(1, count + 1)) * voxel
        if sizes.sum() < settings.least_mm3:
            continue
        good = np.flatnonzero((sizes >= settings.fragment_mm3) | (sizes == sizes.max())) + 1
        kept[box][np.isin(pieces, good)] = number
    grown = kept
    for _ in range(GROWTH):
        around = ndimage.grey_dilation(grown, footprint=ndimage.generate_binary_structure(3, 1))
        fresh = np.where((grown == 0) & inside, around, grown)
        if np.array_equal(fresh, grown):
            break
        grown = fresh
    return grown


GROWTH = 12
"""Voxels by which a bone may reach beyond those that voted for it."""
