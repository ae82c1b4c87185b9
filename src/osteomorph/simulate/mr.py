"""An MR scan of an anatomy: signal of water and fat by the sequence's equation, then what coil, k-space and noise do to it."""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, prod, sin
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from osteomorph.geometry import Grid
from osteomorph.image import Image
from osteomorph.simulate.anatomy import TISSUES, Anatomy, Look, Palette, Points
from osteomorph.simulate.contrast import FAT_HZ, Sequence, mixed, mr_palettes
from osteomorph.simulate.scanner import look, slice_axis, white, wished
from osteomorph.simulate.shapes import Real
from osteomorph.simulate.texture import TextureBank

CONTRASTS = ("gre", "gre-in", "gre-out", "t1", "t2", "water", "random")
"""The thesis' gradient echo (TE/TR 2/7 ms); gradient echoes with fat in and out of phase; T1 and T2 spin echo; the water
image of a Dixon scan; means of tissues by chance alone."""

MOST = 4095.0

Row = tuple[float, float, float, float, float]

BIAS_MM = 150.0
"""Unit of length of the receive field."""


@final
@dataclass(frozen=True)
class MrScan:
    """All numbers of one scan."""

    contrast: str
    gradient_echo: bool
    repetition_ms: float
    echo_ms: float
    flip_deg: float
    marrow_fat: float
    """Fat fraction of marrow."""
    marrow_t2_star_ms: float
    inflow: float
    """Brightness of fresh blood in a gradient echo, relative to blood at rest."""
    fat_left: float
    """Share of fat that a water image still shows."""
    looks: tuple[Row, ...]
    """Of every tissue, with contrast ``"random"``; else none."""
    scale: float
    """Intensity of the brightest usual tissue."""
    noise: float
    """Of each of the two receiver channels, relative to the brightest usual tissue."""
    bias: tuple[float, ...]
    """Logarithm of the receive field: factors of x, y, z, xx, yy, zz, xy, yz, zx in units of BIAS_MM from the grid's middle."""
    encoding: tuple[str, str, str]
    """Frequency axis, then phase axis: the first two of these that do not run across thick slices."""
    fat_shift_mm: float
    """Chemical shift of fat along the frequency axis (towards right, front, up)."""
    matrix: tuple[float, float]
    """Share of k-space measured along the frequency and the phase axis; the rest is filled with zeros."""
    apodise: float
    """0 cuts k-space off and rings most, 1 fades it out (Hann)."""
    ghost: float
    """Strength of a ghost half a field of view away along the phase axis."""
    seed: int

    def acquire(self, anatomy: Anatomy, where: Callable[[Points], Points], grid: Grid, bank: TextureBank) -> Image:
        """Magnitude, whole numbers from 0 to 4095, on the device of the texture.

        where: world mm of the grid -> anatomy mm, the true deformation.
        """
        painted = look(anatomy, where, grid, self._palettes(), bank.for_mr(), bank.device)
        across = slice_axis(grid)
        frequency, phase = [a for a in map(grid.axis, self.encoding) if a != across][:2]
        real, imaginary = painted[0], None
        if len(painted) == 2:
            ends = self.encoding[[grid.axis(e) for e in self.encoding].index(frequency)]
            fat = shifted(painted[1], frequency, self.fat_shift_mm * _sense(grid, frequency, ends) / grid.spacing_mm[frequency])
            angle = 2 * pi * FAT_HZ * self.echo_ms / 1000 if self.gradient_echo else 0.0
            real, imaginary = real + cos(angle) * fat, sin(angle) * fat if self.gradient_echo else None
        field = self._field(grid, real.device)
        filters = [
            self._window(grid.shape[a], share, real.device) for a, share in zip((frequency, phase), self.matrix, strict=True)
        ]
        # noise is measured in k-space too: it is cut off with the rest, and made to come out as strong as stated
        gain = prod(float(f.square().mean().sqrt()) for f in filters)
        noise = white((2, *grid.shape), self.seed, real.device) * (self.noise / gain)
        parts = []
        for part, grain in zip((real, imaginary), noise, strict=True):
            total = grain if part is None else part * field + grain
            for axis, window in zip((frequency, phase), filters, strict=True):
                total = cut(total, axis, window)
            if self.ghost and part is not None:
                total = total + self.ghost * total.roll(grid.shape[phase] // 2, phase)
            parts.append(total)
        data = (torch.hypot(*parts) * self.scale).round().clamp(0, MOST)
        return Image(data[None], grid, np.dtype(np.int16))

    def _palettes(self) -> list[Palette]:
        if self.contrast == "random":
            return [{name: Look(*row) for name, row in zip(TISSUES, self.looks, strict=True)}]
        sequence = Sequence(self.gradient_echo, self.repetition_ms, self.echo_ms, self.flip_deg)
        water, fat = mr_palettes(sequence, self.marrow_fat, self.marrow_t2_star_ms, self.inflow)
        return [mixed(water, 1.0, fat, self.fat_left)] if self.contrast == "water" else [water, fat]

    def _field(self, grid: Grid, device: torch.device) -> Tensor:
        """Receive field at the voxels, by a polynomial in world mm, so that it is the same on every grid."""
        x, y, z = _unit(grid, device)
        a, b, c, aa, bb, cc, ab, bc, ca = self.bias
        log = x * (a + aa * x + ab * y) + y * (b + bb * y + bc * z) + z * (c + cc * z + ca * x)
        return log.clamp(-1.5, 1.5).exp()

    def _window(self, n: int, share: float, device: torch.device) -> Tensor:
        """Weights of the frequencies of a row of n voxels and its mirror image, as rfft orders them."""
        f = torch.linspace(0, 1, n + 1, device=device) / share  # 1 at the border of what was measured
        fade = 1 - self.apodise * (0.5 - 0.5 * torch.cos(pi * f.clamp(max=1)))
        return fade * (f <= 1)


def draw_mr(generator: np.random.Generator, contrast: str = "gre", **numbers: Any) -> MrScan:
    """A scan of one contrast at 3 T as found in practice. numbers: fields of MrScan to be taken as given.

    Raises ValueError for an unknown contrast or a name that is no field.
    """

    def between(low: Real, high: Real) -> float:
        return float(generator.uniform(low, high))

    if contrast not in CONTRASTS:
        raise ValueError(f"No MR contrast {contrast!r}; there are {', '.join(CONTRASTS)}.")
    timing = {
        "gre": (True, between(6.6, 7.4), between(1.9, 2.1), between(8, 12)),
        "gre-in": (True, between(6.0, 7.5), 2.3, between(8, 12)),
        "gre-out": (True, between(4.5, 7.0), 1.15, between(8, 12)),
        "t1": (False, between(450, 750), between(8, 14), 90.0),
        "t2": (False, between(3200, 6000), between(80, 115), 90.0),
        "water": (False, between(3500, 5500), between(12, 25), 90.0),
        "random": (False, 0.0, 0.0, 90.0),
    }[contrast]
    drawn = MrScan(
        contrast,
        *timing,
        marrow_fat=between(0.35, 0.6),
        marrow_t2_star_ms=between(7, 16),
        inflow=between(0.8, 2.2),
        fat_left=between(0.01, 0.08),
        looks=_random_looks(generator) if contrast == "random" else (),
        scale=between(500, 1500),
        noise=float(np.exp(between(*np.log((0.006, 0.045))))),
        bias=_draw_bias(generator, coil=between(0.0, 1.3)),
        encoding=(("IS", "PA", "LR"), ("PA", "IS", "LR"), ("LR", "PA", "IS"))[int(generator.choice(3, p=(0.5, 0.3, 0.2)))],
        fat_shift_mm=float(generator.choice((-1, 1))) * (between(0.05, 0.3) if timing[0] else between(0.1, 0.5)),
        matrix=(between(0.75, 1.0), between(0.6, 0.95)),
        apodise=between(0.3, 0.9),
        ghost=0.0,
        seed=int(generator.integers(0, 2**31)),
    )
    return wished(drawn, numbers)


def _draw_bias(generator: np.random.Generator, coil: float) -> tuple[float, ...]:
    """Smooth inhomogeneity, and the spine coil's fall from back to front. coil: logarithm lost over BIAS_MM."""
    bias = generator.normal(0, (0.10, 0.08, 0.12, 0.07, 0.07, 0.10, 0.06, 0.06, 0.06)).clip(-0.3, 0.3)
    bias[1] -= coil
    bias[4] += 0.3 * coil  # it falls ever more slowly
    return tuple(bias.tolist())


def _random_looks(generator: np.random.Generator) -> tuple[Row, ...]:
    """Means and textures by chance; air and gas mostly dark."""
    out = []
    for name in TISSUES:
        mean = float(generator.uniform(0.03, 1.0))
        if name in ("air", "gas", "table", "metal") and generator.random() < 0.8:
            mean *= 0.1
        spread = generator.uniform(0.0, (0.03, 0.06, 0.05, 0.05)) * generator.choice((-1, 1), 4)
        common, own, fine, fibre = (float(s) for s in spread * (0.3 + mean) * (name not in ("air", "gas")))
        out.append((mean, common, own, fine, fibre))
    return tuple(out)


# -- pieces ---------------------------------------------------------------------------------------------------------------
def cut(data: Tensor, axis: int, window: Tensor) -> Tensor:
    """Weights on the frequencies along one axis; rows are continued by their mirror image, so that ends do not ring."""
    rows = data.movedim(axis, -1)
    spectrum = torch.fft.rfft(torch.cat([rows, rows.flip(-1)], -1)) * window
    return torch.fft.irfft(spectrum, n=2 * rows.shape[-1])[..., : rows.shape[-1]].movedim(-1, axis)


def shifted(data: Tensor, axis: int, voxels: float) -> Tensor:
    """Moved along an axis by a fraction of voxels, linearly; border values repeated."""
    n = data.shape[axis]
    at = (torch.arange(n, device=data.device) - voxels).clamp(0, n - 1)
    low = at.floor().long().clamp(max=max(0, n - 2))
    high = (low + 1).clamp(max=n - 1)
    weight = (at - low).to(data.dtype)
    rows = data.movedim(axis, -1)
    return torch.lerp(rows[..., low], rows[..., high], weight).movedim(-1, axis)


def _sense(grid: Grid, axis: int, ends: str) -> float:
    """1 where an array axis runs towards right, front or up, else -1."""
    return 1.0 if grid.direction[("LR", "PA", "IS").index(ends), axis] > 0 else -1.0


def _unit(grid: Grid, device: torch.device) -> Tensor:
    """World coordinates from the grid's middle, in units of BIAS_MM."""
    points = grid.points(device=device)
    centre = torch.as_tensor(grid.centre_mm, dtype=points.dtype, device=device)
    return (points - centre[:, None, None, None]) / BIAS_MM
