"""What CT and MR see of a tissue. Texture that only one of them sees keeps either from being a function of the other."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from osteomorph.geometry import Grid, sample
from osteomorph.simulate.anatomy import CHUNK, Anatomy


@final
class Look(NamedTuple):
    """Mean value of a tissue and the standard deviation of its textures."""

    mean: float
    common: float = 0.0
    own: float = 0.0
    fine: float = 0.0
    fibre: float = 0.0


CT = {  # Hounsfield units
    "skin": Look(25.0, 0.0, 10.0),
    "fat": Look(-102.0, 6.0, 4.0, 4.0),
    "muscle": Look(56.0, 5.0, 5.0, 3.0, 7.0),
    "ligament": Look(70.0, 0.0, 5.0),
    "annulus": Look(95.0, 0.0, 8.0),
    "nucleus": Look(78.0, 0.0, 8.0),
    "csf": Look(8.0),
    "cord": Look(36.0),
    "cartilage": Look(60.0),
    "cortex": Look(880.0, 0.0, 90.0, 60.0),
    "marrow": Look(215.0, 35.0, 30.0, 70.0),
    "vessel": Look(48.0),
    "vein": Look(45.0),
    "kidney": Look(36.0, 4.0, 3.0),
    "bowel": Look(18.0, 10.0, 20.0, 10.0),
    "gas": Look(-880.0),
}

MR = {  # arbitrary units
    "skin": Look(250.0, 0.0, 30.0),
    "fat": Look(660.0, 20.0, 40.0, 25.0),
    "muscle": Look(225.0, -18.0, 14.0, 8.0, 34.0),
    "ligament": Look(70.0, 0.0, 10.0),
    "annulus": Look(120.0, 0.0, 20.0),
    "nucleus": Look(390.0, 0.0, 45.0),
    "csf": Look(560.0, 0.0, 25.0),
    "cord": Look(330.0, 0.0, 10.0),
    "cartilage": Look(240.0, 0.0, 20.0),
    "cortex": Look(45.0, 0.0, 15.0),
    "marrow": Look(385.0, 20.0, 60.0, 28.0),
    "vessel": Look(110.0, 0.0, 30.0),
    "vein": Look(170.0, 0.0, 40.0),
    "kidney": Look(330.0, 12.0, 25.0),
    "bowel": Look(300.0, 10.0, 90.0, 30.0),
    "gas": Look(5.0),
}

AIR = {"ct": -1000.0, "mr": 4.0}


@final
class Texture(NamedTuple):
    """Five channels of unit variance in the anatomy frame, which tissue carries along.

    data: (5, i, j, k): seen by both, by CT alone, by MR alone, fine grain, fibres along z.
    """

    data: Float[Tensor, "5 i j k"]
    grid: Grid


def texture(seed: int) -> Texture:
    """Random texture that covers the body."""
    spacing, shape = 2.4, (80, 80, 80)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2 + np.array([0, -15, 0])
    generator = np.random.default_rng(seed)
    channels = []
    for sigma in (2.2, 2.2, 2.2, 0.6, (0.7, 0.7, 4.0)):
        smooth = ndimage.gaussian_filter(generator.standard_normal(shape, dtype=np.float32), sigma, mode="wrap")
        channels.append(smooth / smooth.std())
    return Texture(torch.as_tensor(np.stack(channels)), Grid(shape, affine))


def render(
    anatomy: Anatomy, points: Float[Tensor, "3 n"], edge_mm: float, textures: Texture, modality: str
) -> Float[Tensor, " n"]:
    """Values at anatomy-frame points; tissues pass into one another over ``edge_mm``. modality: ``"ct"`` or ``"mr"``."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(lambda part: _render(anatomy, part, edge_mm, textures, modality), points.float().split(CHUNK, dim=1))
        return torch.cat(list(parts))


def _render(anatomy: Anatomy, points: Tensor, edge_mm: float, textures: Texture, modality: str) -> Tensor:
    looks = CT if modality == "ct" else MR
    common, ct, mr, fine, fibre = sample(textures.data, textures.grid, points)
    own = ct if modality == "ct" else mr
    value = torch.full_like(common, AIR[modality])
    for name, distance in anatomy.tissues(points):
        part = (0.5 - distance / edge_mm).clamp(0, 1)
        look = looks[name]
        tissue = look.mean + look.common * common + look.own * own + look.fine * fine + look.fibre * fibre
        value += part * (tissue - value)
    return value


def ct_noise(values: Float[Tensor, "i j k"], sigma_hu: float, seed: int) -> Float[Tensor, "i j k"]:
    """Correlated Gaussian noise, as a soft kernel leaves it; HU are kept above -1024."""
    noise = np.random.default_rng(seed).standard_normal(tuple(values.shape), dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, 0.6)
    return (values + torch.as_tensor(noise * (sigma_hu / noise.std()))).clamp(min=-1024)


def mr_noise(values: Float[Tensor, "i j k"], bias: np.ndarray, sigma: float, seed: int) -> Float[Tensor, "i j k"]:
    """Receive field exp(bias), a quadratic in coordinates from -1 to 1, then Rician noise. bias: (9,)."""
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in values.shape], indexing="ij")
    terms = (x, y, z, x * x, y * y, z * z, x * y, y * z, z * x)
    field = sum((float(b) * t for b, t in zip(bias, terms, strict=True)), start=torch.zeros_like(x))
    real, imaginary = torch.as_tensor(np.random.default_rng(seed).standard_normal((2, *values.shape), dtype=np.float32)) * sigma
    return torch.hypot(values * field.exp() + real, imaginary)
