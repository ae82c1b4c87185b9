"""Two estimates of one field that fail in different ways, averaged where they agree: there their errors partly cancel.

A search that looks at many displacements of each node errs by its noise and its nodes; an optimisation by where it got stuck.
Where they lie apart, or the images look less alike under the search's, the optimisation's field is kept.
"""

import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from osteomorph.case import Case
from osteomorph.geometry import Grid, sample
from osteomorph.resampling import coarser, finer
from osteomorph.similarity import mind_ssc
from osteomorph.threads import spread
from osteomorph.transforms import Displacement

SMOOTH_MM = 8.0
"""Standard deviation of the Gaussian over squared differences: of one place alone, chance tells whether two fields agree."""

COMPARED_MM = 2.0
"""Spacing at which images are compared under either field."""

WORSE = 10
"""Power of the ratio of both fields' differences, where the search's is the larger one: at 1.07 times it has half its share."""

EQUAL = 1e-6
"""Mean squared difference of features below which they are equal."""


def agreed(
    vectors: Float[Tensor, "3 i j k"],
    hold: Float[Tensor, "i j k"],
    grid: Grid,
    guess: Displacement,
    within_mm: float,
    case: Case,
) -> Float[Tensor, "3 i j k"]:
    """The field, in place, with a share w of a guess: w = exp(-d^2 / (2 within_mm^2)) min(1, e / e')^WORSE / 2, d how far they
    lie apart there, e and e' how much MIND-SSC differs under the field and under the guess.

    vectors: mm at the voxels of ``grid``. hold: 0 to 1 there, what of the guess counts. guess: mm on a coarser grid. case: the
    images that the field was found on, of one world.
    """
    nodes = guess.grid.points().flatten(1)
    held = guess.vectors.flatten(1) * sample(hold[None], grid, nodes)
    apart = (held - sample(vectors, grid, nodes)).square().sum(0).unflatten(0, guess.grid.shape)
    apart = torch.from_numpy(gaussian_filter(apart.numpy(), SMOOTH_MM / guess.grid.spacing_mm, mode="nearest"))
    worse = sample(_ratio(vectors, hold, grid, guess, case), coarser(case.fixed, COMPARED_MM).grid, nodes)
    share = 0.5 * torch.exp(-apart / (2 * within_mm**2)) * worse.clamp(max=1).pow(WORSE).view_as(apart)
    both = torch.cat([guess.vectors, share[None]])
    for planes, part in grid.slabs():
        there = finer(both, guess.grid, part)
        here = vectors[:, planes]
        here.add_(there[3] * (there[:3] * hold[planes] - here))
    return vectors


def _ratio(
    vectors: Float[Tensor, "3 i j k"], hold: Float[Tensor, "i j k"], grid: Grid, guess: Displacement, case: Case
) -> Float[Tensor, "1 p q r"]:
    """e / e' of `agreed`, at `COMPARED_MM`."""
    fixed, moving = (coarser(image, COMPARED_MM) for image in (case.fixed, case.moving))
    there = fixed.grid.points().flatten(1)
    here = mind_ssc(fixed.data[:1])

    def difference(field: Float[Tensor, "3 n"]) -> Tensor:
        moved = sample(moving.data[:1], moving.grid, there + field).unflatten(1, fixed.grid.shape)
        left = (here - mind_ssc(moved)).square_().mean(0)
        return torch.from_numpy(gaussian_filter(left.numpy(), SMOOTH_MM / fixed.grid.spacing_mm, mode="nearest"))

    held = sample(guess.vectors, guess.grid, there) * sample(hold[None], grid, there)
    own, other = spread(difference, (sample(vectors, grid, there), held))
    return ((own + EQUAL) / (other + EQUAL))[None]
