"""What the viewer in a report shows: small volumes and bone surfaces, as text.

Headers are written afresh: nothing of the input's header but its geometry goes along."""

import base64
import gzip
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from scipy import ndimage, sparse
from torch import Tensor

from osteomorph import fields
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.resampling import resample
from osteomorph.transforms import Rigid

BUDGET = 5_200_000
"""Compressed bytes of the three images together; base64 and the viewer itself bring a report to at most 12 MB."""

MOST_VOXELS = 2_500_000
"""Of each image."""

DEFLATE = 1
"""Level of gzip: the noise of images is as large at 6, in a third of the time."""

MAP_MM = 2.5
"""Finest spacing of the maps."""

BONE_MM = 1.6
"""Finest spacing of the voxels that bone surfaces are made from."""

CELL_MM = 10.0
"""Edge of the cells of the deformed grid."""

JACOBIAN_RANGE = (0.0, 2.0)
"""Local volume change that its colour map spans: 1, no change, in the middle."""

STEP_MM = 0.02
"""Of a surface's coordinates."""

FIXED, MOVING, MOVED = 1, 2, 4
"""Bits of the contour volume."""


def coarser(grid: Grid, finest_mm: float) -> Grid:
    """The grid with every spacing at least ``finest_mm``."""
    spacing = np.maximum(grid.spacing_mm, finest_mm)
    return grid if np.allclose(spacing, grid.spacing_mm) else grid.resampled(spacing)


def shown_grid(grid: Grid, most: int = MOST_VOXELS) -> Grid:
    """The finest `coarser` grid with at most ``most`` voxels."""
    if grid.voxels <= most:
        return grid
    low, high = 0.0, float(grid.size_mm.max())
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if coarser(grid, middle).voxels <= most else (middle, high)
    return coarser(grid, high)


def packed(data: Shaped[np.ndarray, "i j k"], grid: Grid, slope: float = 1.0, inter: float = 0.0) -> bytes:
    """A gzipped NIfTI of bytes: value = slope * stored + inter. Its header holds the geometry and nothing else."""
    image = nib.Nifti1Image(data.astype(np.uint8), grid.affine)
    image.header.set_xyzt_units("mm", "unknown")
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)
    image.header.set_slope_inter(slope, inter)
    return gzip.compress(image.to_bytes(), DEFLATE, mtime=0)


def quantised(data: Float[np.ndarray, "i j k"]) -> tuple[np.ndarray, float, float]:
    """Bytes, slope and intercept over the range of all but 0.02 % of the values."""
    sample = data.ravel()[:: max(1, data.size // 1_000_000)]
    low = float(np.percentile(sample, 0.01, method="lower"))
    high = float(np.percentile(sample, 99.99, method="higher"))
    slope = max(high - low, 1e-6) / 255
    return np.rint((data - low) / slope).clip(0, 255).astype(np.uint8), slope, low


def text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def squeezed(data: np.ndarray) -> str:
    return text(gzip.compress(data.tobytes(), DEFLATE, mtime=0))


def images_packed(images: dict[str, Image], budget: int = BUDGET) -> tuple[Grid, dict[str, Any]]:
    """Images on one grid as the viewer takes them, within a budget of bytes; and that grid."""
    first = next(iter(images.values())).grid
    most = MOST_VOXELS
    while True:
        grid = shown_grid(first, most)
        out, size = {}, 0
        for name, image in images.items():
            there = image if grid is image.grid else resample(image, Rigid.identity(), grid)
            data, slope, inter = quantised(there.data[0].float().numpy())
            content = packed(data, grid, slope, inter)
            size += len(content)
            low, high = np.percentile(data.ravel()[::7], (1, 99.5))
            out[name] = {
                "nii": text(content),
                "slope": slope,
                "inter": inter,
                "window": [float(low), max(float(high), low + 1)],
            }
        if size <= budget:
            return grid, out
        most = int(0.93 * grid.voxels * budget / size)


def maps_packed(vectors: Float[Tensor, "3 i j k"], grid: Grid) -> dict[str, Any]:
    """Displacement after the rigid start, given on ``coarser(grid, MAP_MM)``, its Jacobian determinant, and the deformed grid
    on the viewer's."""
    onto = coarser(grid, MAP_MM)
    length = vectors.norm(dim=0).numpy()
    longest = max(float(length.max()), 0.1)
    low, high = JACOBIAN_RANGE
    determinant = fields.jacobian_determinant(vectors, onto).numpy()
    return {
        "displacement": {"nii": text(packed(np.rint(length / longest * 255), onto, longest / 255)), "range": [0, longest]},
        "jacobian": {
            "nii": text(packed(np.rint((determinant - low) / (high - low) * 255).clip(0, 255), onto, (high - low) / 255, low)),
            "range": [low, high],
        },
        "cells": {"nii": text(packed(cells(vectors, onto, grid), grid)), "range": [0, 2]},
    }


def cells(vectors: Float[Tensor, "3 i2 j2 k2"], onto: Grid, grid: Grid) -> Shaped[np.ndarray, "i j k"]:
    """1 and 2 in turns, by the cell of 10 mm that a point comes to lie in: a regular grid, deformed.

    vectors: displacements in mm on ``onto``.
    """
    fine = vectors if onto is grid else torch.stack([_spread(part, onto, grid) for part in vectors])
    corner = torch.as_tensor(grid.centre_mm, dtype=torch.float32)[:, None, None, None]
    return (((grid.points() + fine - corner) / CELL_MM).floor().sum(0).long() % 2 + 1).numpy()


def _spread(part: Tensor, onto: Grid, grid: Grid) -> Tensor:
    return resample(Image(part[None], onto), Rigid.identity(), grid, outside="border").data[0]


def edges(maps: Sequence[tuple[int, Labels | None]], grid: Grid) -> Shaped[np.ndarray, "i j k"]:
    """Outermost voxels of every label; one bit per label map."""
    out = np.zeros(grid.shape, dtype=np.uint8)
    for bit, labels in maps:
        if labels is None:
            continue
        data = resample(labels, Rigid.identity(), grid).data[0].numpy()
        wide = np.pad(data, 1)
        border = np.zeros(data.shape, dtype=bool)
        for axis in range(3):
            for step in (-1, 1):
                border |= np.roll(wide, step, axis)[1:-1, 1:-1, 1:-1] != data
        out[border & (data != 0)] |= bit
    return out


def surface(mask: Bool[np.ndarray, "i j k"], grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (n, 3) in world mm and triangles (m, 3), outward, of a mask's voxel faces; smoothed without shrinking.

    Smoothing: Taubin, "A signal processing approach to fair surface design" (1995), ten rounds.
    """
    wide = np.pad(mask, 1)
    corners, flat = [], np.array(wide.shape) + 1
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        for side in (0, 1):
            beyond = np.roll(wide, 1 if side == 0 else -1, axis)
            at = np.argwhere(wide & ~beyond)
            quad = np.repeat(at[:, None], 4, axis=1)
            quad[:, :, axis] += side
            turn = [(0, 0), (1, 0), (1, 1), (0, 1)] if side else [(0, 0), (0, 1), (1, 1), (1, 0)]
            for corner, (du, dv) in enumerate(turn):
                quad[:, corner, u] += du
                quad[:, corner, v] += dv
            corners.append(quad)
    quads = np.concatenate(corners)
    keys, index = np.unique(np.ravel_multi_index(tuple(quads.reshape(-1, 3).T), tuple(flat)), return_inverse=True)
    index = index.reshape(-1, 4)
    lattice = np.stack(np.unravel_index(keys, tuple(flat)), 1) - 1.5
    vertices = lattice @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    triangles = np.concatenate([index[:, [0, 1, 2]], index[:, [0, 2, 3]]])
    if np.linalg.det(grid.affine[:3, :3]) < 0:
        triangles = triangles[:, ::-1]
    ring = np.concatenate([index[:, [k, (k + 1) % 4]] for k in range(4)])
    near = sparse.coo_matrix((np.ones(len(ring)), (ring[:, 0], ring[:, 1])), shape=(len(keys), len(keys))).tocsr()
    near = near + near.T
    near.data[:] = 1
    mean = sparse.diags(1 / np.asarray(near.sum(1)).ravel()) @ near
    for step in (0.5, -0.53) * 10:
        vertices = vertices + step * (mean @ vertices - vertices)
    return vertices, triangles


def bones_packed(labels: Labels, poses: dict[int, np.ndarray], start: Rigid, names: dict[int, str]) -> list[dict[str, Any]]:
    """Surfaces of bones in fixed space as the transform puts them; ``before`` takes one to where the rigid start left it."""
    grid = coarser(labels.grid, BONE_MM)
    data = resample(labels, Rigid.identity(), grid).data[0].numpy()
    back, out = start.inverse().matrix, []
    for label, pose in sorted(poses.items()):
        mask = data == label
        if not mask.any():
            continue
        box = ndimage.find_objects(mask.astype(np.uint8))[0]
        before = tuple(-edge.start for edge in box)
        after = tuple(edge.stop - n for edge, n in zip(box, grid.shape, strict=True))
        part = grid.padded((before[0], before[1], before[2]), (after[0], after[1], after[2]))
        vertices, triangles = surface(mask[box], part)
        centre = vertices.mean(0)
        out.append(
            {
                "name": names.get(label, str(label)),
                "centre": centre.tolist(),
                "vertices": squeezed(np.rint((vertices - centre) / STEP_MM).astype("<i2")),
                "triangles": squeezed(triangles.astype("<u4")),
                "before": (back @ pose).ravel().tolist(),
            }
        )
    return out
