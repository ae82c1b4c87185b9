"""Image and Labels: voxels with the grid they lie on. How each is interpolated follows from its type."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from scipy import ndimage
from torch import Tensor

from osteomorph.geometry import Grid

Part = tuple[slice, slice, slice]
"""Of a volume, along its array axes."""

MANY = 1 << 16
"""Largest id up to which ids are looked up in a table."""

FEW = 8
"""Ids that are compared one by one."""


def _check_shape(data: Tensor, grid: Grid) -> None:
    if data.ndim != 4 or tuple(data.shape[1:]) != grid.shape:
        raise ValueError(f"Voxels {tuple(data.shape)} do not fit the grid {grid.shape}: expected (channels, i, j, k).")


@final
@dataclass(frozen=True, eq=False)
class Image:
    """Intensities, interpolated linearly or better.

    data: (c, i, j, k) float32 or float64.
    stored: data type on disk, kept so that results go back in the type they came in.
    """

    data: Float[Tensor, "c i j k"] = field(repr=False)
    grid: Grid
    stored: np.dtype = field(default=np.dtype(np.float32))

    def __post_init__(self) -> None:
        _check_shape(self.data, self.grid)

    def with_data(self, data: Float[Tensor, "c i j k"]) -> "Image":
        """Other intensities on the same grid."""
        return replace(self, data=data)

    def to(self, device: torch.device | str) -> "Image":
        return replace(self, data=self.data.to(device))

    def cropped(self, part: Part) -> "Image":
        """A part; itself where that is all of it."""
        if self.grid.cropped(part).shape == self.grid.shape:
            return self
        return replace(self, data=self.data[(slice(None), *part)], grid=self.grid.cropped(part))


@final
@dataclass(frozen=True, eq=False)
class Labels:
    """A map of label ids, 0 for background, interpolated by nearest neighbour alone.

    data: (1, i, j, k) integer.
    names: id -> name, where known.
    """

    data: Int[Tensor, "1 i j k"] = field(repr=False)
    grid: Grid
    names: Mapping[int, str] = field(default_factory=dict)
    stored: np.dtype = field(default=np.dtype(np.uint8))

    def __post_init__(self) -> None:
        _check_shape(self.data, self.grid)

    def ids(self) -> list[int]:
        """Ids that occur, background left out, ascending."""
        return list(self._ids)

    @cached_property
    def _ids(self) -> tuple[int, ...]:
        most = int(self.data.max())
        if int(self.data.min()) < 0 or most > MANY:
            return tuple(int(v) for v in torch.unique(self.data) if v != 0)
        seen = torch.zeros(most + 1, dtype=torch.bool)
        for plane in self.data[0]:  # sorting, or a histogram at once, takes many times the map's memory
            seen |= torch.bincount(plane.flatten(), minlength=most + 1).cpu() > 0
        return tuple(int(v) for v in seen.nonzero()[:, 0] if v != 0)

    @cached_property
    def boxes(self) -> dict[int, Part]:
        """Label -> the box that holds all its voxels."""
        found = ndimage.find_objects(self.data[0].cpu().numpy())
        return {label: box for label, box in enumerate(found, 1) if box is not None}

    def centres_mm(self, label: int) -> Float64[Tensor, "3 n"]:
        """World coordinates of a label's voxel centres, in the order of the array."""
        part = self.boxes[label]
        first = torch.tensor([[edge.start] for edge in part])
        return self.grid.world(((self.data[0][part] == label).nonzero().T + first).double())

    def name(self, label: int) -> str:
        return self.names.get(label, str(label))

    def mask(self, ids: Iterable[int] | None = None) -> Bool[Tensor, "1 i j k"]:
        """Where any of ``ids`` is (all but background by default)."""
        if ids is None:
            return self.data != 0
        wanted = sorted(ids)
        if 0 < len(wanted) <= FEW:  # quicker than torch's search
            return reduce(torch.bitwise_or, (self.data == label for label in wanted))
        return torch.isin(self.data, torch.tensor(wanted, dtype=self.data.dtype, device=self.data.device))

    def only(self, ids: Iterable[int]) -> "Labels":
        """The same map with every other id set to background."""
        wanted = set(ids)
        return self if wanted.issuperset(self._ids) else replace(self, data=self.data * self.mask(wanted))

    def to(self, device: torch.device | str) -> "Labels":
        return replace(self, data=self.data.to(device))

    def cropped(self, part: Part) -> "Labels":
        """A part; itself where that is all of it."""
        if self.grid.cropped(part).shape == self.grid.shape:
            return self
        return replace(self, data=self.data[(slice(None), *part)], grid=self.grid.cropped(part))
