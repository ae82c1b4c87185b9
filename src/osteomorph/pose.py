"""Six degrees of freedom per bone from two images of different contrast.

Gauss-Newton steps with Levenberg-Marquardt damping on robust differences (Geman and McClure, 1987) of MIND-SSC (Heinrich et
al., 2013) in a bone and a shell around it, coarse to fine. The other image is described anew under the current pose, since
a description looks along array axes and so does not turn with the image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from osteomorph.case import Case
from osteomorph.distances import DistanceMap, distance_maps
from osteomorph.errors import InputError
from osteomorph.geometry import sample
from osteomorph.image import Labels
from osteomorph.plan import PosePlan
from osteomorph.pose_features import Patch, Side, about, centroid, described, jacobian, patch, search, slopes, taken
from osteomorph.resampling import regrid_labels
from osteomorph.threads import spread
from osteomorph.transforms import Rigid

Frame = Literal["fixed", "moving"]
Progress = Callable[[str, int, int], None]

SCALE = 0.03
"""Mean squared feature difference at which a point's say is a quarter of what it is at 0."""

CONVERGED = 0.02
"""RMS motion of a bone's points, in voxels, below which no further step is taken."""

LEAST_SEEN = 0.25
"""Share of a bone's points that the other image has to show."""

BLOCK_MM = 8.0
"""Side of the cubes between which errors of the features count as independent."""

INFLATION = 4.0
"""Of the covariance: what features share in error beyond a cube. Chosen on six vertebrae of simulated pairs, where the median
of e^T C^-1 e / 6 then is that of six degrees of freedom, 0.9."""

SYSTEMATIC_MM = 0.18
"""Standard deviation, per shift and per rotation at a bone's points, of what no pair of images tells: a chemical shift of
marrow fat moves what is seen of a bone by the same 0.1 to 0.5 mm everywhere, edges of CT and MR differ. Chosen on 48 bones of
simulated lumbar spines, pelves and knees at 1 to 2 mm (``benchmarks/sureness.py``)."""

WEAKEST = 1e-4
"""Eigenvalues of the information, points' motion per mm, are kept above this share of the largest."""

AMBIGUOUS = 0.01
"""Difference of score within which two poses are told apart by chance."""

COARSE_POINTS = 4_000
"""Compared at most at all but the finest resolution."""

RIVAL = 0.002
"""Score by which a pose has to be better than the same bone in the place of a neighbour that looks like it. On three simulated
spines shifted by one vertebra the wrong place was worse by 0.006 to 0.04."""

FALLS = 0.13
"""By which descriptions after the first may lower such a score: they did by up to 0.034 in one shot, 0.123 by default."""

ALIKE = 2.0
"""Ratio of volumes up to which a neighbour may be taken for a bone."""

CLEAR = 0.12
"""Gain over features that have nothing to do with each other from which on no other pose is searched for. Vertebrae that are
found have .17 to .4 at 2 mm, a kneecap 10 mm off .04."""

CHANCE = 0.08
"""Gain up to which a fit may be chance."""

APART_MM = 2.0
"""Poses nearer to each other than that are one."""

KEPT = 3
"""Poses of the coarsest resolution that go on to the next one."""


@final
@dataclass(frozen=True, eq=False)
class BonePose:
    """Where a bone went.

    pose: fixed mm -> moving mm of the case it was estimated in.
    start: from where it was found.
    covariance: (6, 6) of a small motion before the pose: rotation vector in rad about the bone's centroid, along the axes of
        the fixed world (RAS), then shift in mm. Infinite on the diagonal where the start was kept.
    determined: False where the images do not tell a rotation or shift, or where a pose elsewhere, such as in the place of a
        neighbour, fits as well. Also where the bone is not seen, the fit ran away or fits no better than chance: then the pose
        is that of the start.
    score: robust mean difference of the features at the end, 0 to 1; infinite where the start was kept.
    gain: share by which the score is below that of the same features where they do not belong together; 0 where it was kept.
    """

    label: int
    pose: Rigid
    start: Rigid
    covariance: np.ndarray
    determined: bool
    score: float
    gain: float = 0.0

    @property
    def rotation_sd_deg(self) -> float:
        """Largest standard deviation of the rotation, about any axis."""
        return float(np.degrees(_largest_sd(self.covariance[:3, :3])))

    @property
    def shift_sd_mm(self) -> float:
        """Largest standard deviation of the centroid's place, along any axis."""
        return _largest_sd(self.covariance[3:, 3:])


def _largest_sd(covariance: np.ndarray) -> float:
    if not np.isfinite(covariance).all():
        return float("inf")
    return float(np.sqrt(max(0.0, np.linalg.eigvalsh(covariance)[-1])))


# -- from images ----------------------------------------------------------------------------------------------------------
def poses(
    case: Case,
    start: Mapping[int, Rigid],
    plan: PosePlan,
    ids: Sequence[int],
    frame: Frame,
    progress: Progress | None = None,
    instead: Callable[[Mapping[int, BonePose]], Mapping[int, Sequence[Rigid]]] | None = None,
) -> dict[int, BonePose]:
    """Where each bone went, fixed mm -> moving mm, from the images of a prepared case (intensities about [0, 1]).

    start: per bone a first guess. frame: which label map says where the bone is; the other image is carried onto the lattice
    of that one's. Bones are independent of each other, and nothing is random.
    instead: of what was found, for some bones other starts, which count where they lead to a pose that is determined, or fits
        clearly better and not by chance.

    Raises InputError: no labels in that frame, a label without voxels, or no start for it. A bone that the images do not show
    keeps its start, with ``determined`` False.
    """
    labels = case.fixed_labels if frame == "fixed" else case.moving_labels
    if labels is None:
        raise InputError(f"There are no {frame} labels to say where bone is. Give them, or use the other frame.")
    missing = sorted(set(ids) - set(labels.ids()))
    if missing:
        raise InputError(f"The {frame} labels have no voxel of label {missing[0]}. Leave the bone out, or use the other frame.")
    unstarted = sorted(set(ids) - set(start))
    if unstarted:
        raise InputError(f"Bone {unstarted[0]} has no start. Give one rigid transform per bone.")
    fixed, moving = Side(case.fixed, case.fixed_mask), Side(case.moving, case.moving_mask)
    reference, other = (fixed, moving) if frame == "fixed" else (moving, fixed)
    widest = plan.shell_mm * max(plan.spacings_mm) / plan.spacings_mm[-1]
    maps = distance_maps(_no_finer(labels, plan.spacings_mm[-1], ids), reach_mm=widest + 2.0)
    levels = [(reference.at(s), other.at(s)) for s in plan.spacings_mm]
    out: dict[int, BonePose] = {}
    if progress is not None:
        progress("pose", 0, len(ids))
    for found in spread(lambda label: _bone_pose(label, maps, levels, [start[label]], plan, frame), ids):
        out[found.label] = found
        if progress is not None:
            progress("pose", len(out), len(ids))
    others = {} if instead is None else instead(out)
    for again in spread(lambda label: _bone_pose(label, maps, levels, others[label], plan, frame), others):
        if again.determined or (again.gain > CLEAR and again.score < out[again.label].score - AMBIGUOUS):
            out[again.label] = again
    return out


@final
@dataclass(frozen=True, eq=False)
class _Fit:
    """A pose, reference mm -> other mm, and its score.

    gain: share by which the score is below that of the same features at points that do not belong together.
    """

    pose: Rigid
    score: float
    gain: float


def _bone_pose(
    label: int,
    maps: Mapping[int, DistanceMap],
    levels: list[tuple[Side, Side]],
    starts: Sequence[Rigid],
    plan: PosePlan,
    frame: Frame,
) -> BonePose:
    """From the best of some starts, fixed mm -> moving mm; the first of them where the bone is not found."""
    guesses = [start if frame == "fixed" else start.inverse() for start in starts]
    lost = BonePose(label, starts[0], starts[0], np.diag([np.inf] * 6), False, float("inf"))
    others = [found for k, found in maps.items() if k != label]
    shells = [plan.shell_mm * s / plan.spacings_mm[-1] for s in plan.spacings_mm]
    most = [min(plan.points, COARSE_POINTS)] * (len(levels) - 1) + [plan.points]
    patches = [
        patch(reference, maps[label], others, shell, count)
        for (reference, _), shell, count in zip(levels, shells, most, strict=True)
    ]
    seen = [found for found in patches if found is not None]
    if len(seen) < len(levels):
        return lost
    coarse = [(here, other) for here, (_, other) in zip(seen, levels, strict=True)][:-1]
    here, other = seen[-1], levels[-1][1]
    tried = _coarse_to_fine(coarse, guesses, plan)
    searched = plan.search_mm > 0 and bool(tried) and tried[0].gain <= CLEAR  # what is out of view is not looked for
    if searched:
        far = search(*levels[0], maps[label], others, shells[0], guesses[0], plan, SCALE)
        tried = _coarse_to_fine(coarse, [*guesses, *far], plan)
    close = [fit.pose for fit in tried if fit.score - tried[0].score < AMBIGUOUS] or guesses
    best, *rest = sorted((_fit(here, other, pose, plan) for pose in close), key=lambda fit: fit.score)
    ambiguous = any(fit.score - best.score < AMBIGUOUS and _rms_mm(fit.pose, best.pose, here) > APART_MM for fit in rest)
    radius = _radius(here)
    runaway = np.sqrt(3) * plan.search_mm * searched + 0.5 * radius + 10.0
    nearest = min(range(len(guesses)), key=lambda n: _rms_mm(best.pose, guesses[n], here))
    if not np.isfinite(best.score) or best.gain <= CHANCE or _rms_mm(best.pose, guesses[nearest], here) > runaway:
        return lost
    pose, covariance = best.pose, _covariance(here, other, best.pose)
    scale = np.repeat([radius, 1.0], 3)
    worst = _largest_sd(covariance * np.outer(scale, scale))
    told = worst <= plan.largest_sd_mm and not ambiguous
    if told and plan.iterations > 0:  # without steps from there, a neighbour's place is never as good
        told = not _has_rival(here, other, best, _rivals(maps, label), plan, coarse, tried)
    if frame == "moving":
        pose = pose.inverse()
        turn = np.kron(np.eye(2), pose.matrix[:3, :3].T)
        covariance = turn @ covariance @ turn.T
    return BonePose(label, pose, starts[nearest], covariance, told, best.score, best.gain)


def _no_finer(labels: Labels, spacing_mm: float, ids: Sequence[int]) -> Labels:
    """Labels at a spacing that shells do not need any finer, where that is about twice theirs, as long as no bone is lost."""
    grid = labels.grid.resampled(np.maximum(spacing_mm, labels.grid.spacing_mm))
    coarse = regrid_labels(labels, grid) if grid.voxels < labels.grid.voxels / 6 else labels
    return coarse if set(ids) <= set(coarse.ids()) else labels


def _rivals(maps: Mapping[int, DistanceMap], label: int) -> list[np.ndarray]:
    """Shifts that take a bone to the place of its nearest neighbour of about its size, and as far the other way."""
    own = int(maps[label].inside.sum())
    sizes = {k: int(found.inside.sum()) for k, found in maps.items() if k != label}
    here = centroid(maps[label])
    ways = [centroid(maps[k]) - here for k, size in sizes.items() if own / ALIKE < size < own * ALIKE]
    if not ways:
        return []
    nearest = min(ways, key=lambda way: float(way.norm()))
    return [about(here, np.concatenate([np.zeros(3), sign * nearest.numpy()])) for sign in (1, -1)]


def _has_rival(
    here: Patch,
    other: Side,
    best: _Fit,
    shifts: list[np.ndarray],
    plan: PosePlan,
    coarse: list[tuple[Patch, Side]],
    own: list[_Fit],
) -> bool:
    """Whether the bone fits as well after one of the shifts: one vertebra is easily taken for the next."""
    places = [Rigid(best.pose.matrix @ shift) for shift in shifts]
    if coarse and own:
        fits = _coarse_to_fine(coarse, places, plan) if places else []
        places = [fit.pose for fit in fits if fit.score < own[0].score + AMBIGUOUS]
    near = 0.5 * _radius(here)
    fits = [_fit(here, other, place, plan, best.score + RIVAL + FALLS) for place in places]
    return any(fit.score < best.score + RIVAL and _rms_mm(fit.pose, best.pose, here) > near for fit in fits)


def _coarse_to_fine(levels: list[tuple[Patch, Side]], guesses: list[Rigid], plan: PosePlan) -> list[_Fit]:
    """Fits at the last of some levels, best first, further than `APART_MM` from each other."""
    kept: list[_Fit] = []
    for here, other in levels:
        fits = sorted((_fit(here, other, guess, plan) for guess in guesses), key=lambda fit: fit.score)
        kept = _distinct([fit for fit in fits if np.isfinite(fit.score)], here, APART_MM)[:KEPT]
        guesses = [fit.pose for fit in kept]
    return kept


def _distinct(fits: list[_Fit], here: Patch, apart_mm: float) -> list[_Fit]:
    kept: list[_Fit] = []
    for fit in fits:
        if all(_rms_mm(fit.pose, other.pose, here) > apart_mm for other in kept):
            kept.append(fit)
    return kept


def _rms_mm(a: Rigid, b: Rigid, here: Patch) -> float:
    return float((a(here.points) - b(here.points)).square().sum(0).mean().sqrt())


def _radius(here: Patch) -> float:
    return float(here.offset.square().sum(0).mean().sqrt())


def _fit(here: Patch, other: Side, pose: Rigid, plan: PosePlan, hopeless: float = np.inf) -> _Fit:
    """Steps in the unit mm: a rotation is counted by how far it moves the points, on average. hopeless: a score at which to
    give up."""
    unit = np.repeat([1 / _radius(here), 1.0], 3)
    units = torch.as_tensor(unit, dtype=torch.float32)[:, None]
    near = CONVERGED * float(here.lattice.spacing_mm.mean())
    score, chance = float("inf"), 1.0
    for _ in range(plan.extractions):
        seen = other.sees(pose(here.points))
        if float(seen.double().mean()) < LEAST_SEEN:
            return _Fit(pose, float("inf"), 0.0)
        features = described(other.image, pose, here.lattice)
        now = taken(features, here.index)
        chance = _loss(now.roll(len(seen) // 2, 1) - here.features, seen)
        half = jacobian((here.slope + slopes(features, here.lattice, here.index)) / 2, here.offset) * units
        step, score = _steps(here, features, now - here.features, half, seen, unit, plan.iterations)
        before, pose = pose, Rigid.nearest(pose.matrix @ step)
        if _rms_mm(before, pose, here) < near or score > hopeless:
            break
    return _Fit(pose, score, 1 - score / chance if chance > 1e-6 else 0.0)


def _steps(
    here: Patch, features: Tensor, difference: Tensor, half: Tensor, seen: Tensor, unit: np.ndarray, iterations: int
) -> tuple[np.ndarray, float]:
    """Motion of the points within one description of the other image that lowers the loss, and the loss.

    The Jacobian is the mean of both images' (Benhimane and Malis, 2004), kept while the motion is small.
    """
    motion, damping, score = np.eye(4), 1e-3, _loss(difference, seen)
    near = CONVERGED * float(here.lattice.spacing_mm.mean())
    for _ in range(iterations):
        weight = _weight(difference, seen)
        weighted = half * weight
        normal = torch.einsum("can,cbn->ab", weighted, half).double().numpy()
        slope = torch.einsum("can,cn->a", weighted, difference).double().numpy()
        ridge = 1e-6 * np.trace(normal) + np.finfo(float).tiny
        for _ in range(3):
            step = -np.linalg.solve(normal + damping * np.diag(np.diag(normal)) + ridge * np.eye(6), slope)
            tried = about(here.centre, step * unit) @ motion
            now = sample(features, here.lattice, Rigid.nearest(tried)(here.points)) - here.features
            loss = _loss(now, seen)
            if loss < score:
                break
            damping = max(damping, 1e-3) * 10
        else:
            break
        motion, difference, score, damping = tried, now, loss, damping / 3
        if np.abs(step).max() < near:
            break
    return motion, score


def _weight(difference: Float[Tensor, "c n"], seen: Tensor) -> Float[Tensor, " n"]:
    return torch.where(seen, (SCALE / (SCALE + difference.square().mean(0))).square(), 0.0)


def _loss(difference: Float[Tensor, "c n"], seen: Tensor) -> float:
    square = difference.square().mean(0)[seen].double()
    return float((square / (square + SCALE)).mean())


def _covariance(here: Patch, other: Side, pose: Rigid) -> np.ndarray:
    """A^-1 B A^-1 times INFLATION, and SYSTEMATIC_MM squared: A the information that both images agree on, B what the gradient
    varies by.

    A is the product of one image's Jacobian and the other's: noise in either, which raises J^T J though it tells nothing
    about a motion, is not in it on average. The other's rotations are finite differences with the image described anew: a
    ball's description follows the array axes, and looks as if it turned otherwise. B sums over cubes the outer product of
    each cube's gradient, so that errors of neighbouring features, which are alike, are not counted as independent.
    """
    radius = _radius(here)
    unit = np.repeat([1 / radius, 1.0], 3)
    features = described(other.image, pose, here.lattice)
    now, seen = taken(features, here.index), other.sees(pose(here.points))
    own = jacobian(here.slope, here.offset)
    theirs = jacobian(slopes(features, here.lattice, here.index), here.offset)
    step = float(here.lattice.spacing_mm.mean()) / radius
    for k in range(3):
        turned = Rigid.nearest(pose.matrix @ about(here.centre, np.eye(6)[k] * step))
        theirs[:, k] = (taken(described(other.image, turned, here.lattice), here.index) - now) / step
    units = torch.as_tensor(unit, dtype=own.dtype)[:, None]
    own, theirs = own * units, theirs * units
    difference = now - here.features
    weight = _weight(difference, seen)
    cross = torch.einsum("can,cbn->ab", own * weight, theirs).double().numpy()
    largest = float((own.square() * weight).sum())
    if largest <= 0:
        return np.diag([np.inf] * 6)
    gradient = torch.einsum("can,cn->an", (own + theirs) / 2 * weight, difference).double()
    cube = (here.index * torch.as_tensor(here.lattice.spacing_mm)[:, None] / BLOCK_MM).floor().long()
    block = cube[0] + (cube[1] + cube[2] * (1 + cube[1].max())) * (1 + cube[0].max())
    sums = torch.zeros(6, int(block.max()) + 1, dtype=torch.float64).index_add_(1, block, gradient)
    values, vectors = np.linalg.eigh((cross + cross.T) / 2)
    inverse = vectors / np.maximum(values, WEAKEST * largest) @ vectors.T
    noise = INFLATION * inverse @ (sums @ sums.T).numpy() @ inverse
    return (noise + SYSTEMATIC_MM**2 * np.eye(6)) * np.outer(unit, unit)
