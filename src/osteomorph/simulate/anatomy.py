"""Anatomy: what a simulated patient is made of, whatever it was made from.

Anatomy frame: x right, y anterior, z superior (RAS), mm. Distances are signed, negative inside.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from jaxtyping import Float
from torch import Tensor

from osteomorph.image import Image

Points = Float[Tensor, "3 n"]
Distance = Float[Tensor, " n"]
Triple = tuple[float, float, float]

CHUNK = 30_000
"""Points taken at a time: small enough for the cache, and for torch to keep such short steps in one thread."""

FAR_MM = 60.0
"""Distance reported for points beyond a bone's reach; nothing reads a distance that large."""

TISSUES = (
    "air",
    "skin",
    "fat",
    "muscle",
    "ligament",
    "annulus",
    "nucleus",
    "dry nucleus",
    "csf",
    "cord",
    "cartilage",
    "fluid",
    "cortex",
    "sclerosis",
    "marrow",
    "vessel",
    "vein",
    "kidney",
    "liver",
    "spleen",
    "heart",
    "lung",
    "organ",
    "bowel",
    "gas",
    "urine",
    "metal",
    "table",
)
"""All tissues there are; a tissue's place is its number in a map. "dry nucleus" is a degenerate disc's, "organ" any other."""


@final
class Look(NamedTuple):
    """Mean value of a tissue in one channel and the standard deviation that each texture adds to it."""

    mean: float
    common: float = 0.0
    own: float = 0.0
    fine: float = 0.0
    fibre: float = 0.0


Palette = Mapping[str, Look]
"""A look for every tissue."""

Textures = Callable[[Points], Float[Tensor, "4 n"]]
"""Unit-variance texture at anatomy-frame points, in the order of the fields of `Look` after the mean."""


@final
@dataclass(frozen=True)
class Joint:
    """How a bone hangs on another.

    bone, parent: labels; the parent is None for the bone from which all others hang.
    centre_mm: the point about which it turns, anatomy frame.
    turn_deg: usual largest rotation about x (flexion), y (bending to the side), z (axial rotation).
    shift_mm: usual largest shift along x, y, z.
    """

    bone: int
    parent: int | None
    centre_mm: Triple
    turn_deg: Triple
    shift_mm: Triple


@final
@dataclass(frozen=True)
class View:
    """A field of view that suits an anatomy.

    centre_mm, size_mm: in the anatomy frame, right-left, back-front, down-up.
    labelled: bones whole in it, which get labels.
    """

    centre_mm: Triple
    size_mm: Triple
    labelled: tuple[int, ...]


class Anatomy(ABC):
    """Bones, soft tissue and joints of one patient."""

    @property
    @abstractmethod
    def names(self) -> Mapping[int, str]:
        """Label -> name of every bone that moves as one body."""

    @property
    @abstractmethod
    def joints(self) -> tuple[Joint, ...]:
        """One for every bone, parents first."""

    @property
    @abstractmethod
    def views(self) -> Mapping[str, View]:
        """Fields of view by name, the usual one first."""

    @property
    @abstractmethod
    def scan(self) -> Image | None:
        """The CT this anatomy was made from, in the anatomy frame."""

    @abstractmethod
    def bone(self, label: int, points: Points, reach_mm: float) -> Distance:
        """Distance to a bone, which touches no other; FAR_MM where it is above about ``reach_mm``."""

    @abstractmethod
    def body(self, points: Points) -> Distance:
        """Distance to the skin, negative inside."""

    @abstractmethod
    def paint(self, points: Points, palettes: Sequence[Palette], edge_mm: float, textures: Textures) -> Float[Tensor, "c n"]:
        """What every palette shows at points; tissues pass into one another over ``edge_mm``."""

    @abstractmethod
    def stiffness(self, points: Points) -> Float[Tensor, " n"]:
        """Young's modulus of the soft tissue at points, relative to muscle; bone is not asked for."""
