"""Alignment, computed once and read by every term and metric; Term; Objective, their weighted sum."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from osteomorph.case import Case
from osteomorph.geometry import sample
from osteomorph.image import Image, Labels
from osteomorph.transforms import Displacement

Describe = Callable[[Image], Image]
"""Turns an image into feature channels on the same grid (for example MIND)."""


@final
@dataclass(eq=False)
class Alignment:
    """A case under a warp: moved(x) = moving(x + u(x)), x on a lattice of the fixed grid.

    case: prepared, the rigid start already applied to the moving side, so that both sides share their world.
    warp: u in mm, on a grid of its own.
    stride, offset: which voxels of the fixed grid the similarities look at.
    rigid_labels: ids of the bones that ought to stay rigid; empty for none.
    rigid_frame: where the rigid mask comes from: the fixed labels, the moving labels pulled back by the warp (``"warped"``),
        the moving labels as they are stored (``"moving"``, as written in the thesis), or fixed and warped (``"both"``).
    memo: shared by the alignments of one case, so that an image is described once.
    """

    case: Case
    warp: Displacement
    stride: int = 1
    offset: tuple[int, int, int] = (0, 0, 0)
    rigid_labels: tuple[int, ...] = ()
    rigid_frame: str = "warped"
    memo: dict[Any, Any] = field(default_factory=dict)

    # -- points -----------------------------------------------------------------------------------------------------
    @cached_property
    def points(self) -> Float[Tensor, "3 n"]:
        """World mm of the lattice."""
        lattice = self.case.fixed.grid.strided(self.stride, self.offset)
        return lattice.points(self.warp.vectors.dtype, self.warp.vectors.device).flatten(1)

    @cached_property
    def moved_points(self) -> Float[Tensor, "3 n"]:
        """x + u(x) in mm."""
        if self.warp.grid == self.case.fixed.grid:  # u at the voxels themselves
            return self.points + self._on_lattice(self.warp.vectors)
        return self.warp(self.points)

    # -- similarity reads ---------------------------------------------------------------------------------------------
    def fixed_values(self, describe: Describe | None = None) -> Float[Tensor, "c n"]:
        """Channels of the fixed image on the lattice."""
        return self._on_lattice(self._described(self.case.fixed, describe).data)

    def moved_values(self, describe: Describe | None = None) -> Float[Tensor, "c n"]:
        """Channels of the moving image at the moved points. Described before it is moved."""
        image = self._described(self.case.moving, describe)
        return sample(image.data, image.grid, self.moved_points)

    @cached_property
    def weight(self) -> Float[Tensor, " n"]:
        """Fixed mask times moving mask, and 0 beyond the moving field of view. Carries no gradient."""
        moved = self.moved_points.detach()
        with torch.no_grad():
            weight = self.case.moving.grid.contains(moved).to(moved.dtype)
            if self.case.fixed_mask is not None:
                weight = weight * self._on_lattice(self.case.fixed_mask.data)[0]
            if self.case.moving_mask is not None:
                weight = weight * sample(self.case.moving_mask.data, self.case.moving_mask.grid, moved)[0]
        return weight

    # -- label reads --------------------------------------------------------------------------------------------------
    @cached_property
    def shared_labels(self) -> list[int]:
        """Ids that both label maps hold."""
        fixed, moving = self.case.fixed_labels, self.case.moving_labels
        if fixed is None or moving is None:
            return []
        if "shared" not in self.memo:
            self.memo["shared"] = sorted(set(fixed.ids()) & set(moving.ids()))
        ids: list[int] = self.memo["shared"]
        return ids

    @cached_property
    def near_labels(self) -> Int[Tensor, " m"]:
        """Which points of the lattice move to where a shared moving label can be read; elsewhere every channel is 0."""
        grid = self._moving_onehot().grid
        return sample(self.memo["reached"], grid, self.moved_points.detach(), "nearest")[0].nonzero()[:, 0]

    def fixed_onehot(self, where: Int[Tensor, " m"] | None = None) -> Float[Tensor, "c m"]:
        """One channel per shared label, at all points of the lattice or at some."""
        if self.case.fixed_labels is None:
            raise ValueError("This alignment has no fixed labels.")
        ids = self._on_lattice(self.case.fixed_labels.data)[0]
        ids = ids if where is None else ids[where]
        return torch.stack([ids == label for label in self.shared_labels]).to(self.warp.vectors.dtype)

    def moved_onehot(self, where: Int[Tensor, " m"] | None = None) -> Float[Tensor, "c m"]:
        """Moving labels, one channel each, interpolated linearly at all moved points or at some."""
        onehot = self._moving_onehot()
        points = self.moved_points if where is None else self.moved_points.index_select(1, where)
        return sample(onehot.data, onehot.grid, points)

    @cached_property
    def rigid_mask(self) -> Bool[Tensor, "i j k"]:
        """Voxels of the warp's grid that lie in a bone that ought to stay rigid."""
        vectors, fixed, moving = self.warp.vectors, self.case.fixed_labels, self.case.moving_labels
        mask = torch.zeros(self.warp.grid.shape, dtype=torch.bool, device=vectors.device)
        with torch.no_grad():
            if self.rigid_labels and fixed is not None and self.rigid_frame in ("fixed", "both"):
                mask |= self._bones_at("fixed", fixed)
            if self.rigid_labels and moving is not None and self.rigid_frame in ("warped", "moving", "both"):
                mask |= self._bones_at("moving", moving, None if self.rigid_frame == "moving" else vectors.detach())
        return mask

    # -- helpers ------------------------------------------------------------------------------------------------------
    def _on_lattice(self, data: Tensor) -> Tensor:
        (a, b, c), s = self.offset, self.stride
        return data[:, a::s, b::s, c::s].flatten(1)

    def _described(self, image: Image, describe: Describe | None) -> Image:
        if describe is None:
            return image
        key = (describe, id(image))
        if key not in self.memo:
            self.memo[key] = describe(image)
        found: Image = self.memo[key]
        return found

    def _bones(self, side: str, labels: Labels) -> Tensor:
        key = ("bones", side, self.rigid_labels)
        if key not in self.memo:
            self.memo[key] = labels.mask(self.rigid_labels).to(torch.int8)
        found: Tensor = self.memo[key]
        return found

    def _bones_at(self, side: str, labels: Labels, away: Tensor | None = None) -> Tensor:
        """Whether a bone is at the voxels of the warp's grid, or ``away`` mm from them."""
        grid, data = self.warp.grid, self._bones(side, labels)
        if away is None and labels.grid == grid:
            return data[0] > 0
        points = grid.points(self.warp.vectors.dtype, self.warp.vectors.device)
        where = (points if away is None else points + away).flatten(1)
        return (sample(data, labels.grid, where, "nearest", 0)[0] > 0).unflatten(0, grid.shape)

    def _moving_onehot(self) -> Image:
        if "onehot" not in self.memo:
            labels = self.case.moving_labels
            if labels is None:
                raise ValueError("This alignment has no moving labels.")
            channels = torch.cat([labels.data == label for label in self.shared_labels])
            self.memo["onehot"] = Image(channels.to(self.warp.vectors.dtype), labels.grid)
            self.memo["reached"] = _grown(channels.any(0, keepdim=True))
        found: Image = self.memo["onehot"]
        return found


def _grown(mask: Bool[Tensor, "1 i j k"]) -> Int[Tensor, "1 i j k"]:
    """1 in the mask and at its 26 neighbours: wherever a linear reading, from the eight voxels around a point, may find it."""
    grown = mask.to(torch.int8)
    for axis in (1, 2, 3):
        before, n = grown.clone(), mask.shape[axis] - 1
        grown.narrow(axis, 0, n).bitwise_or_(before.narrow(axis, 1, n))
        grown.narrow(axis, 1, n).bitwise_or_(before.narrow(axis, 0, n))
    return grown


class Term(ABC):
    """Alignment -> scalar; smaller is better. Each says its unit and what minimises it."""

    @abstractmethod
    def __call__(self, alignment: Alignment) -> Float[Tensor, ""]: ...


@final
@dataclass(frozen=True)
class Objective:
    """Named weighted sum of terms."""

    terms: Sequence[tuple[str, float, Term]]

    def __call__(self, alignment: Alignment) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The sum, and each term's own value before its weight."""
        total = torch.zeros((), dtype=alignment.warp.vectors.dtype, device=alignment.warp.vectors.device)
        values: dict[str, float] = {}
        for name, weight, term in self.terms:
            value = term(alignment)
            values[name] = float(value.detach())
            total = total + weight * value
        return total, values
