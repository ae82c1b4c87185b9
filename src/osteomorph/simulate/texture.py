"""Random texture of tissue. What only one scanner sees keeps the other's image from being a function of it."""

from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from osteomorph.geometry import Grid, sample
from osteomorph.simulate.anatomy import Points, Textures

SPACING_MM = 1.1
"""Between the knots of texture: about the distance of trabeculae that a clinical scanner tells apart."""

KNOTS = 80
"""Along each axis; texture repeats every KNOTS * SPACING_MM = 88 mm."""

Scales = tuple[tuple[float, float, float, float], ...]
"""Parts of a texture: share of the variance, then smoothing along x, y and z in mm."""

PATCHES: Scales = ((0.5, 6.0, 6.0, 7.0), (0.5, 2.5, 2.5, 3.0))
OWN: Scales = ((0.4, 4.5, 4.5, 5.0), (0.6, 1.6, 1.6, 1.9))
GRAIN: Scales = ((1.0, 0.7, 0.7, 1.0),)
STREAKS: Scales = ((0.7, 0.9, 1.1, 12.0), (0.3, 1.8, 2.2, 9.0))

SKEW = 0.9
"""How far streaks stand out from a quiet ground: they are the exponential of SKEW times a Gaussian field."""


@final
@dataclass(frozen=True, eq=False)
class TextureBank:
    """Texture of one patient, as each scanner sees it; anatomy frame, so that tissue carries it along.

    ct, mr: (4, n, n, n) unit-variance, in the order common, own, fine, fibre; common and fibre are the same in both. The last
    knot along each axis repeats the first.
    """

    ct: Float[Tensor, "4 n n n"] = field(repr=False)
    mr: Float[Tensor, "4 n n n"] = field(repr=False)

    @property
    def device(self) -> torch.device:
        return self.ct.device

    def for_ct(self) -> Textures:
        return _Wrapped(self.ct)

    def for_mr(self) -> Textures:
        return _Wrapped(self.mr)


@final
class _Wrapped:
    """Texture at any point, by repeating a cube."""

    def __init__(self, data: Tensor) -> None:
        self.data = data
        self.grid = Grid((KNOTS + 1,) * 3, np.diag([SPACING_MM] * 3 + [1.0]))

    def __call__(self, points: Points) -> Float[Tensor, "4 n"]:
        return sample(self.data, self.grid, points.remainder(KNOTS * SPACING_MM))


def texture(seed: int, device: torch.device | str = "cpu") -> TextureBank:
    """Texture for a patient: Gaussian fields by filtering white noise, streaks along z by their exponential.

    Noise is drawn on the CPU, so that a seed means the same on every device.
    """
    white = torch.randn(6, KNOTS, KNOTS, KNOTS, generator=torch.Generator().manual_seed(seed)).to(device)
    spectrum = torch.fft.rfftn(white, dim=(1, 2, 3))
    kinds = (PATCHES, OWN, OWN, GRAIN, GRAIN, STREAKS)
    spectrum *= torch.stack([_amplitude(kind, spectrum.device) for kind in kinds])
    common, own_ct, own_mr, fine_ct, fine_mr, fibre = torch.fft.irfftn(spectrum, s=(KNOTS,) * 3, dim=(1, 2, 3))
    fibre = (SKEW * fibre / fibre.std()).exp()
    ct, mr = (_wrap(torch.stack([common, own, fine, fibre])) for own, fine in ((own_ct, fine_ct), (own_mr, fine_mr)))
    return TextureBank(ct, mr)


def _amplitude(scales: Scales, device: torch.device) -> Tensor:
    """Filter in Fourier space: the root of the sum of the parts' power."""
    whole = torch.fft.fftfreq(KNOTS, SPACING_MM, device=device)
    half = torch.fft.rfftfreq(KNOTS, SPACING_MM, device=device)
    power = torch.zeros(KNOTS, KNOTS, len(half), device=device)
    for share, *sigma in scales:
        u, v, w = (
            (-4 * (torch.pi * f * s).square()).exp() for f, s in zip((whole, whole, half), sigma, strict=True)
        )  # squared Gaussians
        part = u[:, None, None] * v[:, None] * w
        power += share * part / part.mean()
    return power.sqrt()


def _wrap(data: Tensor) -> Tensor:
    """Zero mean, unit variance between the knots as at them, first knots repeated at the end."""
    for axis in (1, 2, 3):
        data = torch.cat([data, data.narrow(axis, 0, 1)], axis)
    data = data - data.mean((1, 2, 3), keepdim=True)
    middle = sum(data[:, i : i + KNOTS, j : j + KNOTS, k : k + KNOTS] for i in (0, 1) for j in (0, 1) for k in (0, 1)) / 8
    assert isinstance(middle, Tensor)
    # the variance of linear interpolation falls from the knots to the middle of a cell; a mean of both is kept
    return data / ((data.var((1, 2, 3)) + middle.var((1, 2, 3))) / 2).sqrt()[:, None, None, None]
