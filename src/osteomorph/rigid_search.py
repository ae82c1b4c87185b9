"""Many rigid poses at once, each climbing the mutual information of two images by its gradient."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from osteomorph.descent import Adam
from osteomorph.geometry import sample
from osteomorph.image import Image
from osteomorph.similarity import mutual_information

LEVELS = 128
"""Nodes of the fine histogram that mutual information is computed from."""


@final
@dataclass(frozen=True, eq=False)
class Pair:
    """Two images at one resolution; bodies (1 in the patient, 0 in air) and weights lie on the grid of their image."""

    fixed: Image
    moving: Image
    fixed_body: Image
    moving_body: Image
    fixed_weight: Image
    moving_weight: Image
    bins: int

    @property
    def spacing_mm(self) -> float:
        return float(self.fixed.grid.spacing_mm.mean())

    @cached_property
    def points(self) -> Float[Tensor, "3 n"]:
        """World mm of the fixed voxels."""
        return self.fixed.grid.points().flatten(1)

    @cached_property
    def fixed_values(self) -> Float[Tensor, "3 n"]:
        """Intensity, body and weight of the fixed voxels."""
        return torch.cat([self.fixed.data[:1], self.fixed_body.data, self.fixed_weight.data]).flatten(1)

    @cached_property
    def moving_channels(self) -> Float[Tensor, "3 i j k"]:
        return torch.cat([self.moving.data[:1], self.moving_body.data, self.moving_weight.data])

    @cached_property
    def smaller_body(self) -> float:
        """Share of the fixed voxels that the smaller body would fill."""
        voxels = float(self.moving.grid.spacing_mm.prod() / self.fixed.grid.spacing_mm.prod())
        smaller = min(float(self.fixed_body.data.sum()), float(self.moving_body.data.sum()) * voxels)
        return max(smaller, 1.0) / self.fixed.grid.voxels

    def alike(
        self, matrices: Float[Tensor, "b 4 4"], chosen: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Mutual information in nats where both have data, and the share of the smaller body that lies in the other.

        chosen: the fixed voxels that are looked at.
        """
        fixed, body, weight = self.fixed_values[:, chosen]
        moved = matrices[:, :3, :3] @ self.points[:, chosen] + matrices[:, :3, 3:]
        values = sample(self.moving_channels, self.moving.grid, moved.transpose(0, 1).flatten(1)).unflatten(
            -1, (len(moved), -1)
        )
        inside = self.moving.grid.contains(moved.detach()).to(weight.dtype)
        counted = inside * weight * values[2].detach()
        information = mutual_information(fixed.expand_as(values[0]), values[0], counted, bins=self.bins, levels=LEVELS)
        return information, (body * values[1] * inside).mean(-1) / self.smaller_body

    def choose(self, samples: int, generator: torch.Generator) -> Int[Tensor, " m"]:
        """That many fixed voxels at random, or all."""
        if samples >= self.points.shape[1]:
            return torch.arange(self.points.shape[1])
        return torch.randint(self.points.shape[1], (samples,), generator=generator)


def climb(
    pair: Pair, matrices: Float[Tensor, "b 4 4"], steps: int, samples: int, seed: int, with_overlap: bool
) -> Float[Tensor, "b 4 4"]:
    """The poses after ``steps`` of Adam on mutual information; with_overlap: times the overlap of the bodies.

    Steps begin at half a voxel and decay to a twentieth. A turn counts as the shift it makes at the body's radius.
    samples: fixed voxels looked at in a step; new ones each time.
    """
    centre, radius_mm = middle(pair.fixed_body)
    generator = torch.Generator().manual_seed(seed)
    free = torch.zeros(len(matrices), 6, requires_grad=True)
    adam = Adam(free, (0.8, 0.95))
    for step in range(steps):
        here = matrices @ about(free[:, :3] / radius_mm, free[:, 3:], centre)
        information, overlap = pair.alike(here, pair.choose(samples, generator))
        score = information * overlap if with_overlap else information
        adam.step(-score.sum(), pair.spacing_mm / 2 * 0.1 ** (step / steps))
    with torch.no_grad():
        return matrices @ about(free[:, :3] / radius_mm, free[:, 3:], centre)


def about(
    turns: Float[Tensor, "b 3"], shifts_mm: Float[Tensor, "b 3"], centre_mm: Float[Tensor, " 3"]
) -> Float[Tensor, "b 4 4"]:
    """Turns (rotation vectors in radians) about a centre, then shifts."""
    zero = torch.zeros_like(turns[:, 0])
    x, y, z = turns.unbind(1)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).unflatten(1, (3, 3))
    rotation = torch.linalg.matrix_exp(skew)
    column = centre_mm + shifts_mm - (rotation @ centre_mm[:, None])[..., 0]
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=turns.dtype).expand(len(turns), 1, 4)
    return torch.cat([torch.cat([rotation, column[..., None]], 2), last], 1)


def middle(body: Image) -> tuple[Float[Tensor, " 3"], float]:
    """Centre of mass in world mm, and root mean square distance from it."""
    points = body.grid.points().flatten(1)
    weight = body.data[0].flatten() / body.data.sum().clamp(min=1e-6)
    centre = points @ weight
    return centre, float(((points - centre[:, None]).square().sum(0) @ weight).sqrt().clamp(min=1.0))
