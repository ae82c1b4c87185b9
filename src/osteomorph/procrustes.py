"""Six degrees of freedom per bone from a dense field."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from osteomorph.errors import InputError
from osteomorph.image import Labels
from osteomorph.transforms import Rigid, Transform

TUKEY_MM = 2.0
"""Residual from which on a point of a dense field has no say in the rigid fit."""


def procrustes(
    field: Transform, labels: Labels, ids: Sequence[int], frame: Literal["fixed", "moving"], rounds: int = 10
) -> dict[int, Rigid]:
    """Per bone the rigid motion nearest to a transform: least squares, reweighted by Tukey's biweight of 2 mm.

    frame: space of ``labels``; moving labels are taken back by the transform's inverse. Result: fixed mm -> moving mm.
    Raises InputError where a label has fewer than four voxels.
    """
    there = field if frame == "fixed" else field.inverse()
    out = {}
    for label in ids:
        mask = labels.data[0] == label
        if int(mask.sum()) < 4:
            raise InputError(f"Label {label} has fewer than four voxels, too few for a rotation. Leave it out of the bones.")
        points = labels.grid.world(mask.nonzero().T.double())
        points = points[:, :: max(1, points.shape[1] // 20_000)]
        fitted = Rigid(_robust_fit(points.numpy(), there(points).double().numpy(), rounds))
        out[label] = fitted if frame == "fixed" else fitted.inverse()
    return out


def _robust_fit(a: np.ndarray, b: np.ndarray, rounds: int) -> np.ndarray:
    # from the median shift: a plain fit may be so far off that every residual is beyond Tukey's
    weight = _tukey(np.linalg.norm(b - a - np.median(b - a, axis=1, keepdims=True), axis=0), TUKEY_MM)
    matrix = np.eye(4)
    for _ in range(rounds):
        matrix = _weighted_fit(a, b, weight)
        left = np.linalg.norm(matrix[:3, :3] @ a + matrix[:3, 3:] - b, axis=0)
        weight = _tukey(left, TUKEY_MM)
    return matrix


def _tukey(residual: np.ndarray, limit: float) -> np.ndarray:
    """Biweight; where the limit leaves less than half of the points, twice the median stands for it."""
    limit = max(limit, 2 * float(np.median(residual)))
    return np.where(residual < limit, (1 - (residual / limit) ** 2) ** 2, 0.0)


def _weighted_fit(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    share = weight / weight.sum()
    centre_a, centre_b = (a * share).sum(1, keepdims=True), (b * share).sum(1, keepdims=True)
    u, _, vt = np.linalg.svd(((b - centre_b) * share) @ (a - centre_a).T)
    matrix = np.eye(4)
    matrix[:3, :3] = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    matrix[:3, 3] = (centre_b - matrix[:3, :3] @ centre_a)[:, 0]
    return matrix
