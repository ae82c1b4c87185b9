"""How alike two images are: mutual information, Dice, MIND-SSC. Masked by weight, never by multiplying an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from osteomorph.geometry import Grid
from osteomorph.image import Image
from osteomorph.objective import Alignment, Term

ParzenKernel = Literal["gaussian", "bspline"]

CHUNK = 1 << 14
"""Values binned at a time on a CPU: they stay in its cache, and torch starts no threads for so few, which would cost more."""

EPSILON = 1e-7
"""Added to the sum of two masks in Dice."""


# -- mutual information -----------------------------------------------------------------------------------------------
def mutual_information(
    fixed: Float[Tensor, "*b n"],
    moved: Float[Tensor, "*b n"],
    weight: Float[Tensor, "*b n"] | None = None,
    bins: int = 24,
    kernel: ParzenKernel = "gaussian",
    levels: int = 512,
) -> Float[Tensor, "*b"]:
    """Mutual information in nats, sum of P log(P / (p_fixed p_moved)), from a Parzen-windowed joint histogram.

    Values are clamped to [0, 1]. ``fixed`` is rounded to one of ``levels`` nodes and ``moved`` is shared out between its two
    neighbouring nodes, so that the histogram is P = B^T H B / sum(weight), with H the fine histogram of levels x levels and
    B the kernel at the nodes: O(n), whatever the kernel. The gradient with respect to ``moved`` is the exact derivative of this
    estimator, 0 where a value is clamped. Neither ``fixed`` nor ``weight`` gets one.

    weight: how much each pair of values counts; by default all alike. A pair of weight 0 is as good as absent.
    bins: Parzen windows per image. Those of ``"gaussian"`` have a standard deviation of half the distance of their centres
        and sum to 1 at every value (Guo, 2019, eq. 3.1-3.5; also DeepReg and MONAI); those of ``"bspline"`` are cubic
        (Mattes et al., 2003), with a bin to spare at either end.

    Raises ValueError where ``fixed`` or ``weight`` requires a gradient.
    """
    if fixed.requires_grad:
        raise ValueError("mutual_information has a gradient for its second image alone; swap the two, or detach fixed.")
    if weight is not None and weight.requires_grad:
        raise ValueError("mutual_information has no gradient for its weight; detach it.")
    if bins < 4 or levels < bins:
        raise ValueError(f"mutual_information needs at least 4 bins and as many levels as bins, not {bins} and {levels}.")
    table = parzen_table(bins, kernel, levels).to(moved.device)
    rows = [
        _MutualInformation.apply(f, m, w, table)
        for f, m, w in zip(
            fixed.reshape(-1, fixed.shape[-1]),
            moved.reshape(-1, moved.shape[-1]),
            [None] * moved.shape[:-1].numel() if weight is None else weight.reshape(-1, weight.shape[-1]),
            strict=True,
        )
    ]
    return torch.stack(rows).reshape(moved.shape[:-1])


@lru_cache(maxsize=16)
def parzen_table(bins: int, kernel: ParzenKernel, levels: int) -> Float[Tensor, "levels bins"]:
    """Weight of every bin at every node of [0, 1]; each row sums to 1. float64."""
    nodes = torch.linspace(0, 1, levels, dtype=torch.float64)[:, None]
    centres = torch.arange(bins, dtype=torch.float64)
    if kernel == "gaussian":
        distance = (nodes * (bins - 1) - centres) / 0.5
        table = torch.exp(-0.5 * distance**2)
    else:
        distance = (1 + nodes * (bins - 3) - centres).abs()
        near, far = (4 - 6 * distance**2 + 3 * distance**3) / 6, (2 - distance).clamp(min=0) ** 3 / 6
        table = torch.where(distance < 1, near, far)
    return table / table.sum(1, keepdim=True)


class _MutualInformation(torch.autograd.Function):
    """One pass that scatters into the fine histogram, one that gathers the derivative from a table."""

    @staticmethod
    def forward(ctx: Any, fixed: Tensor, moved: Tensor, weight: Tensor | None, kernel: Tensor) -> Tensor:
        levels = len(kernel)
        wants_gradient = ctx.needs_input_grad[1]
        # cell = row of the fixed node and column of the moved node below; the last column, never below another, marks
        # clamped values, whose derivative is 0
        cells = torch.empty_like(moved, dtype=torch.int32) if wants_gradient else None
        lower = torch.zeros(levels * levels, dtype=torch.float64, device=moved.device)
        upper = torch.zeros_like(lower)
        step = _chunk(moved)
        ones = torch.ones(min(step, len(moved)), dtype=torch.float64, device=moved.device)
        for start in range(0, len(moved), step):
            part = slice(start, start + step)
            row = (fixed[part] * (levels - 1)).clamp_(0, levels - 1).add_(0.5).to(torch.int32).mul_(levels)
            at = moved[part] * (levels - 1)
            inside = at.clamp(0, levels - 1)
            below = inside.to(torch.int32).clamp_(max=levels - 2)
            share = inside.sub_(below).double()
            cell = row + below
            if cells is not None:
                clamped = (at < 0) | (at > levels - 1)
                cells[part] = torch.where(clamped, row.add_(levels - 1), cell)
            heavy = ones[: len(cell)] if weight is None else weight[part].double()
            lower.index_add_(0, cell, heavy)
            upper.index_add_(0, cell, share if weight is None else share.mul_(heavy))
        total = lower.sum().clamp(min=torch.finfo(torch.float64).tiny)
        fine = lower.sub_(upper)
        fine[1:] += upper[:-1]
        joint = kernel.T @ fine.view(levels, levels) @ kernel / total
        # logs one by one: far from every value the kernel's tails are so thin that products of them would be 0
        logs = joint.log() - joint.sum(1, keepdim=True).log() - joint.sum(0, keepdim=True).log()
        logs = torch.where(joint > 0, logs, 0.0)
        if cells is not None:
            slope = (kernel[1:] - kernel[:-1]) * (levels - 1)
            derivative = torch.zeros(levels, levels, dtype=torch.float64, device=moved.device)
            derivative[:, :-1] = kernel @ logs @ slope.T / total
            ctx.save_for_backward(cells, derivative.to(moved.dtype), weight)
        return (joint * logs).sum().to(moved.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        cells, derivative, weight = ctx.saved_tensors
        derivative = (derivative * gradient).flatten()
        out = torch.empty(cells.shape, dtype=derivative.dtype, device=cells.device)
        step = _chunk(cells)
        for start in range(0, len(cells), step):
            part = slice(start, start + step)
            torch.index_select(derivative, 0, cells[part], out=out[part])
            if weight is not None:
                out[part] *= weight[part]
        return None, out, None, None


def _chunk(values: Tensor) -> int:
    return CHUNK if values.device.type == "cpu" else max(1, len(values))


@final
@dataclass(frozen=True)
class MutualInformation(Term):
    """-MI of the fixed and the moved image, in nats; least where one tells most about the other. Intensities in [0, 1]."""

    bins: int = 24
    kernel: ParzenKernel = "gaussian"
    levels: int = 512
    """Of the fine histogram."""

    def __call__(self, alignment: Alignment) -> Float[Tensor, ""]:
        fixed, moved = alignment.fixed_values()[0], alignment.moved_values()[0]
        return -mutual_information(fixed.detach(), moved, alignment.weight, self.bins, self.kernel, self.levels)


# -- Dice -------------------------------------------------------------------------------------------------------------
def dice(
    fixed: Float[Tensor, "*b c n"],
    moved: Float[Tensor, "*b c n"],
    weight: Float[Tensor, "*b n"] | None = None,
    eps: float = EPSILON,
) -> Float[Tensor, "*b"]:
    """Mean over channels of 2 |A and B| / (|A| + |B| + eps), with A and B soft (products and sums): 1 for the same labels.

    fixed, moved: one channel per label, values in [0, 1].
    """
    both, either = fixed * moved, fixed + moved
    if weight is not None:
        both, either = both * weight.unsqueeze(-2), either * weight.unsqueeze(-2)
    return (2 * both.sum(-1) / (either.sum(-1) + eps)).mean(-1)


@final
@dataclass(frozen=True)
class Dice(Term):
    """1 - mean Dice over the labels that both images hold, no unit; least where they coincide. 0, a constant, without any."""

    def __call__(self, alignment: Alignment) -> Float[Tensor, ""]:
        vectors = alignment.warp.vectors
        if not alignment.shared_labels:
            return torch.zeros((), dtype=vectors.dtype, device=vectors.device)
        near = alignment.near_labels  # a few percent of the volume; the sums over the rest are known
        fixed, moved = alignment.fixed_onehot(near), alignment.moved_onehot(near)
        either = alignment.fixed_onehot().sum(-1) + moved.sum(-1)
        return 1 - (2 * (fixed * moved).sum(-1) / (either + EPSILON)).mean()


# -- MIND -------------------------------------------------------------------------------------------------------------
Step = tuple[int, int, int]
Pair = tuple[Step, Step]

NEIGHBOURS: tuple[Step, ...] = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
PAIRS: tuple[Pair, ...] = tuple((a, b) for a, b in combinations(NEIGHBOURS, 2) if np.dot(a, b) == 0)
"""Neighbours at right angles to each other: one channel of MIND-SSC each."""

VOXELS_CACHED = 1 << 16
"""Voxels described at a time, so that their channels stay in the cache."""

VOXELS_AT_ONCE = 1 << 20
"""Squared differences that are summed in one operation, as long as one step between neighbours has no more."""


def mind_ssc(
    data: Float[Tensor, "1 i j k"],
    radius: int = 1,
    dilation: int = 2,
    pairs: tuple[Pair, ...] = PAIRS,
    dtype: torch.dtype | None = None,
    with_margin: bool = False,
    by_voxel: bool = True,
) -> Float[Tensor, "12 a b c"]:
    """Self-similarity context, exp(-(D - min D) / V): what a voxel's surroundings look like, whatever the contrast.

    D: squared differences of two of the six neighbours at ``dilation`` voxels, averaged over a patch of (2 radius + 1)^3 with
    the image's border repeated; V: their mean over the 12 pairs, kept between 0.001 and 1000 times its own mean over the image
    (Heinrich et al., MICCAI 2013). Carries no gradient.

    pairs: the two neighbours of every channel, as steps along the array axes. dtype: of what is kept, the image's by default.
    with_margin: the outer radius + dilation voxels are there to be looked at and not described, so that no border is repeated.
    by_voxel: whether a voxel's channels lie side by side in memory, as `sample` likes them, or a channel's voxels.
    """
    with torch.no_grad():
        margin = radius + dilation
        grown = data[0] if with_margin else _repeat_border(data[0], margin)
        shape = torch.Size(n - 2 * margin for n in grown.shape)
        distances = _patch_distances(grown, shape, radius, dilation, pairs)
        planes = max(1, VOXELS_CACHED // (shape[1] * shape[2]))
        slabs = [slice(start, start + planes) for start in range(0, shape[0], planes)]
        least, mean = data.new_empty(shape), data.new_empty(shape)
        for slab in slabs:
            here = torch.stack([distance[slab] for distance in distances])
            torch.amin(here, 0, out=least[slab])
            torch.mean(here, 0, out=mean[slab])
        scale = _bounded(mean.sub_(least)).neg_()
        order = (*shape, len(pairs)) if by_voxel else (len(pairs), *shape)
        out = torch.empty(order, dtype=dtype or data.dtype, device=data.device)
        out = out.permute(3, 0, 1, 2) if by_voxel else out
        for slab in slabs:
            if len(slabs) > 1:
                here = torch.stack([distance[slab] for distance in distances])
            out[:, slab] = here.sub_(least[slab]).div_(scale[slab]).exp_()
    return out


def _patch_distances(
    grown: Float[Tensor, "i j k"], shape: Sequence[int], radius: int, dilation: int, pairs: tuple[Pair, ...]
) -> list[Tensor]:
    """Per pair the sum of squared differences over a patch, of the inner voxels of a volume with a margin. Pairs the same step
    apart are views of one volume.

    Of a small volume all steps are taken at once: threads that describe one each would wait for each other at every operation.
    """
    size = [n + 2 * radius + dilation for n in shape]
    forwards = [(a, b) if b > a else (b, a) for a, b in pairs]
    apart = [(b[0] - a[0], b[1] - a[1], b[2] - a[2]) for a, b in forwards]
    lows = {step: [dilation * (1 if s == 0 else max(0, -s)) for s in step] for step in apart}
    sums: dict[Step, Tensor] = {}
    together = max(1, VOXELS_AT_ONCE // grown.numel())
    for first in range(0, len(lows), together):
        steps = list(lows)[first : first + together]
        differences = grown.new_empty(len(steps), *size)
        for step, difference in zip(steps, differences, strict=True):
            there = [low + dilation * s for low, s in zip(lows[step], step, strict=True)]
            torch.sub(_box(grown, lows[step], size), _box(grown, there, size), out=difference)
        sums.update(zip(steps, _box_sum(differences.square_(), radius), strict=True))
    out = []
    for (a, _), step in zip(forwards, apart, strict=True):
        corner = [dilation * (1 + f) - low for f, low in zip(a, lows[step], strict=True)]
        out.append(_box(sums[step], corner, shape))
    return out


def _box(volume: Tensor, corner: Sequence[int], size: Sequence[int]) -> Tensor:
    return volume[tuple(slice(low, low + n) for low, n in zip(corner, size, strict=True))]


def _bounded(mean: Tensor) -> Tensor:
    """In place."""
    typical = float(mean.mean().clamp(min=torch.finfo(mean.dtype).tiny * 1e6))  # an image without contrast has no distances
    return mean.clamp_(typical * 1e-3, typical * 1e3)


def _repeat_border(volume: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(volume[None, None], (width,) * 6, mode="replicate")[0, 0]


def _box_sum(volume: Float[Tensor, "n i j k"], radius: int) -> Float[Tensor, "n a b c"]:
    """Sums over cubes of 2 radius + 1 voxels a side, where they fit, one axis after the other; MIND minds no scale."""
    for axis in (1, 2, 3):
        n = volume.shape[axis] - 2 * radius
        total = volume.narrow(axis, 0, n)
        for shift in range(1, 2 * radius + 1):
            other = volume.narrow(axis, shift, n)
            total = total + other if shift == 1 else total.add_(other)
        volume = total
    return volume


def pairs_as_seen_from(reference: Grid, grid: Grid) -> tuple[Pair, ...]:
    """:data:`PAIRS` of ``reference`` as steps along the axes of ``grid``, each step to the nearest axis.

    Axes that are swapped or reversed cost nothing; what is left of a rotation, 45 degrees at most, stays.
    """
    turn = grid.direction.T @ reference.direction
    columns = np.arange(3)
    axes = np.array(max(permutations(range(3)), key=lambda order: np.abs(turn[list(order), columns]).sum()))
    nearest = np.zeros((3, 3), dtype=int)
    nearest[axes, columns] = np.sign(turn[axes, columns])

    def seen(step: Step) -> Step:
        i, j, k = (nearest @ step).tolist()
        return (i, j, k)

    return tuple((seen(a), seen(b)) for a, b in PAIRS)


@final
@dataclass(frozen=True)
class MindSsc:
    """Image -> its MIND-SSC channels. Two of the same settings are equal, so that an image is described once."""

    radius: int = 1
    dilation: int = 2
    pairs: tuple[Pair, ...] = PAIRS

    def __call__(self, image: Image) -> Image:
        kept = torch.float16 if image.data.dtype == torch.float32 else None  # to 2e-4: half the memory that is read at random
        return image.with_data(mind_ssc(image.data[:1], self.radius, self.dilation, self.pairs, kept))


@final
@dataclass(frozen=True)
class Mind(Term):
    """Mean squared difference of MIND-SSC channels, no unit; least where local structure coincides.

    The moving image is described before it is moved, along those of its array axes that are nearest to the fixed image's.
    radius and dilation are in voxels of each image; both ought to have the same isotropic spacing.
    """

    radius: int = 1
    dilation: int = 2

    def __call__(self, alignment: Alignment) -> Float[Tensor, ""]:
        case = alignment.case
        fixed = alignment.fixed_values(MindSsc(self.radius, self.dilation))
        pairs = pairs_as_seen_from(case.fixed.grid, case.moving.grid)
        squared = (alignment.moved_values(MindSsc(self.radius, self.dilation, pairs)) - fixed).square().mean(0)
        weight = alignment.weight.to(squared.dtype)
        return (squared * weight).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
