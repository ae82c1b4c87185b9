"""The part of the fixed field of view that is worked on: the body and its bones. Beyond, fields go on as they end there."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import pad

from osteomorph.case import Case
from osteomorph.foreground import foreground
from osteomorph.geometry import Grid
from osteomorph.image import Image
from osteomorph.polyrigid import Polyrigid
from osteomorph.prepare import cropped_fixed
from osteomorph.soft_field import held_mm
from osteomorph.transforms import Displacement, Velocity

AROUND_MM = 6.0
"""Of what is worked on, around the box that holds the body, beside what `foreground` has of it."""

FILLED = 0.9
"""Share of the field of view from which on that box is taken to be all of it."""


def body_corners_mm(image: Image, mask: Image | None = None) -> Float64[Tensor, "3 8"]:
    """World corners of the box along the array axes around all that `foreground`, or a mask on the same grid, gives a say."""
    seen = foreground(image).data[0].numpy() > 0.5
    if mask is not None:
        seen |= mask.data[0].numpy() > 0
    if not seen.any():
        return image.grid.corners_mm
    i, j, k = (np.flatnonzero(seen.any(others)) for others in ((1, 2), (0, 2), (0, 1)))
    box = image.grid.cropped(
        (slice(int(i[0]), int(i[-1]) + 1), slice(int(j[0]), int(j[-1]) + 1), slice(int(k[0]), int(k[-1]) + 1))
    )
    return (box if box.voxels < FILLED * image.grid.voxels else image.grid).corners_mm


def about(image: Image, corners_mm: Float64[Tensor, "3 8"]) -> Image:
    """What of an image lies within `AROUND_MM` of a box; all of it where it lies nowhere near."""
    part = image.grid.around(corners_mm, AROUND_MM)
    return image if part is None else image.cropped(part)


def around_body_and_bones(prepared: Case, base: Polyrigid, ramp_mm: float) -> Case:
    """The fixed side without the air around: the box of the body, of the fixed mask, and of all that bones hold (`ramp`)."""
    grid = prepared.fixed.grid
    boxes = [grid.around(body_corners_mm(prepared.fixed, prepared.fixed_mask), AROUND_MM)]
    boxes += [body.region.box_on(grid, held_mm(grid, ramp_mm)) for body in base.bodies]
    sides = zip(*[box for box in boxes if box is not None], strict=True)
    i, j, k = (slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)
    return cropped_fixed(prepared, (i, j, k))


def continued(field: Displacement | Velocity, onto: Grid) -> Displacement | Velocity:
    """A field on a grid that holds its own voxels; around these with the values at their border."""
    part = onto.part(field.grid)
    if part is None:
        raise ValueError("A field is continued on a grid that holds its own voxels.")
    widths = [w for side, n in zip(reversed(part), reversed(onto.shape), strict=True) for w in (side.start, n - side.stop)]
    return replace(field, vectors=pad(field.vectors[None], widths, mode="replicate")[0], grid=onto)
