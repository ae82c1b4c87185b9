"""Two estimates of one field that fail in different ways, averaged where they agree: there their errors partly cancel.

A search that looks at many displacements of each node errs by its noise and its nodes; an optimisation by where it got stuck.
Where they lie apart, one of them is wrong, and which one is not told: the optimisation's field is kept.
"""

import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from osteomorph.geometry import Grid, sample
from osteomorph.transforms import Displacement

SMOOTH_MM = 8.0
"""Standard deviation of the Gaussian over squared differences: of one place alone, chance tells whether two fields agree."""


def agreed(
    vectors: Float[Tensor, "3 i j k"], hold: Float[Tensor, "i j k"], grid: Grid, guess: Displacement, within_mm: float
) -> Float[Tensor, "3 i j k"]:
    """The field, in place, with a share w of a guess: w = exp(-d^2 / (2 within_mm^2)) / 2, d how far they lie apart there.

    vectors: mm at the voxels of ``grid``. hold: 0 to 1 there, what of the guess counts. guess: mm on a coarser grid.
    """
    nodes = guess.grid.points().flatten(1)
    held = guess.vectors.flatten(1) * sample(hold[None], grid, nodes)
    apart = (held - sample(vectors, grid, nodes)).square().sum(0).unflatten(0, guess.grid.shape)
    apart = torch.from_numpy(gaussian_filter(apart.numpy(), SMOOTH_MM / guess.grid.spacing_mm, mode="nearest"))
    share = 0.5 * torch.exp(-apart / (2 * within_mm**2))
    both = torch.cat([guess.vectors, share[None]])
    for planes, part in grid.slabs():
        there = sample(both, guess.grid, part.points().flatten(1)).unflatten(1, part.shape)
        here = vectors[:, planes]
        here.add_(there[3] * (there[:3] * hold[planes] - here))
    return vectors
