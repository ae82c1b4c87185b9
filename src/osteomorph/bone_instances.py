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
    fragment_mm3: of a piece of a bone that hangs on nothing; what is smaller goes to the bone it touches or is left out.
    agreeing_mm: median distance between the votes of voxels `ACROSS` apart, on either side of where two bones meet, up to which
    they are one bone; None: never. seam: least of such neighbours, relative to the smaller bone's voxels to the power of 2/3.
    """

    bone: float = 0.5
    blur_mm: float = 2.5
    density: float = 0.5
    valley: float = 1.5
    reach_mm: float = 20.0
    least_mm3: float = 1000.0
    fragment_mm3: float = 400.0
    agreeing_mm: float | None = 14.0
    seam: float = 2.0


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
    found = _tidied(voted, inside, voxel, settings)
    if settings.agreeing_mm is not None:
        same = _same_bones(found, offset_mm, spacing_mm, settings.agreeing_mm, settings.seam)
        found, voted = same[found], same[voted]
    sure = {}
    for number, box in enumerate(ndimage.find_objects(found), 1):
        if box is not None:
            here = found[box] == number
            sure[number] = float(bone[box][here].mean() * (voted[box][here] == number).mean())
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
        some = np.flatnonzero(parts)
        own, there = parts.ravel()[some], density.ravel()[some]
        peaks = np.zeros(count + 1, density.dtype)
        np.maximum.at(peaks, own, there)
        good = np.flatnonzero((np.bincount(own, there) >= least) & (peaks >= valley * level))
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
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:] * voxel
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


ACROSS = 3
"""Voxels between neighbours whose votes are compared: the answer takes about two to change from one bone to the next."""


def _same_bones(
    found: Int[np.ndarray, "i j k"], offset_mm: Float[np.ndarray, "3 i j k"], spacing_mm: float, agreeing_mm: float, seam: float
) -> Int[np.ndarray, " n"]:
    """For each number the one to take instead: the head and the shaft of a femur, whose votes lie in two lumps, are one bone.

    Where two bones meet, votes leap from the middle of one to the middle of the other; within one they hardly change.
    """
    meeting, apart = [], []
    for axis in range(3):
        low, *between, high = (
            tuple(slice(k, n - ACROSS + k) if d == axis else slice(None) for d, n in enumerate(found.shape))
            for k in range(ACROSS + 1)
        )
        one, other = found[low], found[high]
        here = (one > 0) & (other > 0) & (one != other)
        for part in between:
            here &= found[part] > 0
        leap = offset_mm[(slice(None), *high)][:, here] - offset_mm[(slice(None), *low)][:, here]
        leap[axis] += ACROSS * spacing_mm
        meeting.append(np.sort(np.stack([one[here], other[here]]), 0))
        apart.append(np.linalg.norm(leap, axis=0))
    pairs, place = np.unique(np.concatenate(meeting, 1), axis=1, return_inverse=True)
    place, leaps = place.ravel(), np.concatenate(apart)
    sizes, same = np.bincount(found.ravel()), np.arange(int(found.max()) + 1)
    for number, (a, b) in enumerate(pairs.T):
        across = leaps[place == number]
        if len(across) >= seam * min(sizes[a], sizes[b]) ** (2 / 3) and np.median(across) <= agreeing_mm:
            same[same == same[b]] = same[a]
    return same


GROWTH = 12
"""Voxels by which a bone may reach beyond those that voted for it."""
