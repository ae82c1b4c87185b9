"""Images and labels on another grid: through a transform, or along their own axes."""

from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import Literal, overload

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from osteomorph.fields import along_axes
from osteomorph.geometry import Grid, Interpolation, affine_ramps, sample_at, sample_unit
from osteomorph.image import Image, Labels
from osteomorph.kept import kept
from osteomorph.transforms import Rigid, Transform

Kernel = Literal["linear", "bspline"]
Outside = float | Literal["minimum", "border"]
"""Value beyond the field of view: a number, the image's minimum, or that of the nearest border voxel."""

LANCZOS_LOBES = 5
"""Half-width of the windowed sinc in voxels, as in SimpleITK."""


@overload
def resample(
    moving: Image, transform: Transform, onto: Grid, kernel: Kernel = "linear", outside: Outside = "minimum"
) -> Image: ...
@overload
def resample(moving: Labels, transform: Transform, onto: Grid) -> Labels: ...
def resample(
    moving: Image | Labels, transform: Transform, onto: Grid, kernel: Kernel = "linear", outside: Outside = "minimum"
) -> Image | Labels:
    """moved(x) = moving(T(x)), x at the voxel centres of ``onto``.

    Labels take the nearest voxel and 0 outside. Images are interpolated linearly or by a cubic B-spline (mirrored at the
    border, as in ITK) and take ``outside`` beyond their field of view.
    """
    if isinstance(moving, Labels):
        return Labels(_by_slab(moving, transform, onto, "nearest", 0.0), onto, moving.names, moving.stored)
    fill = float(moving.data.min()) if outside == "minimum" else None if outside == "border" else outside
    if kernel == "bspline":
        if fill is None:
            raise ValueError("The B-spline has no value beyond the border; give a number, or interpolate linearly.")
        return Image(_bspline(moving, transform, onto, fill), onto, moving.stored)
    return Image(_by_slab(moving, transform, onto, "linear", fill), onto, moving.stored)


def _by_slab(moving: Image | Labels, transform: Transform, onto: Grid, how: Interpolation, outside: float | None) -> Tensor:
    out = torch.empty(moving.data.shape[0], *onto.shape, dtype=moving.data.dtype)
    working = torch.float32 if how == "linear" else torch.float64
    for planes, part in onto.slabs():
        if isinstance(transform, Rigid) and how == "linear" and outside is None:
            to_unit = moving.grid.to_unit @ part.moved(transform.matrix).affine
            unit = affine_ramps(to_unit, part.shape, moving.data.dtype).flatten(1)
            out[:, planes] = sample_unit(moving.data, unit).unflatten(-1, part.shape)
            continue
        if isinstance(transform, Rigid):  # lattices stay lattices
            index = moving.grid.index_of(part.moved(transform.matrix), working).flatten(1)
        else:
            index = moving.grid.index(transform.carried(part))
        out[:, planes] = sample_at(moving.data, index, how, outside).unflatten(-1, part.shape)
    return out


def _bspline(moving: Image, transform: Transform, onto: Grid, fill: float) -> Float[Tensor, "c i j k"]:
    order = _as_axes_of(onto, moving.grid)  # points that follow one another then look at neighbours in memory
    coefficients = [
        ndimage.spline_filter(np.ascontiguousarray(c.numpy().transpose(order)), order=3, output=np.float32, mode="mirror")
        for c in moving.data
    ]
    out = torch.empty(len(coefficients), *onto.shape, dtype=moving.data.dtype)

    def fill_slab(slab: tuple[slice, Grid]) -> None:
        planes, part = slab
        index = moving.grid.index(transform.carried(part))
        inside = moving.grid.holds(index)
        whole = bool(inside.all())
        shown = (index if whole else index[:, inside])[list(order)].numpy()
        for c, coefficient in enumerate(coefficients):
            found = ndimage.map_coordinates(coefficient, shown, order=3, mode="mirror", prefilter=False, output=np.float32)
            values = torch.from_numpy(found).to(out.dtype)
            if not whole:
                values = torch.full((index.shape[1],), fill, dtype=out.dtype).masked_scatter_(inside, values)
            out[c, planes] = values.unflatten(-1, part.shape)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill_slab, onto.slabs()))
    return out


def _as_axes_of(first: Grid, second: Grid) -> tuple[int, ...]:
    """The second grid's array axes in the order in which they run along the first one's, as far as they do."""
    along = np.abs(first.direction.T @ second.direction)
    return max(permutations(range(3)), key=lambda order: along[range(3), list(order)].sum())


@kept
def coarser(image: Image, spacing_mm: float) -> Image:
    """The image at an isotropic spacing, along an axis its own where that is longer; made once for as long as it lives."""
    return regrid(image, image.grid.resampled(np.maximum(spacing_mm, image.grid.spacing_mm)))


def regrid(image: Image, onto: Grid) -> Image:
    """The image on a grid of the same directions, by a Lanczos-windowed sinc along each axis.

    Where the new spacing is the coarser one, the kernel widens with it, so that nothing aliases. Beyond the outer voxel
    centres the border value is repeated.
    """
    if not np.allclose(image.grid.direction, onto.direction, atol=1e-6):
        raise ValueError("regrid keeps directions; use resample() with a transform for another orientation.")
    if image.grid.isclose(onto):
        return Image(image.data, onto, image.stored)
    first = np.linalg.inv(image.grid.affine) @ np.append(onto.affine[:3, 3], 1.0)
    weights = [
        _lanczos_matrix(
            image.grid.shape[d], onto.shape[d], float(first[d]), float(onto.spacing_mm[d] / image.grid.spacing_mm[d])
        )
        for d in range(3)
    ]
    matrices = [torch.as_tensor(matrix, dtype=image.data.dtype) for matrix in weights]
    return Image(along_axes(image.data, matrices), onto, image.stored)


def finer(values: Float[Tensor, "c i j k"], grid: Grid, onto: Grid) -> Float[Tensor, "c p q r"]:
    """Values on a grid, linear between them, at the voxel centres of a finer one of the same directions; beyond the outer ones
    the border value is repeated. As `sample` there, which takes ten times as long."""
    if not np.allclose(grid.direction, onto.direction, atol=1e-6):
        raise ValueError("finer keeps directions; use sample() for another orientation.")
    first = np.linalg.inv(grid.affine) @ np.append(onto.affine[:3, 3], 1.0)
    steps = onto.spacing_mm / grid.spacing_mm
    matrices = [_linear_matrix(grid.shape[d], onto.shape[d], float(first[d]), float(steps[d])) for d in range(3)]
    return along_axes(values, [torch.as_tensor(matrix, dtype=values.dtype) for matrix in matrices])


def regrid_labels(labels: Labels, onto: Grid) -> Labels:
    """The labels on a grid of the same directions, each voxel taking the nearest one; 0 outside."""
    if not np.allclose(labels.grid.direction, onto.direction, atol=1e-6):
        raise ValueError("regrid_labels keeps directions; use resample() with a transform for another orientation.")
    if labels.grid == onto:
        return labels
    data = labels.data
    first = np.linalg.inv(labels.grid.affine) @ np.append(onto.affine[:3, 3], 1.0)
    for d in range(3):
        step = onto.spacing_mm[d] / labels.grid.spacing_mm[d]
        index = torch.as_tensor(np.floor(first[d] + step * np.arange(onto.shape[d]) + 0.5), dtype=torch.long)
        n = labels.grid.shape[d]
        inside = ((index >= 0) & (index < n)).to(data.dtype)
        shape = [1, 1, 1, 1]
        shape[d + 1] = -1
        data = data.index_select(d + 1, index.clamp(0, n - 1)) * inside.reshape(shape)
    return Labels(data, onto, labels.names, labels.stored)


def _lanczos_matrix(n: int, m: int, first: float, step: float) -> np.ndarray:
    """(m, n) weights; row r samples the n input voxels at index first + r * step."""
    wide = max(1.0, step)
    at = first + step * np.arange(m)
    reach = int(np.ceil(LANCZOS_LOBES * wide))
    taps = np.floor(at).astype(int)[:, None] + np.arange(-reach + 1, reach + 1)
    x = (taps - at[:, None]) / wide
    weights = np.where(np.abs(x) < LANCZOS_LOBES, np.sinc(x) * np.sinc(x / LANCZOS_LOBES), 0.0)
    weights /= weights.sum(1, keepdims=True)
    matrix = np.zeros((m, n))
    np.add.at(matrix, (np.arange(m)[:, None], taps.clip(0, n - 1)), weights)
    return matrix


def _linear_matrix(n: int, m: int, first: float, step: float) -> np.ndarray:
    """(m, n) weights; row r reads n values at index first + r * step, linear between them."""
    at = (first + step * np.arange(m)).clip(0, n - 1)
    low = np.floor(at).astype(int).clip(0, max(n - 2, 0))
    matrix = np.zeros((m, n))
    np.add.at(matrix, (np.arange(m), low), 1 - (at - low))
    np.add.at(matrix, (np.arange(m), np.minimum(low + 1, n - 1)), at - low)
    return matrix
