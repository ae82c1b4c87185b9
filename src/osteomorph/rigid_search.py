"""Many rigid poses at once, each climbing the mutual information of two images by gradient."""

from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from osteomorph.geometry import Grid, sample
from osteomorph.image import Image
from osteomorph.similarity import mutual_information

LEVELS = 128
"""Nodes of the fine histogram."""


@final
@dataclass(frozen=True, eq=False)
class Pair:
    """Two images at one resolution, and how alike they are under rigid poses.

    Weights are 0 to 1, by which values count; bodies are 1 in the patient and 0 in air. On the grid of their image.
    """

    fixed: Image
    moving: Image
    fixed_body: Image
    moving_body: Image
    fixed_weight: Image
    moving_weight: Image
    bins: int
    channels: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        channels = torch.cat([self.moving.data[:1], self.moving_body.data, self.moving_weight.data])
        object.__setattr__(self, "channels", channels)

    @property
    def spacing_mm(self) -> float:
        return float(self.fixed.grid.spacing_mm.mean())

    @property
    def smaller_body_mm3(self) -> float:
        sides = ((self.fixed_body.data, self.fixed.grid), (self.moving_body.data, self.moving.grid))
        return min(float(body.sum()) * float(grid.spacing_mm.prod()) for body, grid in sides)

    def alike(
        self, matrices: Float[Tensor, "b 4 4"], stride: int = 1, offset: tuple[int, int, int] = (0, 0, 0)
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Mutual information in nats where the fields of view overlap, and the share of the smaller body that lies in the other.

        stride, offset: the lattice of the fixed image that is looked at.
        """
        lattice = self.fixed.grid.strided(stride, offset)
        points = lattice.points().flatten(1)
        moved = (matrices[:, :3, :3] @ points + matrices[:, :3, 3:]).transpose(0, 1)
        values = sample(self.channels, self.moving.grid, moved.flatten(1)).unflatten(-1, moved.shape[1:])
        inside = self.moving.grid.contains(moved.detach().transpose(0, 1)).float()
        fixed, fixed_body, fixed_weight = (
            on_lattice(image.data[:1], stride, offset) for image in (self.fixed, self.fixed_body, self.fixed_weight)
        )
        weight = inside * fixed_weight * values[2].detach()
        information = mutual_information(fixed.expand_as(values[0]), values[0], weight, bins=self.bins, levels=LEVELS)
        volume = float(lattice.spacing_mm.prod())
        overlap = (fixed_body * values[1] * inside).sum(-1) * volume / max(self.smaller_body_mm3, volume)
        return information, overlap


def on_lattice(data: Float[Tensor, "1 i j k"], stride: int, offset: tuple[int, int, int]) -> Float[Tensor, "1 n"]:
    a, b, c = offset
    return data[:, a::stride, b::stride, c::stride].flatten(1)


def about(turns: Float[Tensor, "b 3"], shifts_mm: Float[Tensor, "b 3"], centre_mm: Float[Tensor, " 3"]) -> Float[Tensor, "b 4 4"]:
    """Turns (rotation vectors in radians) about a centre, then shifts."""
    zero = torch.zeros_like(turns[:, 0])
    x, y, z = turns.unbind(1)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).unflatten(1, (3, 3))
    rotation = torch.linalg.matrix_exp(skew)
    column = centre_mm + shifts_mm - (rotation @ centre_mm[:, None])[..., 0]
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=turns.dtype).expand(len(turns), 1, 4)
    return torch.cat([torch.cat([rotation, column[..., None]], 2), last], 1)


def climb(
    pair: Pair, matrices: Float[Tensor, "b 4 4"], steps: int, step_mm: float, samples: int, with_overlap: bool
) -> Float[Tensor, "b 4 4"]:
    """Poses after ``steps`` of Adam on mutual information, with ``with_overlap`` times the overlap of the bodies.

    step_mm: length of the first steps, decaying to a tenth. A turn counts as the shift it makes at the body's radius.
    samples: points of the fixed image a step, on a lattice whose offset changes from step to step.
    """
    centre, radius_mm = middle(pair.fixed_body)
    stride = max(1, round((pair.fixed.grid.voxels / samples) ** (1 / 3)))
    offsets = [(a % n, b % m, c % k) for a, b, c in _cube(stride) for n, m, k in [pair.fixed.grid.shape]]
    free = torch.zeros(len(matrices), 6, requires_grad=True)
    optimiser = torch.optim.Adam([free], lr=step_mm, betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: 0.1 ** (k / max(1, steps - 1)))
    for k in range(steps):
        optimiser.zero_grad()
        information, overlap = pair.alike(matrices @ about(free[:, :3] / radius_mm, free[:, 3:], centre), stride, offsets[k % len(offsets)])
        score = information * overlap if with_overlap else information
        (-score.sum()).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return matrices @ about(free[:, :3] / radius_mm, free[:, 3:], centre)


def _cube(stride: int) -> list[tuple[int, int, int]]:
    """All offsets of a lattice, far ones after each other."""
    order = [(a, b, c) for a in range(stride) for b in range(stride) for c in range(stride)]
    jump = next((j for j in range(len(order) // 2 + 1, len(order)) if torch.gcd(torch.tensor(j), torch.tensor(len(order))) == 1), 1)
    return [order[(k * jump) % len(order)] for k in range(len(order))]


def middle(body: Image) -> tuple[Float[Tensor, " 3"], float]:
    """Centre of mass in world mm and root mean square distance from it."""
    points = body.grid.points().flatten(1)
    weight = body.data.flatten() / body.data.sum().clamp(min=1e-6)
    centre = points @ weight
    return centre, float(((points - centre[:, None]).square().sum(0) @ weight).sqrt().clamp(min=1.0))


def pose_grid(grid: Grid) -> Grid:
    return grid
