"""A CT scan of an anatomy in Hounsfield units: enhancement, kernel, noise by dose and path, beam hardening, metal, table.

Artefacts follow from the image itself, by sums along the rows and columns of axial slices that stand for rays from the side
and from the front.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, cos, pi, sin
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate

from osteomorph.geometry import Grid
from osteomorph.image import Image
from osteomorph.simulate.anatomy import Anatomy, Points
from osteomorph.simulate.contrast import ct_palette
from osteomorph.simulate.scanner import blur, look, white, wished
from osteomorph.simulate.shapes import Real
from osteomorph.simulate.texture import TextureBank

LEAST_HU, MOST_HU = -1024.0, 3071.0

METAL_HU = 2500.0
"""Above any bone."""

ANGLES = 120
"""Directions from which metal throws streaks."""

TABLE_RADIUS_MM = 480.0
TABLE_DEPTH_MM = 26.0
TABLE_SHELL_MM = 2.5


@final
@dataclass(frozen=True)
class CtScan:
    """All numbers of one scan."""

    marrow_hu: float
    """Trabecular bone with its marrow, without contrast agent."""
    cortex_hu: float
    muscle_hu: float
    iodine: float
    """Contrast agent: 0 none, 1 a usual portal venous scan."""
    blur_mm: float
    """Standard deviation of the kernel in the axial plane."""
    sharpen: float
    """Share of detail finer than 1 mm that a bone kernel adds."""
    noise_hu: float
    """Standard deviation over the body."""
    noise_mm: float
    """Width of a grain of noise in the axial plane."""
    starvation: float
    """How much noise grows along rays through much tissue; 0 not, 1 as without modulation of the tube current."""
    hardening: float
    """Dark bands between bones and cupping; 1 is strong."""
    metal: float
    """Strength of streaks, where there is metal."""
    table: bool
    circle_mm: float
    """Radius of the reconstructed circle about the middle of the grid, LEAST_HU outside; 0 for none."""
    seed: int

    def acquire(self, anatomy: Anatomy, where: Callable[[Points], Points], grid: Grid, bank: TextureBank) -> Image:
        """Hounsfield units, whole numbers from -1024 to 3071, on the device of the texture.

        where: world mm of the grid, patient upright in the sense of RAS and lying on the back -> anatomy mm.
        """
        palette = ct_palette(self.marrow_hu, self.cortex_hu, self.muscle_hu, self.iodine)
        (painted,) = look(anatomy, where, grid, [palette], bank.for_ct(), bank.device)
        axes = grid.axis("IS"), grid.axis("PA"), grid.axis("LR")
        spacing = [float(grid.spacing_mm[axis]) for axis in axes]
        world = grid.points(device=painted.device).permute(0, *(1 + axis for axis in axes))
        hu = painted.permute(axes)
        if self.table:
            hu = with_table(hu, world)
        iron = hu > METAL_HU if self.metal > 0 else torch.zeros_like(hu, dtype=torch.bool)
        mass = (1 + hu.clamp(max=METAL_HU) / 1000).clamp(min=0)
        hu = self._kernel(hu, spacing)
        if self.hardening > 0:
            hu = hu - self.hardening * bands(mass, spacing) * (mass > 0.5)
        hu = hu + self._noise(mass, spacing)
        if bool(iron.any()):
            hu = hu + self.metal * streaks(iron, spacing, self.seed)
        if self.circle_mm:
            centre = torch.as_tensor(grid.centre_mm, dtype=hu.dtype, device=hu.device)
            radius = torch.hypot(world[0] - centre[0], world[1] - centre[1])
            hu = hu.masked_fill(radius > self.circle_mm, LEAST_HU)
        data = hu.permute(tuple(int(i) for i in np.argsort(axes))).round().clamp(LEAST_HU, MOST_HU)
        return Image(data.contiguous()[None], grid, np.dtype(np.int16))

    def _kernel(self, hu: Tensor, spacing: list[float]) -> Tensor:
        for axis in (1, 2):
            hu = blur(hu, axis, self.blur_mm / spacing[axis])
        if self.sharpen > 0:
            coarse = blur(blur(hu, 1, 1.0 / spacing[1]), 2, 1.0 / spacing[2])
            hu = hu + self.sharpen * (hu - coarse)
        return hu

    def _noise(self, mass: Tensor, spacing: list[float]) -> Tensor:
        """Grain by filtered back projection: power rises with frequency f, then falls with the kernel.

        Rays from the side make what varies along the front-back axis, rays from the front what varies from side to side. Each
        half of the noise grows with the tissue that its rays pass.
        """
        grain = torch.fft.rfft2(white(mass.shape, self.seed, mass.device))
        v = torch.fft.fftfreq(mass.shape[1], spacing[1], device=mass.device)[:, None]
        u = torch.fft.rfftfreq(mass.shape[2], spacing[2], device=mass.device)[None]
        f2 = (u.square() + v.square()).clamp(min=1e-9)
        power = (f2.sqrt() + 0.03) * (-4 * (pi * self.noise_mm / 2) ** 2 * f2).exp()
        size = (mass.shape[1], mass.shape[2])
        body = mass > 0.5
        paths = [mass.sum(axis, keepdim=True) * spacing[axis] for axis in (2, 1)]
        usual = sum(float(p.expand_as(mass)[body].mean()) for p in paths) / 2 if bool(body.any()) else 0.0
        out = torch.zeros_like(mass)
        for path, share in zip(paths, (v.square() / f2, u.square() / f2), strict=True):
            out += (0.006 * self.starvation * (path - usual)).exp() * torch.fft.irfft2(grain * power.sqrt() * share, s=size)
        along = 0.6 / spacing[0]
        out = blur(out, 0, along) if along > 0.4 else out
        return out * (self.noise_hu / (out[body].std() if int(body.sum()) > 1 else out.std()))


def draw_ct(
    generator: np.random.Generator,
    low_dose: bool | None = None,
    contrast_agent: bool | None = None,
    table: bool | None = None,
    **numbers: Any,
) -> CtScan:
    """A scan as found in practice. None: as chance has it; numbers: fields of CtScan to be taken as given.

    Raises ValueError for a name that is no field.
    """

    def between(low: Real, high: Real) -> float:
        return float(generator.uniform(low, high))

    def chance(wish: bool | None, share: float) -> bool:
        drawn = bool(generator.random() < share)
        return drawn if wish is None else wish

    low, agent, plate = chance(low_dose, 0.3), chance(contrast_agent, 0.4), chance(table, 0.5)
    bone_kernel = chance(None, 0.25)
    scan = CtScan(
        marrow_hu=between(100, 300),
        cortex_hu=between(700, 1250),
        muscle_hu=between(46, 62),
        iodine=between(0.7, 1.2) * agent,
        blur_mm=between(0.25, 0.4) if bone_kernel else between(0.4, 0.75),
        sharpen=between(0.3, 0.9) * bone_kernel,
        noise_hu=float(np.exp(between(*np.log((22.0, 60.0) if low else (7.0, 20.0))))) * (1.5 if bone_kernel else 1.0),
        noise_mm=between(0.6, 0.8) if bone_kernel else between(0.9, 1.6),
        starvation=between(0.6, 1.8) if low else between(0.2, 0.7),
        hardening=between(0.1, 0.8),
        metal=between(0.5, 1.5),
        table=plate,
        circle_mm=0.0,
        seed=int(generator.integers(0, 2**31)),
    )
    return wished(scan, numbers)


# -- artefacts; volumes run down-up, back-front, right-left, in either sense ----------------------------------------------
def bands(mass: Tensor, spacing: list[float]) -> Tensor:
    """HU lost to beam hardening, 0 or above: grows with what lies on both sides of a voxel, bone above all.

    mass: of water, relative.
    """
    pool = [max(1, min(round(5 / s), n)) for s, n in zip(spacing[1:], mass.shape[1:], strict=True)]
    dense = (mass + 5 * (mass - 1.15).clamp(min=0))[:, None]
    coarse = avg_pool3d(dense, (1, *pool), ceil_mode=True)[:, 0]
    lost = torch.zeros_like(coarse)
    for axis, share in ((2, 0.7), (1, 0.3)):
        before = coarse.cumsum(axis) - coarse / 2
        both = torch.minimum(before, coarse.sum(axis, keepdim=True) - before) * spacing[axis] * pool[axis - 1]
        lost += share * 0.13 * both
    smooth = blur(blur(lost, 1, 1.0), 2, 1.0)
    return interpolate(smooth[:, None], size=mass.shape[1:], mode="bilinear")[:, 0]


def with_table(hu: Tensor, world: Tensor) -> Tensor:
    """A hollow curved plate that touches the back of the body, painted into air alone.

    world: (3, ...) RAS mm of the voxels.
    """
    middle = (world[0].amin() + world[0].amax()) / 2
    rise = (world[0] - middle).square() / (2 * TABLE_RADIUS_MM)
    below = world[1] - rise
    inside = hu > -300
    if not bool(inside.any()):
        return hu
    depth = below[inside].amin() - 1.5 - below  # below the table's upper face
    shell = torch.minimum((depth - TABLE_SHELL_MM / 2).abs(), (depth - TABLE_DEPTH_MM + 0.6 * rise).abs())
    cover = (TABLE_SHELL_MM / 2 + 0.5 - shell).clamp(0, 1)
    foam = ((depth > 0) & (depth < TABLE_DEPTH_MM - 0.6 * rise)).to(hu.dtype)
    plate = torch.maximum(hu, -1000 + 60 * foam + 1080 * cover)
    return torch.where((hu < -300) & (depth > -1), plate, hu)


def streaks(metal: Tensor, spacing: list[float], seed: int) -> Tensor:
    """HU that metal adds and takes away in its axial slices.

    Rays through metal are measured as too short, the more the longer their way through it, and with few photons. That error
    is projected back by filtered back projection: dark between pieces of metal, bright and dark rays around.
    """
    out = torch.zeros(metal.shape, device=metal.device)
    slices = metal.flatten(1).any(1).nonzero()[:, 0]
    rows, columns = metal.shape[1:]
    y = (torch.arange(rows, device=metal.device) - (rows - 1) / 2) * spacing[1]
    x = (torch.arange(columns, device=metal.device) - (columns - 1) / 2) * spacing[2]
    step = min(spacing[1:])
    bins = 2 * ceil((float(torch.hypot(y[-1], x[-1])) + 2 * step) / step)
    number, row, column = metal[slices].nonzero(as_tuple=True)
    ramp = torch.fft.rfftfreq(2 * bins, step, device=metal.device)
    window = ramp * (0.5 + 0.5 * torch.cos(pi * ramp / ramp[-1])).square()
    noise = white((ANGLES, len(slices), bins), seed + 1, metal.device)
    sums = torch.zeros(len(slices), rows, columns, device=metal.device)
    for k in range(ANGLES):
        c, s = cos(pi * (k + 0.5) / ANGLES), sin(pi * (k + 0.5) / ANGLES)
        at = (x[column] * c + y[row] * s) / step + bins / 2
        rays = torch.zeros(len(slices) * bins, dtype=torch.int64, device=metal.device)
        for d in (0, 1):  # in whole numbers, so that the order of the sum is without effect
            weight = (1 - (at - at.floor() - d).abs()) * 1024
            rays.index_add_(0, number * bins + at.floor().long() + d, weight.round().long())
        # linear weights on the bins turn counts of voxels into mm along the ray
        path = rays.unflatten(0, (-1, bins)).to(out.dtype) * (spacing[1] * spacing[2] / step / 1024)
        lost = -0.10 * path.square() / (path + 8) + 0.06 * noise[k] * (path / 8).clamp(max=1.5)
        filtered = torch.fft.irfft(torch.fft.rfft(lost, n=2 * bins) * window, n=2 * bins)[:, :bins]
        place = (x[None, :] * c + y[:, None] * s) / step + bins / 2
        low = place.floor().long()
        left, right = filtered[:, low.flatten()], filtered[:, low.flatten() + 1]
        sums += torch.lerp(left, right, (place - low).flatten()).unflatten(1, (rows, columns))
    out[slices] = sums * (pi / ANGLES) * 1000 / 0.02
    return out
