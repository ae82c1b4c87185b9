"""Preparing: each side of a case on its own isotropic grid, intensities in [0, 1]."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import pad

from osteomorph.case import Case
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels, Part
from osteomorph.plan import PreparePlan
from osteomorph.resampling import regrid, regrid_labels, resample
from osteomorph.threads import spread
from osteomorph.transforms import Rigid

MARGIN_MM = 15.0
"""What the carried moving image reaches beyond the fixed field of view, for what the warp brings in."""

NEAR_MM = 70.0
"""Beyond the fixed field of view, what of the moving image is kept once it is started: more than any search reaches."""

STEP_MM = 0.05
"""By which the spacing grows where a field of view is too large for it."""

PADDING_SHARE = 0.01
"""Share of the voxels that have exactly the lowest value, from which on that value is taken for padding."""


def prepare(case: Case, plan: PreparePlan) -> Case:
    """Each side on its own isotropic grid, cropped or padded to ``plan.shape``, intensities mapped to [0, 1] (thesis, 3.2).

    Images go through a Lanczos kernel, labels take the nearest voxel, masks are interpolated linearly; directions stay, so
    that nothing is rotated. A side that lies on such a grid already is not interpolated. Voxels that the padding adds hold
    the image's minimum, label 0 and mask 0.

    Raises InputError when an image has no contrast, or when no label is left.
    """
    given = (
        ("fixed", case.fixed, case.fixed_labels, case.fixed_mask),
        ("moving", case.moving, case.moving_labels, case.moving_mask),
    )
    (fixed, fixed_labels, fixed_mask), (moving, moving_labels, moving_mask) = spread(lambda side: _side(*side, plan), given)
    return Case(fixed, moving, fixed_labels, moving_labels, fixed_mask, moving_mask)


def canonical_grid(grid: Grid, plan: PreparePlan) -> Grid:
    """The isotropic grid that an image on ``grid`` is prepared on."""
    even = grid if np.allclose(grid.spacing_mm, plan.spacing_mm, atol=1e-4) else grid.resampled(plan.spacing_mm)
    if plan.shape is None:
        return even
    shape = [0, 0, 0]
    for ends, voxels in zip(("PA", "IS", "LR"), plan.shape, strict=True):
        shape[even.axis(ends)] = voxels
    return even.about_centre((shape[0], shape[1], shape[2]))


def affordable(plan: PreparePlan, fixed: Grid) -> PreparePlan:
    """The plan with its spacing raised, in steps of `STEP_MM`, until a fixed image on that grid has at most ``most_voxels``.

    A plan that names no such number, or a shape, is kept as it is.
    """
    while plan.most_voxels is not None and plan.shape is None and canonical_grid(fixed, plan).voxels > plan.most_voxels:
        plan = plan.model_copy(update={"spacing_mm": round(plan.spacing_mm + STEP_MM, 6)})
    return plan


def moved_case(case: Case, rigid: Rigid) -> Case:
    """The moving side carried into fixed space, moved(x) = moving(rigid(x)), without interpolation: its grids move.

    A voxel at y in moving space lies at rigid^-1(y) in fixed space. Array axes stay those of the moving image; where a
    similarity compares neighbours along array axes, ``resampled_case`` gives both sides the same ones.
    """
    matrix = rigid.inverse().matrix
    image, labels, mask = case.moving, case.moving_labels, case.moving_mask
    return replace(
        case,
        moving=replace(image, grid=image.grid.moved(matrix)),
        moving_labels=None if labels is None else replace(labels, grid=labels.grid.moved(matrix)),
        moving_mask=None if mask is None else replace(mask, grid=mask.grid.moved(matrix)),
    )


def resampled_case(case: Case, rigid: Rigid, margin_mm: float = MARGIN_MM) -> Case:
    """The moving side interpolated once onto the fixed lattice, which reaches ``margin_mm`` beyond the fixed field of view.

    Image linearly, labels to the nearest voxel. Where the moving image has no data its border is repeated and its mask is 0.
    """
    margin = np.ceil(margin_mm / case.fixed.grid.spacing_mm).astype(int).tolist()
    onto = case.fixed.grid.padded((margin[0], margin[1], margin[2]))
    known = Image(torch.ones_like(case.moving.data[:1]), case.moving.grid) if case.moving_mask is None else case.moving_mask
    return replace(
        case,
        moving=resample(case.moving, rigid, onto, outside="border"),  # a step there would look like anatomy
        moving_labels=None if case.moving_labels is None else resample(case.moving_labels, rigid, onto),
        moving_mask=resample(known, rigid, onto, outside=0.0),
    )


def with_labels(prepared: Case, case: Case) -> Case:
    """A prepared case with the labels of the case it was made of, on its own grids."""
    return replace(
        prepared,
        fixed_labels=_labels("fixed", case.fixed_labels, prepared.fixed.grid),
        moving_labels=_labels("moving", case.moving_labels, prepared.moving.grid),
    )


def near(grid: Grid, other: Grid, motion: Rigid) -> Part | None:
    """What of a grid another one shows after a motion that leads from there, and `NEAR_MM` around it; None for nothing."""
    return grid.around(motion(other.corners_mm), NEAR_MM)


def cropped_moving(case: Case, rigid: Rigid) -> Case:
    """The moving side without what lies far from anything that the fixed image shows."""
    part = near(case.moving.grid, case.fixed.grid, rigid)
    if part is None:
        return case
    image, labels, mask = _cropped((case.moving, case.moving_labels, case.moving_mask), part)
    return replace(case, moving=image, moving_labels=labels, moving_mask=mask)


def cropped_fixed(case: Case, part: Part) -> Case:
    """A part of the fixed side."""
    image, labels, mask = _cropped((case.fixed, case.fixed_labels, case.fixed_mask), part)
    return replace(case, fixed=image, fixed_labels=labels, fixed_mask=mask)


def _cropped(side: "Side", part: Part) -> "Side":
    image, labels, mask = side
    return image.cropped(part), None if labels is None else labels.cropped(part), None if mask is None else mask.cropped(part)


Side = tuple[Image, Labels | None, Image | None]


def _side(name: str, image: Image, labels: Labels | None, mask: Image | None, plan: PreparePlan) -> Side:
    grid = canonical_grid(image.grid, plan)
    even = canonical_grid(image.grid, plan.model_copy(update={"shape": None}))
    inner, before, after = _common(even, grid)
    filled = _fill_padding(image)
    low = float(filled.data.min())
    data = regrid(filled, inner).data.clamp(min=low)
    data = _windowed(name, data, low, plan, before, after)
    if mask is not None:
        on_grid = resample(mask, Rigid.identity(), grid, outside=0.0)
        mask = on_grid.with_data(on_grid.data.clamp(0, 1))
    elif max(*before, *after) > 0:
        mask = Image(_padded(torch.ones(1, *inner.shape), before, after, 0.0), grid)
    return Image(data, grid, image.stored), _labels(name, labels, grid), mask


def _common(even: Grid, grid: Grid) -> tuple[Grid, tuple[int, int, int], tuple[int, int, int]]:
    """What two grids of one lattice share, and the voxels that ``grid`` has before and after it."""
    offset = even.index(grid.world(torch.zeros(3, 1, dtype=torch.float64)))[:, 0].round().int().tolist()
    before = [max(0, -o) for o in offset]
    after = [max(0, o + n - m) for o, n, m in zip(offset, grid.shape, even.shape, strict=True)]
    inner = grid.padded((-before[0], -before[1], -before[2]), (-after[0], -after[1], -after[2]))
    return inner, (before[0], before[1], before[2]), (after[0], after[1], after[2])


def _fill_padding(image: Image) -> Image:
    """Padding (CT -2000 outside the scanner's circle, MR 0) raised to the lowest value that was measured.

    Otherwise it takes half the range of the percentiles, and rings in the Lanczos kernel.
    """
    low, high = image.data.aminmax()
    count, floor = 0, float(high)
    for part in image.data.split(1, 1):  # a plane at a time stays in the cache
        padding = part == low
        count += int(padding.count_nonzero())
        floor = min(floor, float(part.masked_fill(padding, float(high)).min()))
    if count < PADDING_SHARE * image.data.numel() or floor == float(high):
        return image
    return image.with_data(image.data.clamp(min=floor))


def _windowed(
    name: str, data: torch.Tensor, low: float, plan: PreparePlan, before: tuple[int, int, int], after: tuple[int, int, int]
) -> torch.Tensor:
    """Percentiles of each channel's field of view to 0 and 1, then the padding, whose value is the image's minimum. In place
    where there is no padding."""
    windows = [_window(name, channel.numpy(), plan.percentiles) for channel in data]
    data = _padded(data, before, after, low)
    for channel, (start, end) in zip(data, windows, strict=True):
        channel.sub_(start).div_(end - start)
    return data.clamp_(0, 1) if plan.clip else data


def _padded(data: torch.Tensor, before: tuple[int, int, int], after: tuple[int, int, int], value: float) -> torch.Tensor:
    widths = [w for b, a in zip(reversed(before), reversed(after), strict=True) for w in (b, a)]
    return pad(data, widths, value=value) if any(widths) else data


def _window(name: str, values: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    """The percentiles; where most voxels are background of one value, those of the others."""
    start, end = np.percentile(values, percentiles)
    rounding = 1e-5 * float(np.abs(values).max())
    if end - start <= rounding and (rest := values[values > start + rounding]).size:
        end = np.percentile(rest, percentiles[1])
    if not end - start > rounding:
        raise InputError(
            f"The {name} image has no contrast: its {percentiles[0]:g}th and {percentiles[1]:g}th percentile are both "
            f"{start:g}. Check that it is the right file and that the crop holds anatomy."
        )
    return float(start), float(end)


def _labels(name: str, labels: Labels | None, grid: Grid) -> Labels | None:
    if labels is None:
        return None
    if not labels.mask().any():
        raise InputError(f"The {name} label map holds no label. Give a map with at least one id above 0, or leave it out.")
    prepared = regrid_labels(labels, grid)
    if not prepared.mask().any():
        raise InputError(
            f"No {name} label is left on the prepared grid of {' x '.join(map(str, grid.shape))} voxels. "
            "Give a larger prepare.shape, or none to keep the field of view."
        )
    return prepared
