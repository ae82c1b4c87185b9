"""What both scanners do: look at the anatomy through voxels and slices, and smooth along an axis."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv1d, pad

from osteomorph.geometry import Grid
from osteomorph.simulate.anatomy import Anatomy, Palette, Points, Textures

THICK = 1.7
"""Slices are thick from this ratio of the largest to the middle spacing on, and are then made of two thinner ones."""

PROFILE = (0.1, 0.4, 0.4, 0.1)
"""Weights of half slices in a slice: those of its own and the nearest of both neighbours (slices overlap a little)."""

Scan = TypeVar("Scan")

Volume = Float[Tensor, "i j k"]
Volumes = Float[Tensor, "c i j k"]


def slice_axis(grid: Grid) -> int | None:
    """Array axis across thick slices; None where voxels are near cubes."""
    order = np.argsort(grid.spacing_mm)
    return int(order[2]) if grid.spacing_mm[order[2]] > THICK * grid.spacing_mm[order[1]] else None


def look(
    anatomy: Anatomy,
    where: Callable[[Points], Points],
    grid: Grid,
    palettes: Sequence[Palette],
    textures: Textures,
    device: torch.device | str,
) -> Volumes:
    """What every palette shows in the voxels of a grid; borders of tissue are as wide as a voxel.

    where: world mm of the grid -> anatomy mm; asked once for every voxel, twice with thick slices.
    """
    axis = slice_axis(grid)
    spacing = grid.spacing_mm.copy()
    if axis is not None:
        spacing[axis] /= 2
    fine = grid if axis is None else grid.resampled(spacing)
    at = where(fine.points(device=device).flatten(1))
    values = anatomy.paint(at, palettes, float(np.prod(spacing) ** (1 / 3)), textures).unflatten(1, fine.shape)
    return values if axis is None else _slices(values, axis + 1)


def _slices(halves: Tensor, axis: int) -> Tensor:
    """Slices from twice as many half slices."""
    padded = _extend(halves.movedim(axis, -1), 1)
    n = halves.shape[axis] // 2
    return sum((w * padded[..., d : d + 2 * n : 2] for d, w in enumerate(PROFILE)), padded.new_zeros(1)).movedim(-1, axis)


def _extend(data: Tensor, by: int) -> Tensor:
    """Border values repeated along the last axis."""
    return torch.cat([data[..., :1].expand(*data.shape[:-1], by), data, data[..., -1:].expand(*data.shape[:-1], by)], -1)


def blur(data: Tensor, axis: int, sigma: float) -> Tensor:
    """Gaussian along one axis, sigma in voxels; border values repeated."""
    if sigma < 0.05:
        return data
    reach = max(1, round(3 * sigma))
    taps = torch.arange(-reach, reach + 1, dtype=data.dtype, device=data.device)
    kernel = (-0.5 * (taps / sigma).square()).exp()
    rows = data.movedim(axis, -1)
    flat = pad(rows.reshape(-1, 1, rows.shape[-1]), (reach, reach), mode="replicate")
    return conv1d(flat, (kernel / kernel.sum())[None, None]).reshape(rows.shape).movedim(-1, axis)


def white(shape: Sequence[int], seed: int, device: torch.device) -> Tensor:
    """Unit Gaussian noise; a seed means the same arrays on one kind of device."""
    return torch.randn(*shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def wished(scan: Scan, numbers: Mapping[str, Any]) -> Scan:
    """A scan's dataclass with some fields as wished; ValueError for a name that is no field."""
    names = [f.name for f in fields(scan)]  # type: ignore[arg-type]
    if unknown := sorted(set(numbers) - set(names)):
        raise ValueError(f"No {', '.join(unknown)} in {type(scan).__name__}; it has {', '.join(names)}.")
    return replace(scan, **numbers)  # type: ignore[type-var]
