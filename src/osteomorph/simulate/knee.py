"""A knee: a second family of bones, for methods that should not know only spines.

Anatomy frame: x right, y anterior, z superior (RAS), mm, origin in the middle of the joint line.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from osteomorph.simulate.anatomy import Distance, Joint, Points, View
from osteomorph.simulate.procedural import Bone, Layers, Procedural, triple
from osteomorph.simulate.shapes import Real, ball, column, curve, ellipse, ellipsoid, join, length, loft, meet, strut, tube

AXIS = (0.0, -7.0, 25.0)
"""A point of the axis through the condyles, about which the femur turns."""

KNEECAP = (1.5, 43.0, 33.0)
"""Middle of the patella."""

FEMUR = curve(
    [
        (20, -2, 37, 26),
        (32, -1, 37, 25),
        (44, 0, 31, 21),
        (58, 2, 20, 15.5),
        (74, 4, 15, 13.5),
        (90, 5, 14, 13.5),
        (110, 6, 14, 14),
    ]
)
"""Sections of the distal femur: z -> y of the middle, half width, half depth."""

TIBIA = curve(
    [
        (-110, -2, 12, 13),
        (-75, -1, 13, 14.5),
        (-50, 0, 16, 17),
        (-32, -1, 22, 20),
        (-18, -3, 31, 23.5),
        (-8, -4, 37, 25),
        (0, -4, 37, 25),
    ]
)
"""Sections of the proximal tibia."""

SKIN = curve(
    [
        (-100, -8, 50, 52),
        (-55, -5, 53, 56),
        (-15, -1, 52, 56),
        (15, 0, 53, 58),
        (40, -1, 56, 61),
        (75, -4, 62, 65),
        (100, -5, 70, 69),
    ]
)
"""Sections of the leg below the fat."""


@final
@dataclass(frozen=True)
class KneeBuild:
    """One knee; mm and degrees before ``scale``. side is +1 for a right knee and -1 for a left one."""

    side: int = 1
    scale: float = 1.0
    flexion_deg: float = 6.0
    """Of the knee as it lies."""
    cartilage: float = 2.2
    """Thickness on the femur."""
    spurs: float = 0.0
    """Radius of osteophytes."""
    effusion: float = 0.0
    """Added to the depth of the pouch above the patella."""
    fat: float = 6.0
    muscle: float = 1.0


def draw_knee_build(generator: np.random.Generator) -> KneeBuild:
    """A knee from a population, half of them left."""

    def between(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    wear = max(0.0, between(-0.6, 1.0))
    return KneeBuild(
        side=1 if generator.random() < 0.5 else -1,
        scale=between(0.9, 1.03),
        flexion_deg=between(0.0, 12.0),
        cartilage=2.4 - 1.1 * wear,
        spurs=2.6 * wear,
        effusion=max(0.0, between(-4.0, 5.0)),
        fat=between(3.0, 10.0),
        muscle=between(0.8, 1.1),
    )


@final
@dataclass(frozen=True, eq=False)
class Knee(Procedural):
    """Femur, tibia, fibula and patella with cartilage, menisci, ligaments, muscles, fat and skin."""

    build: KneeBuild

    @property
    def scale(self) -> float:
        return self.build.scale

    @property
    def femur(self) -> int:
        """Label of the femur: it names the side."""
        return 34 if self.build.side > 0 else 33

    @property
    def names(self) -> Mapping[int, str]:
        return {self.femur: "femur_right" if self.build.side > 0 else "femur_left", 81: "tibia", 82: "fibula", 83: "patella"}

    @cached_property
    def bones(self) -> dict[int, Bone]:
        bent = np.eye(4)
        bent[:3, :3] = Rotation.from_euler("x", self.build.flexion_deg, degrees=True).as_matrix()
        bent[:3, 3] = np.array(AXIS) - bent[:3, :3] @ AXIS
        still = np.eye(4)
        spurs = self.build.spurs

        def sclerosis(p: Points, bone: Distance) -> Layers:
            return [("sclerosis", torch.maximum(bone, _rim(p) - spurs))] if spurs > 0.5 else []

        def shinbone(p: Points) -> Distance:
            return _tibia(p, spurs)

        def thin(p: Points) -> Distance:
            return torch.full_like(p[0], 1.2)

        upper, lower, front = (
            ((-60.0, -50.0, -15.0), (60.0, 45.0, 110.0)),
            ((-60.0, -50.0, -90.0), (60.0, 40.0, 15.0)),
            ((-35.0, 20.0, 0.0), (35.0, 65.0, 70.0)),
        )
        return {
            self.femur: Bone(bent, self._sided(_femur), _femoral_cortex, upper),
            81: Bone(still, self._sided(shinbone), _tibial_cortex, lower, sclerosis),
            82: Bone(still, self._sided(_fibula), _fibular_cortex, lower),
            83: Bone(bent, self._sided(_patella), thin, front),
        }

    @cached_property
    def joints(self) -> tuple[Joint, ...]:
        still = (0.15, 0.15, 0.15)
        fibula = triple(np.array((self.build.side * 30, -18, -16)) * self.scale)
        knee, kneecap = triple(np.array(AXIS) * self.scale), triple(self.bones[83].at(0, 35, 33) * self.scale)
        return (
            Joint(81, None, (0.0, 0.0, -20.0 * self.scale), (1.5, 1.0, 1.0), (1.0, 1.0, 1.0)),
            Joint(82, 81, fibula, (0.4, 0.4, 0.4), still),
            Joint(self.femur, 81, knee, (20.0, 3.0, 5.0), (0.3, 0.5, 0.3)),
            Joint(83, self.femur, kneecap, (8.0, 2.0, 2.0), (0.5, 0.3, 0.5)),
        )

    @property
    def views(self) -> Mapping[str, View]:
        return {"knee": View((0.0, 0.0, 0.0), (130.0, 130.0, 150.0), tuple(sorted(self.bones)))}

    def gap_mm(self, first: int, second: int) -> float:
        return 2.6 if {first, second} == {81, 82} else 4.4

    def skin(self, points: Points) -> Distance:
        x, y, z = points
        hollow = 6 * torch.exp(-(x / 20).square() - ((z - 5) / 30).square()) * torch.sigmoid(-(y + 30) / 5)
        kneecap = ellipsoid(points, (0, 41, 30), (38, 18, 38))
        fibula = ellipsoid(points, (self.build.side * 34, -19, -20), (17, 19, 34))
        return join(join(loft(points, SKIN), kneecap, 12.0), fibula, 12.0) - self.build.fat + 6 + hollow

    @cached_property
    def soft(self) -> Sequence[Callable[[Points], Layers]]:
        """Drawn for a right knee."""
        parts = (self._surface, self._muscles, self._vessels, self._joint, self._tendons, self._cartilage, self._menisci)
        return [lambda p, part=part: part(p * column(p, self.build.side, 1, 1)) for part in parts]  # type: ignore[misc]

    # -- soft tissue of a right knee ------------------------------------------------------------------------------------------
    def _sided(self, shape: Callable[[Points], Distance]) -> Callable[[Points], Distance]:
        return lambda p: shape(p * column(p, self.build.side, 1, 1))

    def _bent(self, points: Points) -> Points:
        """Into the femur's frame."""
        return self.bones[self.femur].local(points)

    def _surface(self, points: Points) -> Layers:
        skin = self.skin(points)
        return [("skin", skin), ("fat", skin + 1.6)]

    def _muscles(self, points: Points) -> Layers:
        m, z = self.build.muscle, points[2]
        flesh = self.skin(points) + 2.0 + self.build.fat
        up = torch.sigmoid((z - 28) / 9)
        thigh = flesh + 1 + 80 * torch.sigmoid((38 - z) / 6)
        calf = torch.maximum(flesh + 1 + 80 * torch.sigmoid((z + 30) / 8), points[1] + 8 - 0.35 * points[0])
        shapes = (
            strut(points, (-30, 14, 30), (-26, 22, 95), (9, 26 * m)),  # vastus medialis
            strut(points, (29, 16, 42), (26, 22, 95), (8, 25 * m)),  # vastus lateralis
            strut(points, (-20, -42, 20), (-24, -36, 95), (11, 17 * m)),  # semimembranosus
            strut(points, (31, -34, 8), (26, -36, 95), (8, 16 * m)),  # biceps femoris
            strut(points, (-40, -28, 0), (-44, -18, 95), (3.5, 8 * m)),  # sartorius
            ellipse(points[0] + 19, points[1] + 39, 16 * m, 13.5 * m) + 30 * up,  # gastrocnemius
            ellipse(points[0] - 19, points[1] + 39, 15 * m, 13 * m) + 30 * up,
            strut(points, (14, -26, 0), (-10, -22, -52), (5, 8)),  # popliteus
            strut(points, (4, -28, -48), (4, -26, -100), (10, 20 * m)),  # soleus
            strut(points, (30, 12, -24), (24, 14, -100), (4, 15 * m)),  # tibialis anterior
        )
        out: Layers = [("muscle", torch.minimum(thigh, calf))]
        for shape in shapes:
            shape = meet(shape, flesh, 3.0)
            out += [("fat", meet(shape - 1.2, flesh, 3.0)), ("muscle", shape)]
        return [*out, ("fat", ellipse(points[0] - 3, points[1] + 41, 11.0, 14.0) + 14 * torch.sigmoid(-(z + 4) / 8))]

    def _vessels(self, points: Points) -> Layers:
        artery = tube(points, [(0, -26, 100), (1, -34, 40), (1, -33, 0), (2, -32, -100)], [4.0, 3.6, 3.3, 2.8])
        vein = tube(points, [(3, -32, 100), (3, -42, 40), (4, -41, 0), (5, -40, -100)], [4.6, 4.4, 4.2, 3.6])
        nerve = tube(points, [(6, -42, 100), (6, -52, 30), (5, -50, -40)], [3.2, 2.8, 2.4])
        return [("fat", torch.minimum(artery, vein) - 4), ("vessel", artery), ("vein", vein), ("cord", nerve)]

    def _joint(self, points: Points) -> Layers:
        """Fluid between the bones and in the pouch above the patella."""
        p, extra = self._bent(points), self.build.effusion
        pouch = ellipsoid(p, (0, 27.5, 56), (18 + 2 * extra, 2.2 + extra, 20 + 2 * extra))
        between = torch.maximum(ellipsoid(points, (0, -4, 0), (36, 25, 5)), 12 - points[0].abs())
        behind = ellipsoid(p, (0, -32, 22), (26, 3 + 0.6 * extra, 12))
        fluid = torch.minimum(torch.minimum(pouch, between), behind)
        return [("ligament", fluid - 1.0), ("fluid", fluid)]

    def _tendons(self, points: Points) -> Layers:
        p = self._bent(points)
        apex = self.bones[83].at(0, 45, 14)
        patellar = _band(points, (0, float(apex[1]), float(apex[2])), (2, 25, -38), 12.0, 2.4)
        quadriceps = _band(p, (1, 45, 50), (0, 30, 105), 16.0, 3.2)
        ends = self.bones[self.femur].at
        inside, outside = ends(-8, -16, 20), ends(8, -20, 22)
        crossed = torch.minimum(
            strut(points, tuple(outside), (-3, 8, -4), (3.6, 4.2)),
            strut(points, tuple(inside), (0, -24, -9), (4.6, 4.6)),
        )
        medial = strut(points, tuple(ends(-43, -6, 26)), (-33, 0, -45), (2.0, 2.0), (0, 0))
        lateral = strut(points, tuple(ends(43, -8, 26)), (41, -20, -18), (2.2, 2.2))
        retinaculum = (ellipsoid(p, (0, 30, 30), (40, 16, 26))).abs() - 0.9
        retinaculum = torch.maximum(retinaculum, 34 - p[1])
        both = torch.minimum(torch.minimum(patellar, quadriceps), torch.minimum(crossed, retinaculum))
        return [("ligament", torch.minimum(both, torch.minimum(medial, lateral)))]

    def _cartilage(self, points: Points) -> Layers:
        p, thick = self._bent(points), self.build.cartilage
        femur = torch.maximum(_femur(p) - thick, ellipsoid(p, (0, -2, 16), (44, 38, 25)))
        groove = torch.maximum(_femur(p) - thick, ellipsoid(p, (0, 32, 30), (26, 16, 22)))
        tibia = meet(ellipse(points[0], points[1] + 4, 36.0, 24.0), (points[2] + 1).abs() - 3.0, 1.0)
        tibia = torch.maximum(tibia, _tibia(points, 0.0) - thick)
        patella = torch.maximum(_patella(p) - 2.4, torch.maximum(p[1] - 42, (p[2] - 36).abs() - 16))
        return [("cartilage", torch.minimum(torch.minimum(femur, groove), torch.minimum(tibia, patella)))]

    def _menisci(self, points: Points) -> Layers:
        """Wedges open towards the middle of the joint, thicker at the rim."""
        x, y, z = points
        p = self._bent(points)
        u, v = (x.abs() - 21.5), y + 5
        radius = length(u, v / 1.3)
        wedge = torch.maximum(9.5 - radius, radius - 17.0)
        wedge = torch.maximum(wedge, (z - 1.0).abs() - 0.55 * (radius - 8.5).clamp(min=0))
        horns = 4 - u - 0.6 * v.abs()  # open inwards
        meniscus = torch.maximum(torch.maximum(wedge, -(u + 9)), 0.6 - _femur(p))
        return [("ligament", torch.maximum(meniscus, -horns.neg() - 22))]


# -- bones of a right knee ----------------------------------------------------------------------------------------------------
def _femur(p: Points) -> Distance:
    side = p[0].abs()
    shaft = meet(loft(p, FEMUR), 24 - p[2], 6.0) / 1.05
    medial, lateral = (ellipsoid(p, (x, y, 25), (half, 32, 23.5)) for x, y, half in ((-23.0, -7.0, 15.0), (22.0, -5.0, 16.0)))
    trochlea = join(
        ellipsoid(p, (13, 13, 30), (15, 19, 22)),
        ellipsoid(p, (-13, 12, 28), (15, 17.5, 20)),
        7.0,
    )
    bone = join(torch.minimum(medial, lateral), trochlea, 7.0)
    bone = join(bone, shaft, 8.0)
    bone = join(bone, ball(torch.stack([side, p[1], p[2]]), (34, -6, 33), 6.5), 5.0)  # epicondyles
    notch = tube(p, [(0, -45, 12), (0, -16, 14), (0, 3, -2)], [9.5, 9.0, 5.0])
    bone = meet(bone, -torch.minimum(notch, strut(p, (0, -45, 22), (0, -18, 20), (9, 7))), 3.0)
    return torch.maximum(bone, p[2] - 72.5)


def _rim(p: Points) -> Tensor:
    """Distance to the edge of the tibial plateau."""
    return length(ellipse(p[0], p[1] + 4, 37.0, 25.0), p[2] + 6)


def _tibia(p: Points, spurs: float) -> Distance:
    side = torch.stack([p[0].abs(), p[1], p[2]])
    bone = meet(loft(p, TIBIA) / 1.05, p[2] + 3.0, 3.0)
    bone = join(bone, strut(side, (5, -5, -8), (4.5, -5, 2.5), (6, 1.5)), 3.0)  # eminence
    bone = join(bone, strut(p, (2, 15, -26), (2, 15, -46), (8, 6.5)), 8.0)  # tuberosity
    bone = meet(bone, -strut(p, (0, -34, -2), (0, -24, -6), (7, 5)), 4.0)
    if spurs > 0.5:
        bone = join(bone, _rim(p) - spurs, 2.0)
    return torch.maximum(bone, -72.5 - p[2])


def _fibula(p: Points) -> Distance:
    bone = tube(p, [(38, -22, -18), (36, -21, -34), (34, -20, -110)], [9.5, 6.0, 6.5])
    bone = join(bone, strut(p, (40, -25, -12), (39, -24, -18), (3.5, 6)), 3.0)
    return torch.maximum(bone, -72.5 - p[2])


def _patella(p: Points) -> Distance:
    x, y, z = KNEECAP
    front = ellipsoid(p, (x, y, z + 2), (21.5, 9.5, 20.5))
    ridge = ellipsoid(p, (x - 2, y - 3, z + 4), (9, 8.5, 14))
    apex = strut(p, (x, y, z - 10), (x - 1, y + 2, z - 20), (8, 4))
    return join(join(front, ridge, 5.0), apex, 6.0)


def _femoral_cortex(p: Points) -> Distance:
    return 1.1 + 3.6 * torch.sigmoid((p[2] - 60) / 7)


def _tibial_cortex(p: Points) -> Distance:
    return 1.3 + 2.8 * torch.sigmoid(-(p[2] + 52) / 8)


def _fibular_cortex(p: Points) -> Distance:
    return 1.1 + 1.2 * torch.sigmoid(-(p[2] + 38) / 5)


def _band(p: Points, start: Sequence[Real], end: Sequence[Real], half_width: Real, half_thick: Real) -> Distance:
    """A flat band from start to end, wide along x."""
    a, b = np.array(start), np.array(end)
    axis = b - a
    t = ((p[1] - a[1]) * axis[1] + (p[2] - a[2]) * axis[2]) / float(axis[1:] @ axis[1:])
    t = t.clamp(0, 1)
    x, y, z = (p[k] - a[k] - t * axis[k] for k in range(3))
    wide = (x.abs() - half_width + half_thick).clamp(min=0)
    return length(wide, y, z) - half_thick
