"""Anatomy drawn from signed distances: bones that make room for one another, soft tissue in layers."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from osteomorph.image import Image
from osteomorph.simulate.anatomy import CHUNK, FAR_MM, TISSUES, Anatomy, Distance, Palette, Points, Textures, Triple
from osteomorph.simulate.shapes import Real

Layers = list[tuple[str, Distance]]
"""(tissue, distance) in the order in which they are painted, later ones over earlier ones."""

Box = tuple[np.ndarray, np.ndarray]
"""Low and high corner, mm."""

NUMBER = {name: k for k, name in enumerate(TISSUES)}

STIFFNESS = (
    dict.fromkeys(TISSUES, 0.6)
    | dict.fromkeys(("air", "fat", "bowel", "gas", "lung"), 0.3)
    | dict.fromkeys(("skin", "muscle", "vessel", "vein"), 1.0)
    | dict.fromkeys(("ligament", "annulus", "nucleus", "dry nucleus", "cartilage"), 3.0)
    | dict.fromkeys(("csf", "fluid", "urine"), 0.3)
    | dict.fromkeys(("cortex", "sclerosis", "marrow", "metal"), 10.0)
)
"""Young's modulus relative to muscle: orders of magnitude as elastography finds them, held to a range that can be solved."""


@final
@dataclass(frozen=True, eq=False)
class Bone:
    """One rigid bone in its own frame.

    place: (4, 4) own frame -> anatomy frame.
    shape: own frame -> distance, before room is made for other bones.
    cortex_mm: own frame -> thickness of the cortex.
    within: low and high corner of a box, own frame, that the bone surely fits.
    extra: own frame and final distance -> what is painted over cortex and marrow.
    """

    place: np.ndarray
    shape: Callable[[Points], Distance]
    cortex_mm: Callable[[Points], Distance]
    within: tuple[Triple, Triple]
    extra: Callable[[Points, Distance], Layers] = lambda p, d: []

    def local(self, points: Points) -> Points:
        place = torch.as_tensor(self.place).to(points)
        return place[:3, :3].T @ (points - place[:3, 3, None])

    def at(self, *local_mm: Real) -> np.ndarray:
        """A point of the own frame, in the anatomy frame."""
        return self.place[:3, :3] @ np.array(local_mm, dtype=float) + self.place[:3, 3]

    @cached_property
    def box(self) -> Box:
        """Around the bone, own frame."""
        return box_of(lambda p: [("", self.shape(p))], (np.array(self.within[0]), np.array(self.within[1])), 4.0)

    @cached_property
    def around(self) -> Box:
        """Around the bone, anatomy frame."""
        corners = np.array([self.at(*corner) for corner in product(*zip(*self.box, strict=True))])
        return corners.min(0), corners.max(0)

    @cached_property
    def extent(self) -> Box:
        """Around the bone, anatomy frame, to about 2 mm."""
        axes = [np.arange(low, high, 3.0) for low, high in zip(*self.box, strict=True)]
        lattice = torch.as_tensor(np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1), dtype=torch.float32)
        found = lattice[:, torch.cat([self.shape(part) for part in lattice.split(CHUNK, dim=1)]) < 0].double().numpy()
        found = self.place[:3, :3] @ found + self.place[:3, 3, None]
        return found.min(1) - 2.0, found.max(1) + 2.0

    def distance(self, points: Points, reach_mm: float) -> Distance:
        """Before room is made for other bones; FAR_MM where it is above about ``reach_mm``."""
        p = self.local(points)
        out = torch.full_like(points[0], FAR_MM)
        near = inside(p, self.box, reach_mm)
        out[near] = self.shape(p[:, near])
        return out


@final
@dataclass(frozen=True, eq=False)
class Piece:
    """Something painted, and the box that it fits, anatomy frame."""

    layers: Callable[[Points], Layers]
    box: Box


class Procedural(Anatomy):
    """Lengths below are before ``scale`` is applied to the whole."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """All lengths are multiplied by it in the end."""

    @property
    @abstractmethod
    def bones(self) -> Mapping[int, Bone]:
        """By label; later ones make room for earlier ones."""

    @property
    @abstractmethod
    def soft(self) -> Sequence[Callable[[Points], Layers]]:
        """What is painted before the bones."""

    @abstractmethod
    def skin(self, points: Points) -> Distance:
        """Distance to the skin."""

    @abstractmethod
    def gap_mm(self, first: int, second: int) -> float:
        """Least distance of two bones as they lie in the anatomy frame."""

    @property
    def scan(self) -> Image | None:
        return None

    @final
    def body(self, points: Points) -> Distance:
        return self.skin(points / self.scale) * self.scale

    @final
    def bone(self, label: int, points: Points, reach_mm: float) -> Distance:
        """Distance to a bone, which touches no other; FAR_MM where it is above about ``reach_mm``."""
        reach = reach_mm / self.scale
        parts = [self._bone(label, part / self.scale, reach) for part in points.split(CHUNK, dim=1)]
        return torch.cat(parts) * self.scale if parts else points[0]

    @final
    def tissues(self, points: Points) -> Layers:
        """(tissue, distance) in painting order; FAR_MM away from what is painted."""
        out: Layers = []
        for piece in self._pieces:
            near = inside(points / self.scale, piece.box, 10.0)
            for name, distance in piece.layers(points[:, near] / self.scale):
                whole = torch.full_like(points[0], FAR_MM)
                whole[near] = distance * self.scale
                out.append((name, whole))
        return out

    @final
    def paint(self, points: Points, palettes: Sequence[Palette], edge_mm: float, textures: Textures) -> Float[Tensor, "c n"]:
        looks = torch.tensor([[palette[name] for name in TISSUES] for palette in palettes])  # (c, tissue, mean and textures)
        mean, *rest = looks.unbind(2)
        out = []
        for part in points.float().split(CHUNK, dim=1):
            share, grain = self._shares(part / self.scale, edge_mm / self.scale), textures(part)
            shown = mean.to(part) @ share
            for look, texture in zip(rest, grain, strict=True):
                shown += (look.to(part) @ share) * texture
            out.append(shown)
        return torch.cat(out, 1)

    @final
    def stiffness(self, points: Points) -> Float[Tensor, " n"]:
        values = points.new_tensor([STIFFNESS[name] for name in TISSUES])
        return torch.cat([values @ self._shares(part / self.scale, 2.0) for part in points.split(CHUNK, dim=1)])

    # -- how ------------------------------------------------------------------------------------------------------------------
    def _shares(self, points: Tensor, edge_mm: float) -> Float[Tensor, "tissue n"]:
        """Part of every tissue at points, from the layer on top down, so that what is hidden is never computed."""
        out = points.new_zeros(len(TISSUES), points.shape[1])
        clear = torch.ones_like(points[0])
        corner = points.amin(1).double().numpy(force=True), points.amax(1).double().numpy(force=True)
        for piece in reversed(self._pieces):
            low, high = piece.box
            if (low - edge_mm > corner[1]).any() or (high + edge_mm < corner[0]).any():
                continue
            near = inside(points, piece.box, edge_mm, clear > 1e-4)
            if not len(near):
                continue
            left = clear[near]
            for name, distance in reversed(piece.layers(points[:, near])):
                part = (0.5 - distance / edge_mm).clamp_(0, 1).mul_(left)
                out[NUMBER[name]].index_add_(0, near, part)
                left = left - part
            clear[near] = left
        out[0] += clear
        return out

    @cached_property
    def _pieces(self) -> tuple[Piece, ...]:
        boxes = [bone.around for bone in self.bones.values()]
        low, high = np.min([b[0] for b in boxes], 0) - 120, np.max([b[1] for b in boxes], 0) + 120
        soft = [Piece(layers, box_of(layers, (low, high), 14.0)) for layers in self.soft]
        # a bone that makes room is painted before the one it makes room for, with the cartilage in between
        bones = [Piece(self._layers(label), grown(self.bones[label].around, 2.0)) for label in reversed(list(self.bones))]
        return (*soft, *bones)

    @cached_property
    def _neighbours(self) -> dict[int, tuple[tuple[int, float], ...]]:
        """(label, gap) of the bones that a bone makes room for."""
        out: dict[int, tuple[tuple[int, float], ...]] = {}
        for label, bone in self.bones.items():
            found = []
            for other in out:
                low, high = grown(self.bones[other].around, self.gap_mm(label, other))
                if (low < bone.around[1]).all() and (high > bone.around[0]).all():
                    found.append((other, self.gap_mm(label, other)))
            out[label] = tuple(found)
        return out

    def _bone(self, label: int, points: Tensor, reach_mm: float) -> Tensor:
        bone = self.bones[label]
        out = torch.full_like(points[0], FAR_MM)
        p = bone.local(points)
        near = inside(p, bone.box, reach_mm)
        if len(near):
            out[near] = self._make_room(label, points[:, near], bone.shape(p[:, near]))[0]
        return out

    def _make_room(self, label: int, points: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The final distance, and how far points are from the room made (negative inside)."""
        room = torch.full_like(own, FAR_MM)
        for other, gap in self._neighbours[label]:
            room = torch.minimum(room, self.bones[other].distance(points, gap + 6.0) - gap)
        return torch.maximum(own, -room), room

    def _layers(self, label: int) -> Callable[[Points], Layers]:
        bone = self.bones[label]

        def layers(points: Points) -> Layers:
            p = bone.local(points)
            own = bone.shape(p)
            distance, room = self._make_room(label, points, own)
            return [
                ("cartilage", torch.maximum(own - 0.8, room)),
                ("cortex", distance),
                ("marrow", distance + bone.cortex_mm(p)),
                *bone.extra(p, distance),
            ]

        return layers


def inside(points: Tensor, box: Box, margin_mm: float, also: Tensor | None = None) -> Tensor:
    """Indices of points in a box with a margin."""
    keep = also
    for axis in range(3):
        low, high = float(box[0][axis]) - margin_mm, float(box[1][axis]) + margin_mm
        one = (points[axis] > low) & (points[axis] < high)
        keep = one if keep is None else keep & one
    assert keep is not None
    return keep.nonzero()[:, 0]


def grown(box: Box, margin_mm: float) -> Box:
    return box[0] - margin_mm, box[1] + margin_mm


def box_of(layers: Callable[[Points], Layers], search: Box, step_mm: float) -> Box:
    """Around all layers, found on a lattice; slopes of their distances may be up to 1.5."""
    axes = [np.arange(low, high + step_mm, step_mm) for low, high in zip(*search, strict=True)]
    lattice = torch.as_tensor(np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1), dtype=torch.float32)
    nearest = torch.stack([distance for _, distance in layers(lattice)]).amin(0)
    found = lattice[:, nearest < 1.3 * step_mm].double().numpy()
    if not found.size:
        return search[0], search[0]
    return found.min(1) - 0.5 * step_mm, found.max(1) + 0.5 * step_mm


def hull(boxes: Sequence[Box]) -> Box:
    return np.min([low for low, _ in boxes], 0), np.max([high for _, high in boxes], 0)


def triple(point: np.ndarray) -> Triple:
    x, y, z = (float(value) for value in point)
    return x, y, z
