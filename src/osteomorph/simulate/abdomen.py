"""Soft tissue of the trunk: muscles, organs, vessels and the contents of the spinal canal, mm."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from osteomorph.simulate.anatomy import Points
from osteomorph.simulate.build import Build
from osteomorph.simulate.outline import Landmarks, Outline
from osteomorph.simulate.pelvis import HEAD_MM, wing
from osteomorph.simulate.procedural import Layers
from osteomorph.simulate.shapes import Curve, curve, ellipse, ellipsoid, join, length, meet, strut, tube


@final
@dataclass(frozen=True, eq=False)
class Soft:
    build: Build
    marks: Landmarks
    outline: Outline

    @property
    def layers(self) -> tuple[Callable[[Points], Layers], ...]:
        """In the order in which they are painted."""
        out: list[Callable[[Points], Layers]] = [self.surface, self.flesh, self.septa, self.cavity, self.back, self.psoas]
        out += [self.iliacus, self.liver, self.spleen, *self.kidneys, self.stomach, *self.loops, self.rectum, self.bladder]
        return (*out, *self.vessels, self.lungs, self.ligaments)

    def surface(self, points: Points) -> Layers:
        skin = self.outline.skin(points)
        return [("skin", skin), ("fat", skin + 2.0)]

    def flesh(self, points: Points) -> Layers:
        return [("muscle", self.outline.flesh(points))]

    def septa(self, points: Points) -> Layers:
        """Fat between the muscles of hip and thigh."""
        frame = torch.as_tensor(self.marks.pelvis).to(points)
        p = frame[:3, :3].T @ (points - frame[:3, 3, None])
        p = torch.stack([p[0].abs() / self.build.hip_width, p[1], p[2]])
        away, _ = wing(p)
        x, y, z = p[0] - HEAD_MM, p[1], p[2]
        around = length(x - 30, y)
        high = z - 95
        low = torch.maximum(z + 25, 24 - around)
        flesh = self.outline.flesh(points)
        layers = []
        for sheet, limit in (
            ((away - 20 + 0.08 * z).abs() - 1.2, torch.maximum(high, 20 - z)),
            ((away - 34 + 0.15 * y + 0.1 * z).abs() - 1.6, torch.maximum(high, torch.maximum(-5 - z, y - 25))),
            ((y + 58 - 0.35 * (x - 20) + 8 * torch.sin(z / 22)).abs() - 1.8, torch.maximum(z - 60, -z - 75)),
            ((y - 26 - 0.3 * x + 4 * torch.sin(z / 15)).abs() - 1.5, torch.maximum(z - 30, -z - 140)),
            ((x - 26 + 0.4 * y).abs() - 1.3, torch.maximum(low, -y - 5)),
            ((x + 8 + 0.5 * y).abs() - 1.3, torch.maximum(low, y - 8)),
            ((y + 12 + 0.2 * x).abs() - 1.3, torch.maximum(low, x - 26)),
            (ellipse(x + 20, y - 42, 11.0, 9.0), torch.maximum(z - 35, -z - 140)),
        ):
            layers.append(("fat", torch.maximum(torch.maximum(sheet, limit), flesh)))
        return [*layers, ("fat", torch.maximum(ellipse(x + 10, y + 40, 9.0, 6.0), torch.maximum(z - 20, -z - 60)))]

    def cavity(self, points: Points) -> Layers:
        """Fat around the organs."""
        low = self.marks.hip[1] - 58
        return [("fat", meet(self.outline.inner(points), low - points[2], 10.0))]

    # -- muscles --------------------------------------------------------------------------------------------------------------
    def back(self, points: Points) -> Layers:
        """Erector spinae and multifidus in the groove between spinous and transverse processes, quadratus lumborum."""
        m = self.build.muscle
        z = points[2]
        (cx, cy), hip_z = self.marks.canal(z), self.marks.hip[1]
        x = points[0] - cx
        side = x.abs()
        rear = points[1] - cy + 14 + 0.1 * side
        slim = 1 - 0.25 * torch.sigmoid((z - self.marks.height[20]) / 20) - 0.35 * torch.sigmoid((hip_z + 115 - z) / 12)
        erector = ellipse(side - 29, rear + 13, 23.0 * m * slim, 17.5 * m * slim)
        multifidus = ellipse(side - 10, rear + 10, 9.0 * m, 18.0 * m)
        quadratus = ellipse(side - 56, points[1] - cy - 2, 14.0 * m, 8.5 * m)
        flesh = self.outline.flesh(points)
        low = torch.maximum(torch.maximum(hip_z + 45 - z, z - self.marks.height[17] - 40), flesh)
        lumbar = torch.maximum(torch.maximum(z - self.marks.height[20], hip_z + 112 - z), flesh)
        out = []
        for muscle, limit in ((quadratus, lumbar), (erector, low), (multifidus, low)):
            out += [("fat", meet(muscle - 1.3, limit, 4.0)), ("muscle", meet(muscle, limit, 4.0))]
        # fat between the bundles, more of it where the muscle is thin
        bundle = (1.25 * m - 0.32 - torch.sin(side / 3.3 + 0.14 * rear) * torch.cos(rear / 9 + z / 60)) * 3
        streaks = torch.maximum(bundle, torch.maximum(torch.minimum(erector, multifidus) + 2.5, low))
        return [*out, ("fat", streaks)]

    @cached_property
    def _psoas(self) -> Curve:
        """z -> distance from the midline, y, half width, half depth."""
        h, (y, z), m = self.marks.height, self.marks.hip, self.build.muscle

        def front(at: float) -> float:
            return float(self.marks.spine(torch.tensor([at], dtype=torch.float64))[1, 0]) - 5

        wide = self.build.hip_width
        rows = [
            (h[19], 22, front(h[19]), 3, 4),
            (h[20], 29, front(h[20]), 9 * m, 10 * m),
            (h[21], 33, front(h[21]), 13 * m, 14 * m),
            (h[22], 37, front(h[22]), 16 * m, 18 * m),
            (h[23], 41, front(h[23]), 19 * m, 21 * m),
            (z + 110, 48, front(z + 110) + 3, 20 * m, 20 * m),
            (z + 70, 62, (y + front(z + 110)) / 2 + 14, 19 * m, 18 * m),
            (z + 35, 78 * wide, y + 34, 19 * m, 15 * m),
            (z, 88 * wide, y + 37, 20 * m, 13 * m),
            (z - 40, 97 * wide, y + 16, 14 * m, 13 * m),
            (z - 70, 104 * wide, y - 8, 6, 6),
        ]
        return curve([row for k, row in enumerate(rows) if k < 5 or row[0] < h[23] - 20])

    def psoas(self, points: Points) -> Layers:
        side, y, wide, deep = self._psoas(points[2])
        x = (points[0] - self.marks.spine(points[2])[0]).abs()
        muscle = ellipse(x - side, points[1] - y, wide, deep) / 1.1
        muscle = meet(muscle, torch.maximum(points[2] - self.marks.height[19], self.marks.hip[1] - 70 - points[2]), 4.0)
        return [("fat", muscle - 1.5), ("muscle", muscle)]

    def iliacus(self, points: Points) -> Layers:
        """On the inner face of the iliac wings."""
        frame = torch.as_tensor(self.marks.pelvis).to(points)
        p = frame[:3, :3].T @ (points - frame[:3, 3, None])
        p = torch.stack([p[0].abs() / self.build.hip_width, p[1], p[2]])
        away, outline = wing(p)
        thick = 7.0 * self.build.muscle
        face = (away + 4 + thick).abs() - thick
        return [("muscle", meet(meet(face, outline + 5, 5.0), torch.maximum(-45 - p[1], 8 - p[2]), 5.0))]

    # -- organs ---------------------------------------------------------------------------------------------------------------
    def _dome(self, points: Points) -> Tensor:
        """How far points are below the diaphragm."""
        x, y, z = points
        middle, wide, deep = self.outline.cavity(z)
        rho = ((x / wide).square() + ((y - middle) / deep).square()).clamp(max=1.2)
        h = self.marks.height
        low = h[19] - 18 + 40 * torch.sigmoid((y - 20) / 15)
        return (z - low - (h[17] + 60 - h[19]) * (1 - rho)) / 1.7

    def liver(self, points: Points) -> Layers:
        s, z = self.build.liver, (self.marks.height[20] + self.marks.height[19]) / 2
        right = ellipsoid(points, (62, 34, z + 20), (66 * s, 72 * s, 82 * s))
        left = ellipsoid(points, (2, 70, z + 38), (60 * s, 34 * s, 36 * s))
        liver = meet(join(right, left, 15.0), self._dome(points) + 4, 6.0)
        liver = meet(meet(liver, self.outline.inner(points) + 4, 5.0), -ellipsoid(points, (20, 10, z - 25), (42, 45, 60)), 8.0)
        tree = tube(points, [(18, 38, z - 6), (45, 36, z + 10), (80, 20, z + 14)], [6, 4, 3])
        tree = torch.minimum(tree, tube(points, [(45, 36, z + 10), (70, 60, z + 28)], [4, 2.5]))
        return [("fat", liver - 2.0), ("liver", liver), ("vein", torch.maximum(tree, liver + 1))]

    def spleen(self, points: Points) -> Layers:
        z = self.marks.height[19]
        spleen = ellipsoid(points, (-92, -22, z + 8), (30, 42, 52))
        spleen = meet(meet(spleen, self.outline.inner(points) + 4, 5.0), self._dome(points) + 4, 5.0)
        return [("spleen", meet(spleen, -ellipsoid(points, (-66, 12, z), (34, 40, 60)), 6.0))]

    @property
    def kidneys(self) -> tuple[Callable[[Points], Layers], ...]:
        z = self.marks.height[20] - 22
        y = float(self.marks.spine(torch.tensor([z], dtype=torch.float64))[1, 0]) + 2
        right, left = self.build.kidneys

        def kidney(side: float, height: float) -> Callable[[Points], Layers]:
            def layers(points: Points) -> Layers:
                # upper poles lean towards the spine and backwards
                lean = (points[2] - height) * 0.22
                p = torch.stack([side * points[0] + lean, points[1] + 0.6 * lean, points[2]])
                organ = ellipsoid(p, (66, y, height), (27, 24, 54))
                hilum = ellipsoid(p, (46, y + 8, height), (17, 9, 20))
                pyramids = ellipsoid(p, (60, y, height), (18, 15, 40))
                sinus = meet(ellipsoid(p, (56, y + 2, height), (13, 8, 27)), pyramids + 2, 3.0)
                return [("fat", organ - 7.0), ("kidney", organ), ("fat", torch.minimum(hilum, sinus))]

            return layers

        return kidney(1.0, z - 8 + right), kidney(-1.0, z + left)

    def stomach(self, points: Points) -> Layers:
        z = self.marks.height[19]
        inner = self.outline.inner(points)
        stomach = meet(ellipsoid(points, (-52, 52, z + 6), (42, 36, 55)), torch.maximum(self._dome(points), inner) + 5, 6.0)
        level = points[1] - 62
        return [("muscle", stomach), ("bowel", stomach + 4), ("gas", torch.maximum(stomach + 4, -level))]

    @property
    def loops(self) -> tuple[Callable[[Points], Layers], ...]:
        def loop(x: float, y: float, z: float, r: float) -> Callable[[Points], Layers]:
            turn = 0.35 * np.sin(x + 2 * y)

            def layers(points: Points) -> Layers:
                u, v, w = points[0] - x, points[1] - y, points[2] - z
                p = torch.stack([u + turn * w, v + 0.2 * turn * u, w - turn * u])
                # haustra
                loop = ellipsoid(p, (0, 0, 0), (r * 1.3, r, r * 1.15)) + 0.07 * r * torch.sin(p[0] * (5.2 / r))
                loop = meet(loop, self.outline.inner(points) + 3, 4.0)
                gas = torch.maximum(loop + 2.5, r * 0.3 - v)
                return [("muscle", loop), ("bowel", loop + 2.0), ("gas", gas)]

            return layers

        return tuple(loop(*row) for row in self.build.loops)

    def rectum(self, points: Points) -> Layers:
        y, z = self.marks.hip
        path = [(2, y - 28, z - 50), (0, y - 56, z - 8), (4, y - 52, z + 38), (-20, y - 22, z + 62), (-46, y - 2, z + 78)]
        tube_ = tube(points, path, [9, 17, 15, 13, 13])
        gas = tube(points, [(0, y - 48, z + 5), (4, y - 46, z + 34)], [7, 8])
        return [("muscle", tube_), ("bowel", tube_ + 3.5), ("gas", torch.maximum(gas, tube_ + 4))]

    def bladder(self, points: Points) -> Layers:
        y, z = self.marks.hip
        bladder = ellipsoid(points, (0, y + 20, z + 12), (40, 29, 27))
        gland = ellipsoid(points, (0, y + 12, z - 24), (23, 17, 18))
        seminal = ellipsoid(points, (0, y - 17, z + 2), (28, 9, 11))
        return [("organ", gland), ("organ", seminal), ("muscle", bladder), ("urine", bladder + 3.5)]

    # -- vessels, lungs, ligaments --------------------------------------------------------------------------------------------
    @property
    def vessels(self) -> tuple[Callable[[Points], Layers], ...]:
        """Aorta and vena cava, which fork before L4; their branches run to the groins."""
        h, (hip_y, hip_z) = self.marks.height, self.marks.hip
        top, fork = h[17] + 50, h[23] - 4

        def front(at: float, off: float) -> float:
            return float(self.marks.spine(torch.tensor([at], dtype=torch.float64))[1, 0]) + self.marks.half_depth + off

        def run(side: float, y_off: float, radius: float, below: float) -> list[Callable[[Points], Layers]]:
            name = "vessel" if side < 0 else "vein"
            heights = np.linspace(top, fork - below, 9)
            trunk = [(side, front(z, y_off), float(z)) for z in heights]
            thick = [radius + (1.5 if z > h[20] else 0) for z in heights]
            out = [lambda p: [("fat", (d := tube(p, trunk, thick)) - 2), (name, d)]]
            last = trunk[-1]
            for way in (-1.0, 1.0):
                back, inner = (0.0, 0.0) if side < 0 else (-9.0, -12.0)
                wide = self.build.hip_width
                nodes = [
                    last,
                    (way * (32 + inner / 3), front(hip_z + 118, y_off + back / 2), hip_z + 112),
                    (way * (58 + inner / 2) * wide, hip_y + 10 + back, hip_z + 72),
                    (way * (72 + inner / 2) * wide, hip_y + 38 + back, hip_z + 30),
                    (way * (78 + inner) * wide, hip_y + 52 + back / 2, hip_z),
                    (way * (82 + inner / 2) * wide, hip_y + 38 + back, hip_z - 90),
                    (way * (86 + inner / 2) * wide, hip_y + 26 + back, hip_z - 160),
                ]
                sizes = [0.75 * radius, 0.72 * radius, *[0.6 * radius] * 5]
                out.append(lambda p, nodes=nodes, sizes=sizes: [(name, tube(p, nodes, sizes))])  # type: ignore[misc]
            return out

        return (*run(15.0, 10.0, 10.0, 12.0), *run(-9.0, 11.5, 8.6, 0.0))

    def lungs(self, points: Points) -> Layers:
        """Their lower tips, the diaphragm below; the crura stay with the spine."""
        dome, spine = self._dome(points), self.marks.spine(points[2])
        middle = length(points[0] - spine[0], (points[1] - spine[1] - 8) / 1.3) - 36
        inner = meet(self.outline.inner(points) + 6, -middle, 8.0)
        lung = meet(inner, -dome, 3.0)
        return [("muscle", meet(inner, (dome + 2.5).abs() - 2.0, 2.0)), ("lung", lung)]

    def ligaments(self, points: Points) -> Layers:
        """Along the front of the bodies and between spinous processes."""
        x, y, z = points
        (sx, sy), (cx, cy) = self.marks.spine(z), self.marks.canal(z)
        tips = self.marks.tips(z)[0]
        column = torch.maximum(z - self.marks.height[17] - 15, self.marks.height[self.build.column[1]] - 25 - z)
        front = length(x - sx, (y - sy - self.marks.half_depth + 0.5) / 0.6) - 5.5
        between = torch.maximum((x - cx).abs() - 1.8, torch.maximum(y - cy + 12, tips + 3 - y))
        return [("ligament", torch.maximum(torch.minimum(front, between), column))]

    def canal(self, points: Points) -> Layers:
        """Fat, the dural sac, the cord down to L1 and its roots."""
        m, z = self.marks, points[2]
        middle = m.canal(z)
        x, y = points[0] - middle[0], points[1] - middle[1]
        end = torch.maximum(z - m.height[17] - 16, m.height[26] - 62 - z)
        slim = 1 - 0.12 * torch.sigmoid((z - m.height[19]) / 12) - 0.35 * torch.sigmoid((m.height[26] - 14 - z) / 8)
        fat = torch.maximum(ellipse(x, y, 12.0 * slim, 9.8 * slim), end)
        sac = torch.maximum(ellipse(x, y - 0.8, 9.2 * slim, 7.4 * slim), m.height[26] - 42 - z)
        end = z - m.height[17] - 16
        sac = torch.maximum(sac, end)
        cord = length(x / 1.2, y) - 4.3 * torch.sigmoid((z - m.height[20] - 2) / 4)
        spread = 0.7 + 0.7 * torch.sigmoid(-(z - m.height[22]) / 20)
        roots = torch.full_like(x, 9.0)
        for angle in np.linspace(195, 345, 8):
            u, v = 4.8 * np.cos(np.radians(angle)), 3.6 * np.sin(np.radians(angle))
            roots = torch.minimum(roots, length(x - u * spread, y - v) - 0.85)
        nerve = torch.maximum(torch.maximum(torch.minimum(cord, roots), sac + 0.8), m.height[26] - 35 - z)
        return [("fat", fat), ("ligament", sac - 0.6), ("csf", sac), ("cord", nerve)]


def root(points: Points, start: np.ndarray, side: float) -> Layers:
    """A nerve root that leaves the canal between two vertebrae, in fat. start: middle of the canal there."""
    x, y, z = (float(v) for v in start)
    path = [(x + side * 8, y + 1, z + 7), (x + side * 17, y + 5, z - 2), (x + side * 30, y + 9, z - 14)]
    nerve = tube(points, path, [1.8, 2.8, 2.0])
    around = strut(points, path[0], path[1], (5, 7))
    return [("fat", around), ("cord", nerve)]
