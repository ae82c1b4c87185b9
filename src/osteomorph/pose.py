"""Six degrees of freedom per bone from two images of different contrast, or from a dense field.

Gauss-Newton with Levenberg's damping on robust differences of MIND-SSC (Heinrich et al., 2013) in the bone and a thin shell.
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
from osteomorph.measure import fit_rigid
from osteomorph.plan import PosePlan
from osteomorph.pose_features import Patch, Side, about, described, jacobian, patch, slopes, taken
from osteomorph.transforms import Displacement, Rigid, Transform

Frame = Literal["fixed", "moving"]
Progress = Callable[[str, int, int], None]

BLOCK_MM = 8.0
"""Side of the cubes between which errors of the features count as independent."""

CONVERGED_MM = 0.01
SCALE = 0.03
K = 3.0
DIL = 0
KEEP = 2
LEAST_SEEN = 0.4
"""Share of a bone's points that both images must show."""


@final
@dataclass(frozen=True, eq=False)
class BonePose:
    label: int
    pose: Rigid
    covariance: np.ndarray
    determined: bool
    score: float

    @property
    def rotation_sd_deg(self) -> float:
        return float(np.degrees(np.sqrt(np.linalg.eigvalsh(self.covariance[:3, :3])[-1])))

    @property
    def shift_sd_mm(self) -> float:
        return float(np.sqrt(np.linalg.eigvalsh(self.covariance[3:, 3:])[-1]))


@dataclass(frozen=True)
class Fit:
    pose: Rigid  # reference -> other
    score: float
    bread: np.ndarray
    meat: np.ndarray


def poses(
    case: Case,
    start: Mapping[int, Rigid],
    plan: PosePlan,
    ids: Sequence[int],
    frame: Frame,
    progress: Progress | None = None,
) -> dict[int, BonePose]:
    labels = case.fixed_labels if frame == "fixed" else case.moving_labels
    fixed, moving = Side(case.fixed, case.fixed_mask), Side(case.moving, case.moving_mask)
    reference, other = (fixed, moving) if frame == "fixed" else (moving, fixed)
    maps = distance_maps(labels, None, reach_mm=16.0)
    pyramid = [(reference.at(s), other.at(s)) for s in plan.spacings_mm]
    out = {}
    for label in ids:
        g = start[label] if frame == "fixed" else start[label].inverse()
        out[label] = one(label, maps, pyramid, g, plan, frame)
    return out


def centroid(bone):
    inside = bone.inside.nonzero().T.double()
    return bone.grid.world(inside).mean(1).numpy()


def one(label, maps, pyramid, g, plan, frame):
    bone = maps[label]
    near = [m for k, m in maps.items() if k != label]
    c = centroid(bone)
    candidates = [g]
    for n, (ref, other) in enumerate(pyramid):
        sp = float(ref.image.grid.spacing_mm.mean())
        p = patch(ref, bone, near, c, max(plan.shell_mm, K * sp if not n == len(pyramid) - 1 else 0), plan.points if n == len(pyramid) - 1 else 5000)
        last = n == len(pyramid) - 1
        if n == 0 and plan.search_mm > 0:
            candidates = candidates + search(ref, other, bone, near, c, g, plan)
        fits = [fit(p, other, q, plan, last) for q in candidates]
        fits.sort(key=lambda f: f.score)
        keep = {0: KEEP}.get(n, 1)
        candidates = [f.pose for f in fits[:keep]]
    f = fits[0]
    pose, cov = finished(f, p, frame)
    radius = float(p.offset.square().sum(0).mean().sqrt())
    scale = np.array([radius] * 3 + [1.0] * 3)
    worst = np.sqrt(np.linalg.eigvalsh(cov * np.outer(scale, scale))[-1])
    return BonePose(label, pose, cov, bool(worst <= plan.largest_sd_mm), f.score)


def finished(f, p, frame):
    radius = float(p.offset.square().sum(0).mean().sqrt())
    scale = np.array([radius] * 3 + [1.0] * 3)
    A = f.bread / np.outer(scale, scale)
    M = f.meat / np.outer(scale, scale)
    values, vectors = np.linalg.eigh(A)
    values = np.maximum(values, 1e-6 * max(values[-1], 1e-12))
    inv = vectors / values @ vectors.T
    cov = inv @ M @ inv / np.outer(scale, scale)
    pose = f.pose if frame == "fixed" else f.pose.inverse()
    if frame == "moving":
        turn = np.kron(np.eye(2), pose.inverse().matrix[:3, :3])
        cov = turn @ cov @ turn.T
    return pose, cov


def geman(square, scale):
    return scale / (scale + square)


def fit(p: Patch, other: Side, g: Rigid, plan: PosePlan, last: bool) -> Fit:
    radius = float(p.offset.square().sum(0).mean().sqrt())
    unit = np.array([1 / radius] * 3 + [1.0] * 3)
    offset = p.offset
    scale = SCALE
    for _ in range(plan.extractions):
        E = described(other.image, g, p.lattice)
        there = g(p.points)
        seen = other.sees(there)
        if float(seen.double().mean()) < LEAST_SEEN:
            return Fit(g, np.inf, np.zeros((6, 6)), np.zeros((6, 6)))
        now = taken(E, p.index)
        Js = jacobian((slopes(E, p.lattice, p.index) + p.slope) / 2, offset) * torch.as_tensor(unit, dtype=torch.float32)[:, None]
        r = now - p.features
        sq = r.square().mean(0)
        D = np.eye(4)
        lam = 1e-3
        cost = float((sq / (scale + sq))[seen].mean())
        first = cost
        total = 0
        for it in range(plan.iterations):
            w = torch.where(seen, geman(sq, scale) ** 2, 0.0)
            H = torch.einsum("can,cbn->ab", Js * w, Js).double().numpy()
            b = torch.einsum("can,cn->a", Js * w, r).double().numpy()
            moved = False
            for _try in range(3):
                s = -np.linalg.solve(H + lam * np.diag(np.diag(H)) + 1e-9 * np.trace(H) * np.eye(6), b)
                D2 = about(p.centre, s * unit) @ D
                r2 = sample(E, p.lattice, Rigid(D2)(p.points)) - p.features
                sq2 = r2.square().mean(0)
                c2 = float((sq2 / (scale + sq2))[seen].mean())
                if c2 < cost:
                    D, r, sq, cost, lam, moved = D2, r2, sq2, c2, lam / 3, True
                    break
                lam = max(lam, 1e-3) * 10
            if not moved or np.abs(s).max() < CONVERGED_MM:
                break
        g = Rigid(renorm(g.matrix @ D))
        size = np.sqrt((((Rigid(D)(p.points) - p.points) ** 2).sum(0)).mean().item())
        if size < CONVERGED_MM:
            break
    bread = meat = np.zeros((6, 6))
    if last:
        bread, meat = information(p, other, g, scale)
    return Fit(g, cost, bread, meat)


def information(p, other, g, scale):
    E = described(other.image, g, p.lattice)
    seen = other.sees(g(p.points))
    r = taken(E, p.index) - p.features
    sq = r.square().mean(0)
    w = torch.where(seen, geman(sq, scale) ** 2, 0.0)
    a = jacobian(slopes(E, p.lattice, p.index), p.offset).double()
    b = jacobian(p.slope, p.offset).double()
    cross = torch.einsum("can,cbn->ab", a * w, b)
    bread = ((cross + cross.T) / 2).numpy()
    score = torch.einsum("can,cn->an", (a + b) / 2 * w, r.double())
    cube = ((p.index * torch.as_tensor(p.lattice.spacing_mm)[:, None]) / BLOCK_MM).floor().long()
    flat = (cube[0] * 1000 + cube[1]) * 1000 + cube[2]
    _, block = flat.unique(return_inverse=True)
    sums = torch.zeros(6, int(block.max()) + 1, dtype=torch.float64).index_add_(1, block, score)
    return bread, (sums @ sums.T).numpy()


def renorm(m):
    u, _, vt = np.linalg.svd(m[:3, :3])
    m = m.copy()
    m[:3, :3] = u @ vt
    return m


def turns(angle):
    yield np.zeros(3)
    a = np.radians(angle)
    for d in range(3):
        for s in (-1, 1):
            v = np.zeros(3)
            v[d] = s * a
            yield v
    for s in np.ndindex(2, 2, 2):
        yield (np.array(s) * 2 - 1) * a / np.sqrt(3) * 1.0


def search(ref, other, bone, near, c, g, plan, keep=3):
    step = float(ref.image.grid.spacing_mm.mean())
    reach = int(np.ceil(plan.search_mm / step))
    p = patch(ref, bone, near, c, max(plan.shell_mm, K * step), 400, extra=reach)
    shape = p.lattice.shape
    flat = (p.index[0] * shape[1] + p.index[1]) * shape[2] + p.index[2]
    r = torch.arange(-reach, reach + 1)
    shifts = torch.cartesian_prod(r, r, r)
    hop = (shifts[:, 0] * shape[1] + shifts[:, 1]) * shape[2] + shifts[:, 2]
    mm = torch.as_tensor(p.lattice.affine[:3, :3].copy()) @ shifts.T.double()
    found = []
    for turn in turns(plan.search_deg):
        base = Rigid(g.matrix @ about(p.centre, np.concatenate([turn, np.zeros(3)])))
        E = described(other.image, base, p.lattice)
        seen_all = other.sees(base(p.lattice.points(torch.float64).flatten(1)))
        at = flat[None] + hop[:, None]
        rows = E.flatten(1).T.contiguous()
        diff = rows.index_select(0, at.flatten()).unflatten(0, at.shape).sub_(p.features.T).square_().mean(-1)
        seen = seen_all[at].float()
        share = seen.mean(1)
        cost = ((diff / (diff + SCALE)) * seen).sum(1) / seen.sum(1).clamp(min=1)
        cost[share < 0.6] = np.inf
        vol = cost.reshape(1, 1, 2 * reach + 1, 2 * reach + 1, 2 * reach + 1)
        low = -torch.nn.functional.max_pool3d(-vol, 3, 1, 1)
        local = ((vol == low) & vol.isfinite()).flatten().nonzero()[:, 0]
        for k in local.tolist():
            # base(x + t): shift in the turned reference
            m = about(p.centre, np.concatenate([turn, np.zeros(3)])) @ about(p.centre, np.concatenate([np.zeros(3), mm[:, k].numpy()]))
            found.append((float(cost[k]), m))
    found.sort(key=lambda f: f[0])
    out = []
    for cost, m in found:
        if all(np.linalg.norm(m[:3, :3] @ c + m[:3, 3] - o[:3, :3] @ c - o[:3, 3]) > 1.5 * step for o in out):
            out.append(m)
        if len(out) == keep:
            break
    return [Rigid(renorm(g.matrix @ m)) for m in out]
