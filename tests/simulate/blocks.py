"""An anatomy of blocks, simple enough to know every voxel."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from osteomorph.geometry import Grid
from osteomorph.image import Image
from osteomorph.simulate.anatomy import Anatomy, Joint, Palette, Textures, View

Block = tuple[str, tuple[float, float, float], tuple[float, float, float]]


class Blocks(Anatomy):
    """Boxes (tissue, centre, half size) in mm, later ones over earlier ones, in air."""

    def __init__(self, *blocks: Block) -> None:
        self.blocks = blocks

    @property
    def names(self) -> Mapping[int, str]:
        return {}

    @property
    def joints(self) -> tuple[Joint, ...]:
        return ()

    @property
    def views(self) -> Mapping[str, View]:
        return {}

    @property
    def scan(self) -> Image | None:
        return None

    def bone(self, label: int, points: Tensor, reach_mm: float) -> Tensor:
        return torch.full_like(points[0], 60.0)

    def body(self, points: Tensor) -> Tensor:
        return torch.stack([self.distance(block, points) for block in self.blocks]).amin(0)

    def stiffness(self, points: Tensor) -> Tensor:
        return torch.ones_like(points[0])

    def distance(self, block: Block, points: Tensor) -> Tensor:
        _, centre, half = block
        return ((points - points.new_tensor(centre)[:, None]).abs() - points.new_tensor(half)[:, None]).amax(0)

    def paint(self, points: Tensor, palettes: Sequence[Palette], edge_mm: float, textures: Textures) -> Tensor:
        points = points.float()
        grain = textures(points)
        out = torch.stack([torch.full_like(points[0], palette["air"].mean) for palette in palettes])
        for block in self.blocks:
            part = (0.5 - self.distance(block, points) / edge_mm).clamp(0, 1)
            for channel, palette in enumerate(palettes):
                look = palette[block[0]]
                out[channel] += part * (look.mean + points.new_tensor(look[1:]) @ grain - out[channel])
        return out


def cube(n: int = 48, spacing: float = 1.0) -> Grid:
    """RAS, about the origin."""
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = -spacing * (n - 1) / 2
    return Grid((n, n, n), affine)


def row(*tissues: str, width: float = 12.0) -> Blocks:
    """Slabs from left to right, endless along the other axes, about the origin."""
    first = -width * (len(tissues) - 1) / 2
    return Blocks(*((t, (first + k * width, 0.0, 0.0), (width / 2, 500.0, 500.0)) for k, t in enumerate(tissues)))


def same(points: Tensor) -> Tensor:
    return points
