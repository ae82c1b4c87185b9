"""The last three pairs of ribs, in the frame of the vertebra that they hang on, mm."""

import numpy as np
import torch

from osteomorph.simulate.anatomy import Distance, Points
from osteomorph.simulate.procedural import Bone
from osteomorph.simulate.shapes import column, tube
from osteomorph.simulate.vertebra import Vertebra

CAGE = (116.0, 86.0)
"""Half width and half depth of the ring on which ribs run."""

SPAN_DEG = {10: 112.0, 11: 84.0, 12: 54.0}
"""How far round from the back each rib reaches."""

DROP = {10: 0.46, 11: 0.5, 12: 0.52}
"""Fall per length."""


def head_mm(side: float, vertebra: Vertebra) -> tuple[float, float, float]:
    """Where a rib meets its vertebra."""
    return side * (vertebra.half_width + 4.5), 0.3 - 0.7 * vertebra.half_depth, 0.45 * vertebra.half_height


def _path(number: int, vertebra: Vertebra) -> list[tuple[float, float, float]]:
    """Nodes of a right rib."""
    x, y, z = head_mm(1.0, vertebra)
    back = -vertebra.half_depth
    tip = 34.0 + 5 * (number == 12)
    nodes = [(x, y, z), (x + 5, back - 2, z + 1), (tip, back - 11, z - 1)]
    start = np.arcsin(50 / CAGE[0])
    z, last = z - 5, None
    for angle in np.linspace(start, np.radians(SPAN_DEG[number]), 3 + (16 - number)):
        here = np.array([CAGE[0] * np.sin(angle), back - 19 + CAGE[1] * (np.cos(start) - np.cos(angle))])
        if last is not None:
            z -= DROP[number] * float(np.linalg.norm(here - last))
        nodes.append((float(here[0]), float(here[1]), z))
        last = here
    return nodes


def rib(p: Points, side: float, number: int, vertebra: Vertebra) -> Distance:
    nodes = _path(number, vertebra)
    count = len(nodes)
    radii = [4.4, 3.3, 3.6, *[3.5] * (count - 4), 2.8]
    heights = [1.2, 1.2, 1.6, *[3.4] * (count - 4), 1.2]
    return tube(p * column(p, side, 1, 1), nodes, radii, heights)


def bones(number: int, vertebra: Vertebra, place: np.ndarray) -> dict[int, Bone]:
    """The left and the right rib of one vertebra. place: (4, 4) its frame -> anatomy frame."""
    nodes = np.array(_path(number, vertebra))
    low, high = nodes.min(0) - 12, nodes.max(0) + 12
    out = {}
    for side, first in ((-1.0, 40), (1.0, 60)):
        x = (low[0], high[0]) if side > 0 else (-high[0], -low[0])
        out[first + number] = Bone(
            place,
            lambda p, side=side: rib(p, side, number, vertebra),  # type: ignore[misc]
            lambda p: torch.full_like(p[0], 1.0),
            ((float(x[0]), float(low[1]), float(low[2])), (float(x[1]), float(high[1]), float(high[2]))),
        )
    return out
