"""A rigid start on images alone: mutual information over six degrees of freedom, coarse to fine, from several poses."""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from osteomorph.case import Case
from osteomorph.errors import StartError
from osteomorph.foreground import foreground
from osteomorph.geometry import overlap_mm3
from osteomorph.image import Image
from osteomorph.plan import InitialisePlan
from osteomorph.resampling import coarser, resample
from osteomorph.rigid_search import Pair, about, climb, middle
from osteomorph.threads import spread, threads
from osteomorph.transforms import Rigid

TURN_DEG = 18.0
"""Each first guess is also tried turned by this much about each axis."""
SHIFTS_MM = (-80.0, -40.0, 40.0, 80.0)
"""And shifted by this much along the body, where one field of view is longer by LONGER_MM."""
LONGER_MM = 40.0
STEPS = 30
"""Of the optimiser at each resolution."""
COARSE_SAMPLES, SAMPLES = 6_000, 30_000
"""Voxels looked at in a step: at a spacing from `COARSE_MM` on, and below it."""
COARSE_MM = 3.5
KEPT = 4
"""Poses that go on from the coarsest resolution, half a voxel or more from each other."""
LEAST_OVERLAP = 0.3
"""Share of the smaller body that has to lie in the other."""
CHANCE_POSES = 24
"""Poses drawn 30-60 mm or 30-60 degrees away, whose median mutual information is what chance gives."""
LEAST_GAIN, GOOD_GAIN, SURE_GAIN = 1.15, 1.6, 4.0
"""How many times the mutual information of chance the start has to reach; below the second it is warned of, and below the
third where it is less than `GOOD_NATS` beyond that of chance."""
GOOD_NATS = 0.25
"""Pairs of one patient reach a gain of 4.1, or else 0.5 nats; of drawn pairs of different regions those below that gain reach
0.23 at most, real CT and MR of two patients 0.27 (``benchmarks/mismatched.py``)."""
LEAST_NATS = 0.03
"""Mutual information, beyond what unrelated images seem to have, below which two images have nothing to do with each other.
Torsos and noise reach 0.02 where they are likest, pairs of one patient 0.25 and more."""
UNRELATED_NATS, LEAST_BINS = 0.02, 8
"""Mutual information that unrelated images may seem to have, (bins - 1)^2 / 2 n for n voxels (Miller 1955): fewer voxels, fewer
bins."""
RANKED = 1 << 16
"""Voxels of a body whose intensities the others are ranked among."""
EVEN_MM = 30.0
"""Standard deviation of the Gaussian whose geometric mean an image is divided by."""
DARK = 0.08
"""Intensity, of [0, 1], up to which a voxel says nothing of that mean: air, cortical bone and noise have none."""
AIR_BINS = 0.1
"""Share of the intensities that is kept for air, in which gas and the smoothed skin lie too."""
RIVAL = 0.93
"""Share of the best score from which a second pose makes the start ambiguous ..."""
APART_MM = 12.0
"""... when it carries the body this far from the first one."""

Found = tuple[Rigid, str, float, tuple[str, ...]]
Poses = Float[Tensor, "b 4 4"]


def start_on_images(case: Case, plan: InitialisePlan, seed: int, from_centres: bool) -> Found:
    """Rigid, method, mutual information in nats, warnings. Raises StartError when the start cannot be trusted.

    A start that fails or is warned of is looked for once more on `evened` images, and taken where nothing is to be said of it.
    Not at once: evened, a long CT is found on a short MR from less far away.
    """
    if not from_centres and overlap_mm3(case.fixed.grid, case.moving.grid) == 0:
        raise StartError(
            "The fields of view do not overlap: the images are in different frames. Give labels of both images, or begin at "
            "their centres (--initial centres), or give a transform (--initial TRANSFORM)."
        )

    def search(even: bool) -> Found:
        return _search(_pairs(case, plan.spacings_mm, plan.bins, even), seed, from_centres)

    first: Found | StartError
    try:
        first = search(even=False)
    except StartError as error:
        first = error
    if isinstance(first, StartError) or first[-1]:
        with suppress(StartError):
            second = search(even=True)
            if not second[-1]:
                return second
    if isinstance(first, StartError):
        raise first
    return first


def climbed(case: Case, plan: InitialisePlan, start: Rigid, seed: int) -> tuple[Rigid, float, float]:
    """The maximum of mutual information near a start, its value in nats, and how far from it that carries the body in mm."""
    first = torch.from_numpy(start.matrix.copy()).float()[None]
    poses, pairs = first, _pairs(case, plan.spacings_mm, plan.bins)
    with threads(1):
        for pair in pairs:
            poses = climb(pair, poses, steps=STEPS, samples=SAMPLES, seed=seed, with_overlap=False)
    with torch.no_grad():
        score = pairs[-1].alike(poses, pairs[-1].choose(SAMPLES, torch.Generator().manual_seed(seed)))[0]
    return Rigid.nearest(poses[0].double().numpy()), float(score[0]), float(_apart_mm(poses, first[0], pairs[-1])[0])


def _search(pairs: list[Pair], seed: int, from_centres: bool) -> Found:
    """The overlap of the bodies brings poses together from afar. Then it would pull a shorter field of view off its place, so
    the coarsest resolution is climbed again without it."""
    poses = _first_poses(pairs[0], from_centres)
    warnings: list[str] = []
    for rank, pair in enumerate(pairs):
        coarsest, decides = rank == 0, rank == min(1, len(pairs) - 1)
        samples = COARSE_SAMPLES if pair.spacing_mm >= COARSE_MM else SAMPLES
        for with_overlap in (True, False) if coarsest else (False,):
            climbers = partial(climb, pair, steps=STEPS, samples=samples, seed=seed, with_overlap=with_overlap)
            with threads(1) if len(poses) == 1 else nullcontext():
                poses = torch.cat(list(spread(climbers, poses.chunk(torch.get_num_threads()))))
            poses, scores = _ranked(pair, poses, seed, with_overlap)
        if decides:
            warnings += _rivals(pair, poses, scores)
            poses = poses[:1]
    score, gain = _against_chance(pairs[-1], poses, seed)
    if gain < GOOD_GAIN or (gain < SURE_GAIN and score - score / gain < GOOD_NATS):
        warnings.append(
            f"The rigid start on images is weak: mutual information {score:.2f} nats, and {score / gain:.2f} by chance, is "
            "little for one region of one patient. Check the overlay, or give labels of both images."
        )
    return Rigid.nearest(poses[0].double().numpy()), "images", score, tuple(warnings)


def _pairs(case: Case, spacings_mm: Sequence[float], bins: int, even: bool = False) -> list[Pair]:
    """Both sides at each resolution, and as many bins as their voxels allow, at most ``bins``."""
    given = ((case.fixed, case.fixed_mask), (case.moving, case.moving_mask))
    wanted = [(*side, spacing_mm, even) for spacing_mm in spacings_mm for side in given]
    sides = list(spread(lambda side: _side(*side), reversed(wanted)))[::-1]  # the finest take longest
    pairs = []
    for fixed, moving in zip(sides[::2], sides[1::2], strict=True):
        few = 1 + int(np.sqrt(2 * UNRELATED_NATS * min(fixed[0].grid.voxels, moving[0].grid.voxels)))
        most = max(LEAST_BINS, min(bins, few))
        pairs.append(Pair(fixed[0], moving[0], fixed[1], moving[1], fixed[2], moving[2], most))
    return pairs


def _side(image: Image, mask: Image | None, spacing_mm: float, even: bool) -> tuple[Image, Image, Image]:
    """An image, its body and its weight at one resolution, never finer than it is."""
    coarse = coarser(image, spacing_mm)
    coarse, grid = coarse.with_data(coarse.data[:1].clamp(0, 1)), coarse.grid
    weight = coarse.with_data(torch.ones_like(coarse.data))
    if mask is not None:
        weight = resample(mask, Rigid.identity(), grid, outside=0.0)
    body = foreground(coarse, margin_mm=0.0)
    return equalised(evened(coarse, body) if even else coarse, body), body, weight


def evened(image: Image, body: Image) -> Image:
    """An image in [0, 1] over its geometric mean within `EVEN_MM`, in the body: a coil's gain goes with it.

    Near a surface coil one tissue is several times as bright as far from it. Mutual information then rates where in the coil a
    voxel lies, and poses slide by vertebrae.
    """
    data = image.data[0]
    seen = ((body.data[0] > 0.5) & (data > DARK)).numpy().astype(np.float32)
    logs = data.clamp(min=DARK).log().numpy()
    reach = EVEN_MM / image.grid.spacing_mm
    mean = gaussian_filter(logs * seen, reach, mode="constant") / (gaussian_filter(seen, reach, mode="constant") + 1e-3)
    return image.with_data(torch.as_tensor(np.exp(logs - mean))[None])


def equalised(image: Image, body: Image) -> Image:
    """Each intensity as the share of the body that is darker, from 0.1 to 1, and air 0.

    All bins of a histogram then hold as much of the body. As they are, soft tissue has 3 of 32 bins of a CT, and the outline
    and gas decide: one start ended 16 mm beside a pose with a higher score on equalised images.
    """
    data, inside = image.data[0], body.data[0] > 0.5
    if not inside.any():
        return image
    known = data[inside]
    order = known[:: max(1, len(known) // RANKED)].sort().values
    darker = torch.searchsorted(order, data.contiguous()).to(data.dtype) / len(order)
    return image.with_data(torch.where(inside, AIR_BINS + (1 - AIR_BINS) * darker, 0.0)[None])


def _first_poses(pair: Pair, from_centres: bool) -> Poses:
    """As the headers say, centres of the fields of view and of the bodies aligned; each turned, and shifted along the body."""
    centre, _ = middle(pair.fixed_body)
    fixed, moving = pair.fixed.grid, pair.moving.grid
    guesses = [] if from_centres else [torch.zeros(3)]
    for shift in (torch.as_tensor(moving.centre_mm - fixed.centre_mm).float(), middle(pair.moving_body)[0] - centre):
        if all((shift - other).norm() > APART_MM for other in guesses):
            guesses.append(shift)
    turns = [torch.zeros(3), *(sign * np.radians(TURN_DEG) * axis for axis in torch.eye(3) for sign in (-1, 1))]
    steps = [(turn, torch.zeros(3)) for turn in turns]
    along = [grid.size_mm[grid.axis("IS")] for grid in (fixed, moving)]
    if abs(along[0] - along[1]) > LONGER_MM:
        steps += [(torch.zeros(3), torch.tensor([0.0, 0.0, shift])) for shift in SHIFTS_MM]
    return torch.cat([about(turn[None], (guess + step)[None], centre) for guess in guesses for turn, step in steps])


def _ranked(pair: Pair, poses: Poses, seed: int, with_overlap: bool) -> tuple[Float[Tensor, "kept 4 4"], list[float]]:
    """The poses that differ, best first, and their mutual information; those that hardly overlap are out."""
    with torch.no_grad():
        information, overlap = pair.alike(poses, pair.choose(SAMPLES, torch.Generator().manual_seed(seed)))
    scores = information * (overlap >= LEAST_OVERLAP) * (overlap if with_overlap else 1.0)
    kept: list[int] = []
    for k in torch.argsort(scores, descending=True).tolist():
        differs = bool((_apart_mm(poses[kept], poses[k], pair) > pair.spacing_mm / 2).all())
        if scores[k] > 0 and differs and len(kept) < KEPT:
            kept.append(k)
    if not kept:
        raise StartError(
            "The rigid start on images failed: no pose was found where the two bodies overlap by "
            f"{LEAST_OVERLAP:.0%}. Give labels of both images, or a transform (--initial TRANSFORM)."
        )
    return poses[kept], scores[kept].tolist()


def _rivals(pair: Pair, poses: Poses, scores: list[float]) -> list[str]:
    """A warning where a pose far from the best one is nearly as good."""
    for apart, score in zip(_apart_mm(poses, poses[0], pair).tolist(), scores, strict=True):
        if apart > APART_MM and score > RIVAL * scores[0]:
            return [
                f"The rigid start is ambiguous: a pose {apart:.0f} mm away has {score / scores[0]:.0%} of its mutual "
                "information. Check the overlay, or give labels of both images."
            ]
    return []


def _apart_mm(poses: Poses, other: Float[Tensor, "4 4"], pair: Pair) -> Float[Tensor, " b"]:
    """Root mean square distance in mm between where poses carry the fixed body and where another one does."""
    centre, radius_mm = middle(pair.fixed_body)
    reach = centre[:, None] + radius_mm * torch.cat([torch.eye(3), -torch.eye(3)], 1)
    difference = poses - other
    return (difference[:, :3, :3] @ reach + difference[:, :3, 3:]).square().sum(1).mean(1).sqrt()


def _against_chance(pair: Pair, best: Poses, seed: int) -> tuple[float, float]:
    """Mutual information of the start, and how many times that of random poses it is. Raises StartError when it is no more."""
    draw = np.random.default_rng(seed)
    axes = draw.normal(size=(2, CHANCE_POSES, 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    far = draw.uniform(30, 60, size=(2, CHANCE_POSES, 1)) * [[[k % 2 == side] for k in range(CHANCE_POSES)] for side in (0, 1)]
    turns, shifts = torch.as_tensor(axes * far).float()
    chance = best @ about(torch.deg2rad(turns), shifts, middle(pair.fixed_body)[0])
    chosen = pair.choose(SAMPLES, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        information, overlap = pair.alike(torch.cat([best, chance]), chosen)
    seeming = (pair.bins - 1) ** 2 / (2 * float(overlap[0]) * pair.smaller_body * len(chosen))
    score, others = float(information[0]), information[1:][overlap[1:] >= LEAST_OVERLAP]
    gain = score / max(float(others.median()), 1e-6) if len(others) >= CHANCE_POSES // 4 else float("inf")
    if score < seeming + LEAST_NATS or gain < LEAST_GAIN:
        raise StartError(
            f"The rigid start on images failed: mutual information {score:.3f} nats, {gain:.1f} times that of random poses. "
            "Check that both show the same patient and region, give labels of both, or a transform (--initial TRANSFORM)."
        )
    return score, gain
