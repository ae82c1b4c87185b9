"""Vertebrae and the sacrum, each in its own frame: origin in the middle of the body, z along its axis, mm."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from osteomorph.simulate.anatomy import Distance, Points, Triple
from osteomorph.simulate.build import Build
from osteomorph.simulate.procedural import Layers
from osteomorph.simulate.shapes import curve, ellipse, join, length, loft, meet, strut

RELATIVE = {
    17: (0.76, 0.88, 0.81, 0.84, 0.95),
    18: (0.79, 0.89, 0.84, 0.86, 0.75),
    19: (0.86, 0.92, 0.90, 0.92, 0.45),
    20: (0.91, 0.95, 0.95, 0.97, 0.12),
    21: (0.95, 0.98, 0.98, 1.0, 0.0),
    22: (1.0, 1.0, 1.0, 1.0, 0.0),
    23: (1.05, 1.02, 1.0, 1.0, 0.0),
    24: (1.1, 1.03, 0.98, 1.0, 0.0),
    25: (1.1, 1.03, 0.97, 1.0, 0.0),
    26: (1.12, 1.02, 1.02, 1.0, 0.0),
}
"""Label -> half width, half depth and half height relative to L3, size of the arch, how thoracic its shape is (0 to 1)."""

DISC = {25: 0.9, 24: 0.95, 23: 1.0, 22: 0.98, 21: 0.9, 20: 0.82, 19: 0.68, 18: 0.56, 17: 0.5}
"""Label -> height of the disc below it, relative to the one below L4."""


@final
@dataclass(frozen=True)
class Vertebra:
    """Sizes of one bone of the column."""

    label: int
    half_width: float
    half_depth: float
    half_height: float
    arch: float
    thoracic: float
    process: float
    spur: float
    wear: tuple[float, float]
    arthrosis: float
    screws: bool

    @property
    def within(self) -> tuple[Triple, Triple]:
        """Corners of a box around the bone."""
        if self.label == 26:
            return (-70.0, -85.0, -125.0), (70.0, 40.0, 40.0)
        return (-60.0, -105.0, -55.0), (60.0, 35.0, 38.0)

    def shape(self, p: Points) -> Distance:
        if self.label == 26:
            return self._sacrum(p)
        bone = join(self._body(p), self._arch(p), 4.0)
        if self.spur > 0.5:
            bone = join(bone, self._spurs(p), 2.5)
        return torch.minimum(bone, self._screws(p)) if self.screws else bone

    def cortex_mm(self, p: Points) -> Distance:
        """Thinner over the end plates than over the arch."""
        if self.label == 26:
            return torch.full_like(p[0], 0.8)
        return 0.65 + 0.65 * torch.sigmoid(-(p[1] + self.half_depth + 2) / 2)

    def extra(self, p: Points, bone: Distance) -> Layers:
        out: Layers = []
        if self.label == 26:
            return out
        for sign, wear in zip((-1.0, 1.0), self.wear, strict=True):
            if wear > 0.45:  # the plate next to a worn disc
                plate = self.half_height - 1.0 - 4.0 * wear - sign * p[2]
                out.append(("sclerosis", torch.maximum(bone, torch.maximum(plate, self._rim(p) + 2.0))))
        if self.spur > 0.5:
            out.append(("sclerosis", torch.maximum(bone, self._spurs(p))))
        if self.screws:
            out.append(("metal", torch.maximum(bone, self._screws(p))))
        return out

    def facets(self, p: Points) -> Distance:
        """The rough place of the facet joints below."""
        return length((p[0].abs() - 16) / 1.2, p[1] + self.half_depth + 18, (p[2] + self.half_height + 4) / 1.4) - 9

    # -- parts ----------------------------------------------------------------------------------------------------------------
    def _rim(self, p: Points) -> Distance:
        """Kidney-shaped and waisted."""
        x, y, z = p
        waist = 0.88 + 0.12 * (z / self.half_height).square().clamp(max=1.0)
        y = y + 3.5 * (x / self.half_width).square().clamp(max=1.5) - 1.2
        return ellipse(x, y, self.half_width * waist, self.half_depth * waist)

    def _body(self, p: Points) -> Distance:
        """With concave end plates."""
        x, y, z = p
        inward = (1 - (x / self.half_width).square() - (y / self.half_depth).square()).clamp(min=0)
        plate = z.abs() - self.half_height + 2.2 * inward.sqrt() * inward
        return meet(self._rim(p), plate, 3.0)

    def _spurs(self, p: Points) -> Distance:
        """Beads on the rim of the end plates, none behind."""
        x, y, z = p
        angle = torch.atan2(x, y + 1e-6)
        size = self.spur * (0.62 + 0.38 * torch.cos(3 * angle + self.label)) * torch.sigmoid((y + 0.4 * self.half_depth) / 3)
        y = y + 3.5 * (x / self.half_width).square().clamp(max=1.5) - 1.2
        rim = ellipse(x, y, self.half_width, self.half_depth)
        return length(rim - 0.3, z.abs() - self.half_height + 1.8) - size

    def _arch(self, p: Points) -> Distance:
        """Pedicles, laminae, transverse, articular and spinous processes; left and right alike."""
        size, t = self.arch, self.thoracic
        p = p / size
        back = -self.half_depth / size  # rear wall of the body
        out = 0.63 * self.half_width / size - 14.4  # the arch is as wide as the body asks
        long = self.process
        side = torch.stack([p[0].abs(), p[1], p[2]])
        bone = strut(side, (14.5 + out, back + 3, 5), (16.5 + out, back - 11, 4.5), (4.2, 4.4), (2.8, 3.2))
        lamina = strut(side, (15.5 + out, back - 14, -1), (2, back - 25, -6), (3.2, 3.4), (6.5, 7))
        tip = (25 + 17 * long - 13 * t + out, back - 16 - 7 * t, 6 + 2 * t)
        transverse = strut(side, (17 + out, back - 11, 4), tip, (3.6, 2.6 + 1.4 * t), (2, 3.2))
        facet = 4.2 + self.arthrosis
        upper = strut(side, (17.5 + out - t, back - 13, 3), (20 + out - 4 * t, back - 14.5, 17), (4.6, facet))
        lower = strut(side, (13 + out, back - 20, -8), (12.5 + out, back - 21, -23 + 2 * t), (4.2, facet - 0.2))
        bone = join(bone, lamina, 4.0)
        for process in (transverse, upper, lower):
            bone = join(bone, process, 3.0)
        end = back - 32 - 24 * long * (1 - 0.15 * t)
        drop = -12 - 16 * t
        crest = strut(p, (0, back - 27, -7), (0, end, drop), (2.6, 2.2), (5.5, 7 - 3 * t))
        knob = strut(p, (0, end + 1, drop + 1), (0, end - 1, drop), (3.2, 3.2), (5.5 - 2 * t, 5.5 - 2 * t))
        return join(bone, join(crest, knob, 3.0), 4.0) * size

    def _screws(self, p: Points) -> Distance:
        """Through the pedicles into the body, with their heads behind the facets."""
        back, x = -self.half_depth, 0.63 * self.half_width
        side = torch.stack([p[0].abs(), p[1], p[2]])
        thread = strut(side, (x + 3.5, back - 22, 5.5), (x - 7, 0.3 * self.half_depth, 3.0), (2.9, 2.5))
        head = strut(side, (x + 4, back - 24, 5.5), (x + 4.6, back - 31, 5.8), (5.0, 5.4))
        return torch.minimum(thread, head)

    def _sacrum(self, p: Points) -> Distance:
        x, y, z = p
        w, d, h = self.half_width, self.half_depth, self.half_height
        side = torch.stack([x.abs(), y, z])
        upper = (-d - 15.0, 0.63 * w)
        bodies = meet(loft(p, BODIES), torch.maximum(z - h, -104 - z), 3.0)
        middle, wide, thick = ALA(z)
        ala = length((side[0] - wide + thick).clamp(min=0), y - middle) - thick
        ala = meet(ala, torch.maximum((z - 9 + 0.3 * (side[0] - 22)) / 1.04, -98 - z), 4.0)
        rear = meet(loft(p, REAR), torch.maximum(z - 8, -88 - z), 4.0)
        bone = join(join(bodies, ala, 8.0), rear, 6.0)
        bone = join(bone, strut(p, (0, -46, -2), (0, -44, -64), (3.4, 2.5)), 6.0)
        for height, place, size in ((-15, 19, 4.4), (-38, 17, 3.8), (-60, 14.5, 3.2)):
            hole = strut(side, (place, -60, height), (place, 30, height), (size, size))
            bone = meet(bone, -hole, 2.0)
        bone = meet(bone, -meet(loft(p, CANAL), -82 - z, 3.0), 2.0)
        facet = strut(side, (upper[1] + 4.6, upper[0] + 3, 3), (upper[1] + 6.4, upper[0] + 0.5, 16), (4.6, 4.2))
        pillar = strut(side, (upper[1] + 5, -d + 1, -2), (upper[1] + 4, upper[0], 2), (5.0, 4.6), (5, 5))
        return join(bone, join(facet, pillar, 3.0), 4.0)


BODIES = curve(
    [
        (14, 0, 25, 17),
        (0, -3, 22, 15.5),
        (-20, -7, 18, 12),
        (-40, -12, 15, 10),
        (-65, -10, 12, 7.5),
        (-88, 5, 8, 6),
        (-104, 22, 6, 4),
    ]
)
"""Sections of the sacral bodies and the coccyx: z -> y, half width, half depth."""

ALA = curve(
    [
        (10, -9, 52, 11),
        (-5, -11, 55, 12),
        (-25, -17, 53, 12),
        (-42, -19, 42, 9.5),
        (-62, -16, 29, 7.5),
        (-82, -4, 18, 5.5),
        (-98, 12, 9, 4),
    ]
)
"""Stadium-shaped sections of the wings: z -> y, half width, half thickness."""

REAR = curve(
    [
        (10, -30, 25, 12),
        (-20, -31, 24, 13),
        (-50, -29, 17, 11),
        (-75, -18, 11, 8),
        (-90, -5, 7, 5),
    ]
)
"""Sections of the rear wall."""

CANAL = curve(
    [
        (40, -25, 12, 7.5),
        (10, -25.5, 12, 7.5),
        (-20, -27, 10, 6),
        (-50, -27, 6, 4),
        (-80, -15, 3.5, 2.5),
    ]
)
"""Sections of the sacral canal."""


def column(build: Build) -> dict[int, Vertebra]:
    """Label -> sizes, from the sacrum up."""
    out = {}
    for k, label in enumerate(build.column):
        wide, deep, high, arch, thoracic = RELATIVE[label]
        out[label] = Vertebra(
            label=label,
            half_width=build.half_width * wide,
            half_depth=build.half_depth * deep,
            half_height=build.half_height * high,
            arch=arch,
            thoracic=thoracic,
            process=build.process,
            spur=build.spurs[k],
            wear=(build.wear[k - 1] if k else 0.0, build.wear[k]),
            arthrosis=build.arthrosis,
            screws=label in build.screws,
        )
    return out


def disc_mm(build: Build, above: int) -> float:
    """Height of the disc below a vertebra."""
    return build.disc * DISC[above] * build.discs[build.column.index(above) - 1]


def disc(p: Points, upper: Vertebra, lower: Vertebra, height: float, wear: float) -> list[tuple[str, Tensor]]:
    """Layers of a disc in its own frame, origin in its middle."""
    x, y, z = p
    wide, deep = (upper.half_width + lower.half_width) / 2, (upper.half_depth + lower.half_depth) / 2
    y = y + 3.5 * (x / wide).square().clamp(max=1.5) - 1.2
    bulge = 0.3 + 2.0 * wear
    annulus = meet(ellipse(x, y, wide + bulge, deep + bulge), z.abs() - height / 2 - 4, 2.0)
    nucleus = meet(ellipse(x, y + 1.5, wide * 0.64, deep * 0.62), z.abs() - height / 2 + 0.4, 3.0)
    return [("annulus", annulus), ("dry nucleus" if wear > 0.45 else "nucleus", nucleus)]
