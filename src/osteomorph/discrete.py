"""A wide search without a start: which displacement of many fits best at each node, all nodes held together by smoothness.

The energy sum_k C(k, d_k) + smoothness(d) is not convex in d. With a second field z beside d, coupled by theta |d_k - z_k|^2,
each half is easy: d by looking at every displacement of a node, z by smoothing d; theta rises (Steinbruecker, Pock and Cremers,
2009; Heinrich, Papiez, Schnabel and Handels, 2014; Siebert, Hansen and Heinrich, 2021). A level may search both directions, and
make them each other's inverse.
"""

from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import conv1d, pad

from osteomorph import fields
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image
from osteomorph.measure import robust_fit
from osteomorph.plan import DiscreteLevel, DiscretePlan
from osteomorph.threads import spread
from osteomorph.transforms import Displacement

MOST_COSTS = 60_000_000
"""Nodes times displacements of one level; beyond that its lattice is made coarser, for memory (4 bytes each)."""

AGREEMENTS = 6
"""Steps in which the two directions are made each other's inverse."""

LEAST_NODES = 12
"""In a field of view, to fit a rigid motion to."""

TYPICAL = 4096
"""Nodes, evenly taken, that tell how much costs vary."""

PART = 256
"""Nodes whose displacements are looked at together, to stay in the cache."""


def discrete_field(
    fixed: Image,
    moving: Image,
    plan: DiscretePlan,
    fixed_weight: Image | None = None,
    moving_weight: Image | None = None,
    start: Displacement | None = None,
) -> Displacement:
    """u in mm on a coarse grid, fixed mm -> fixed mm, so that moving(x + u(x)) has the features of fixed(x).

    fixed, moving: the same C channels of features, on any grids of one world in RAS mm (the moving side already under its rigid
    start). Compared by their mean squared difference, so channels ought to be of one scale; none needs to be of a certain one.
    fixed_weight, moving_weight: one channel from 0 (no say) to 1 on any grid; beyond an image's field of view it has none.
    plan: levels, coarse to fine; the largest displacement found is the sum of their reaches along each array axis of ``fixed``.
    start: a field to begin from, by default no motion. It adds to what is found.

    Features are sampled linearly through the field of the level before, averaged where a level is coarser than they are. A
    description that looks along array axes (MIND-SSC) does not turn with the field: describe the moved image anew between two
    levels (`discrete_step`) where rotations are large. Raises ValueError where the images' channels differ.
    """
    found = start
    for level in plan.levels:
        found = discrete_step(fixed, moving, level, plan, fixed_weight, moving_weight, found)
        if level.rigid:
            found = rigid_part(found, moving.grid, fixed_weight)
    if found is None:
        return Displacement(torch.zeros(3, 1, 1, 1), fixed.grid.resampled(fixed.grid.size_mm))
    return found


def discrete_step(
    fixed: Image,
    moving: Image,
    level: DiscreteLevel,
    plan: DiscretePlan,
    fixed_weight: Image | None = None,
    moving_weight: Image | None = None,
    start: Displacement | None = None,
) -> Displacement:
    """One level of `discrete_field`: the field after the start, or from no motion."""
    if fixed.data.shape[0] != moving.data.shape[0]:
        raise ValueError(f"Images of {fixed.data.shape[0]} and {moving.data.shape[0]} channels cannot be compared.")
    lattice = _lattice(fixed.grid, level)
    reach = np.ceil(level.reach_mm / lattice.spacing_mm - 1e-6).astype(int)
    shifts = _shifts(reach)
    wide = lattice.padded((int(reach[0]), int(reach[1]), int(reach[2])))
    given = ((fixed, fixed_weight, None), (moving, moving_weight, start))
    one, other = spread(lambda side: _Side(*_seen(side[0], side[1], wide, side[2]), level.stride, reach), given)
    nodes = lattice.strided(level.stride, one.offset)
    steps = torch.as_tensor(lattice.affine[:3, :3].copy()).float()
    ways = ((one, other), (other, one)) if level.both_ways else ((one, other),)
    forth, *back = (torch.tensordot(steps, found, 1) for found in spread(lambda sides: _coupled(*sides, shifts, plan), ways))
    for inverse in back:
        for _ in range(AGREEMENTS):
            forth, inverse = _halfway(forth, inverse, nodes), _halfway(inverse, forth, nodes)
    if start is None:
        return Displacement(forth, nodes)
    return followed(Displacement(forth, nodes), start)


def followed(first: Displacement, second: Displacement) -> Displacement:
    """second(first(x)) on the grid of the first."""
    points = (first.grid.points() + first.vectors).flatten(1)
    then = sample(second.vectors, second.grid, points).unflatten(1, first.grid.shape)
    return Displacement(first.vectors + then, first.grid)


def rigid_part(field: Displacement, seen: Grid, weight: Image | None = None) -> Displacement:
    """The rigid motion nearest to a field where its weight is above a half and it leads into a field of view, on its grid."""
    points = field.grid.points(torch.float64).flatten(1)
    there = field(points)
    inside = seen.contains(there)
    if weight is not None:
        inside &= sample(weight.data[:1].float(), weight.grid, points, outside=0.0)[0] > 0.5
    if int(inside.sum()) < LEAST_NODES:
        return field
    motion = robust_fit(points[:, inside], there[:, inside])
    return Displacement((motion(points) - points).float().unflatten(1, field.grid.shape), field.grid)


def _lattice(grid: Grid, level: DiscreteLevel) -> Grid:
    """Isotropic, along the axes of a grid; coarser than asked for where the costs would not fit."""
    spacing = level.spacing_mm
    while True:
        lattice = grid.resampled(np.minimum(spacing, grid.size_mm))
        reach = np.ceil(level.reach_mm / lattice.spacing_mm - 1e-6)
        if lattice.voxels / level.stride**3 * np.prod(2 * reach + 1) <= MOST_COSTS or spacing > level.reach_mm:
            return lattice
        spacing *= 1.1


def _shifts(reach: np.ndarray) -> Int[Tensor, "k 3"]:
    """Displacements in voxels of the lattice, the last axis fastest."""
    axes = [torch.arange(-int(r), int(r) + 1) for r in reach]
    return torch.cartesian_prod(*axes)


def _seen(
    image: Image, weight: Image | None, onto: Grid, field: Displacement | None
) -> tuple[Float[Tensor, "c i j k"], Float[Tensor, "1 i j k"]]:
    """An image through a field on a lattice, in memory of its own, and how much it has to say there."""
    points = onto.points().flatten(1)
    if field is not None:
        points = field(points)
    width = np.maximum(1, np.round(onto.spacing_mm / image.grid.spacing_mm)).astype(int)
    data = _averaged(image.data.float(), [int(w) + 1 - int(w) % 2 if w > 1 else 1 for w in width])
    inner, outer = (onto.part(image.grid), image.grid.part(onto)) if field is None else (None, None)
    if outer is not None:  # the same voxels
        values = data[(slice(None), *outer)].clone(memory_format=torch.contiguous_format)
    elif inner is None:
        values = sample(data, image.grid, points).unflatten(1, onto.shape).contiguous()
    else:  # the same voxels, and the border's values around them
        ends = [(s.start, n - s.stop) for s, n in zip(inner, onto.shape, strict=True)]
        values = pad(data[None], [n for end in reversed(ends) for n in end], mode="replicate")[0]
    share = image.grid.contains(points).float()
    if weight is not None:
        share = share * sample(weight.data[:1].float(), weight.grid, points, outside=0.0)[0]
    return values, share.unflatten(0, onto.shape)[None]


def _averaged(data: Float[Tensor, "c i j k"], width: list[int]) -> Float[Tensor, "c i j k"]:
    """Over boxes of an odd number of voxels a side about each one, less what lies outside."""
    for axis, w in enumerate(width, 1):
        if w > 1:
            n = data.shape[axis]
            count = _summed(torch.ones(1, n), 1, w)[0]
            data = _summed(data, axis, w).div_(count.view([-1 if a == axis else 1 for a in range(4)]))
    return data


def _summed(data: Float[Tensor, "..."], axis: int, width: int) -> Float[Tensor, "..."]:
    """Over an odd number of voxels along an axis, those that there are."""
    n, total = data.shape[axis], data.clone()
    for step in range(1, min(width // 2, n - 1) + 1):
        for to, by in ((0, step), (step, 0)):
            total.narrow(axis, to, n - step).add_(data.narrow(axis, by, n - step))
    return total


def _boxes(data: Float[Tensor, "i j k"], width: int) -> Float[Tensor, "i j k"]:
    """Sums over boxes of an odd number of voxels a side about each one."""
    for axis in range(3) if width > 1 else ():
        data = _summed(data, axis, width)
    return data


@final
class _Side:
    """An image's features and weights as means about every voxel of the wide lattice.

    values: taken over, and averaged where they are. offset: the first node, in voxels of the inner lattice.
    """

    def __init__(self, values: Tensor, share: Tensor, stride: int, reach: np.ndarray) -> None:
        width = stride + 1 - stride % 2
        self.weight = _averaged(share, [width] * 3)[0]
        self.values = values
        says = _boxes(share[0], width).clamp_(min=1e-6)
        for channel in values:  # one at a time stays in the cache
            torch.div(_boxes(channel * share[0], width), says, out=channel)
        self.stride, self.reach = stride, [int(r) for r in reach]
        inner = [n - 2 * r for n, r in zip(share.shape[1:], self.reach, strict=True)]
        first = [(n - 1) % stride // 2 for n in inner]
        self.offset = (first[0], first[1], first[2])
        self.inner = inner
        self._phases: dict[tuple[int, ...], Tensor] = {}

    def values_at_nodes(self, shift: tuple[int, int, int]) -> Tensor:
        """Values at the nodes moved by a shift in voxels, read from copies that hold every stride-th voxel side by side."""
        starts = [first + r + s for first, r, s in zip(self.offset, self.reach, shift, strict=True)]
        phase = tuple(start % self.stride for start in starts)
        if phase not in self._phases:
            a, b, c = (slice(p, None, self.stride) for p in phase)
            self._phases[phase] = self.values[:, a, b, c].contiguous()
        sizes = [-(-(n - first) // self.stride) for first, n in zip(self.offset, self.inner, strict=True)]
        a, b, c = (slice(s // self.stride, s // self.stride + n) for s, n in zip(starts, sizes, strict=True))
        return self._phases[phase][:, a, b, c]

    def at_nodes(self, data: Tensor, shift: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
        """Values at the nodes moved by a shift in voxels."""
        parts = [
            slice(first + r + s, n + r + s, self.stride)
            for first, r, s, n in zip(self.offset, self.reach, shift, self.inner, strict=True)
        ]
        return data[..., parts[0], parts[1], parts[2]]


def _coupled(one: _Side, other: _Side, shifts: Int[Tensor, "k 3"], plan: DiscretePlan) -> Float[Tensor, "3 a b c"]:
    """The smooth field, in voxels of the lattice, of displacements from one image to the other."""
    costs = _costs(one, other, shifts)
    weight = one.at_nodes(one.weight)
    shape = weight.shape
    way = shifts.float()
    smooth = torch.zeros(3, *shape)
    for n, theta in enumerate(plan.coupling):
        last = n == len(plan.coupling) - 1
        chosen = _nearest_best(costs, smooth.flatten(1), way, theta, shifts if last else None)
        smooth = _smoothed(chosen.unflatten(1, shape), weight, plan.smooth_nodes)
    return smooth


def _costs(one: _Side, other: _Side, shifts: Int[Tensor, "k 3"]) -> Float[Tensor, "n k"]:
    """Mean squared difference of features for each node and displacement, in units of how much it varies at a typical node.

    A displacement that leaves the other image costs what the node's others do on average.
    """
    here = one.at_nodes(one.values).contiguous()
    weight = one.at_nodes(one.weight).flatten()
    costs = torch.empty(len(shifts), weight.numel())
    partly = float(other.weight.min()) < 1
    difference = torch.empty_like(here)
    total, share = torch.zeros_like(weight), torch.zeros_like(weight)
    for k, (a, b, c) in enumerate(shifts.tolist()):
        torch.sub(other.values_at_nodes((a, b, c)), here, out=difference)
        costs[k] = difference.square_().mean(0).flatten()
        if partly:
            seen = other.at_nodes(other.weight, (a, b, c)).flatten()
            total.addcmul_(costs[k], seen)
            share += seen
    if partly:
        typical = total / share.clamp_(min=1e-6)
        for k, (a, b, c) in enumerate(shifts.tolist()):
            costs[k].sub_(typical).mul_(other.at_nodes(other.weight, (a, b, c)).flatten())
    costs = costs.T.contiguous()
    told = (weight > 0.5).nonzero()[:, 0]
    some = told[:: -(-len(told) // TYPICAL)] if len(told) else told
    scale = float(costs[some].std(1).median()) if len(some) else 0.0
    return costs.mul_(weight[:, None] / max(scale, 1e-12))


def _nearest_best(
    costs: Float[Tensor, "n k"], smooth: Float[Tensor, "3 n"], way: Float[Tensor, "k 3"], theta: float, fine: Tensor | None
) -> Float[Tensor, "3 n"]:
    """Per node the displacement d that minimises costs + theta |d - smooth|^2; with ``fine`` between displacements too."""
    terms = torch.cat([way, (way * way).sum(1, keepdim=True)], 1).T.contiguous()
    near = torch.cat([-2 * theta * smooth, torch.full_like(smooth[:1], theta)]).T.contiguous()
    out = torch.empty_like(smooth)
    for first in range(0, costs.shape[0], PART):
        part = slice(first, first + PART)
        energy = torch.addmm(costs[part], near[part], terms)
        best = torch.from_numpy(energy.numpy().argmin(1))  # torch's own takes ten times as long
        chosen = way[best].T
        out[:, part] = chosen if fine is None else chosen + _between(energy, best, fine)
    return out


def _between(energy: Float[Tensor, "n k"], best: Int[Tensor, " n"], shifts: Int[Tensor, "k 3"]) -> Float[Tensor, "3 n"]:
    """Where parabolas through a minimum and its two neighbours along each axis are least, within half a voxel."""
    reach = shifts.amax(0)
    size = 2 * reach + 1
    step = torch.stack([size[1] * size[2], size[2], torch.ones_like(size[2])])
    at = shifts[best]
    rows = torch.arange(len(best))
    middle = energy[rows, best]
    out = []
    for axis in range(3):
        inner: Bool[Tensor, " n"] = at[:, axis].abs() < reach[axis]
        move = torch.where(inner, step[axis], 0)
        low, high = energy[rows, best - move], energy[rows, best + move]
        curve = low - 2 * middle + high
        out.append(torch.where(inner & (curve > 1e-9), (low - high) / (2 * curve.clamp(min=1e-9)), 0.0).clamp(-0.5, 0.5))
    return torch.stack(out)


def _smoothed(vectors: Float[Tensor, "3 a b c"], weight: Float[Tensor, "a b c"], sigma: float) -> Float[Tensor, "3 a b c"]:
    """Weighted means by a Gaussian of ``sigma`` nodes; a node without a say takes that of those around it."""
    if sigma == 0:
        return vectors
    say = weight.clamp(min=1e-3)
    both = torch.cat([vectors * say, say[None]])
    width = int(np.ceil(2.5 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-width, width + 1) / sigma) ** 2)
    for axis in (1, 2, 3):
        rows = both.movedim(axis, -1)
        flat = pad(rows.reshape(-1, 1, rows.shape[-1]), (width, width))
        both = conv1d(flat, kernel[None, None]).reshape(rows.shape).movedim(-1, axis)
    return both[:3] / both[3:]


def _halfway(one: Float[Tensor, "3 a b c"], other: Float[Tensor, "3 a b c"], grid: Grid) -> Float[Tensor, "3 a b c"]:
    """Between a field and the inverse that the other direction says it has."""
    return (one - (fields.compose(other, one, grid) - one)) / 2
