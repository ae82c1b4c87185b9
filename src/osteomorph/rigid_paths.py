"""Ways for several bones to go from where they are to where they end: one rigid motion each, at every time in [0, 1]."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial.transform import Rotation

PathKind = Literal["tree", "screw", "centroid"]
"""screw: each bone along its own screw. centroid: each centroid straight, the bone turning steadily about it.
tree: each bone along its screw relative to the neighbour it hangs on, so that a joint's centre stays where it is."""

PATH_KINDS: tuple[PathKind, ...] = get_args(PathKind)


def log(matrices: np.ndarray) -> np.ndarray:
    """(*b, 6) twists (rotation vector, then velocity at the world's origin) of (*b, 4, 4) rigid matrices, angles below 180."""
    batch = matrices.shape[:-2]
    flat = matrices.reshape(-1, 4, 4)
    turn = Rotation.from_matrix(flat[:, :3, :3]).as_rotvec()
    square = np.sum(turn**2, 1)
    angle = np.sqrt(square)
    small = angle < 1e-3
    safe = np.where(small, 1.0, angle)
    factor = np.where(small, 1 / 12 + square / 720, (1 - safe * np.sin(safe) / (2 * (1 - np.cos(safe)))) / safe**2)
    shift = flat[:, :3, 3]
    around = np.cross(turn, shift)
    velocity = shift - around / 2 + factor[:, None] * np.cross(turn, around)
    return np.concatenate([turn, velocity], 1).reshape(*batch, 6)


def exp(twists: np.ndarray) -> np.ndarray:
    """(*b, 4, 4) rigid matrices of (*b, 6) twists; the inverse of `log`."""
    batch = twists.shape[:-1]
    flat = twists.reshape(-1, 6)
    turn, velocity = flat[:, :3], flat[:, 3:]
    square = np.sum(turn**2, 1)
    angle = np.sqrt(square)
    small = angle < 1e-3
    safe = np.where(small, 1.0, angle)
    first = np.where(small, 0.5 - square / 24, (1 - np.cos(safe)) / safe**2)
    second = np.where(small, 1 / 6 - square / 120, (1 - np.sin(safe) / safe) / safe**2)
    around = np.cross(turn, velocity)
    out = np.tile(np.eye(4), (len(flat), 1, 1))
    out[:, :3, :3] = Rotation.from_rotvec(turn).as_matrix()
    out[:, :3, 3] = velocity + first[:, None] * around + second[:, None] * np.cross(turn, around)
    return out.reshape(*batch, 4, 4)


def rigid_path(
    kind: PathKind, ends: np.ndarray, times: np.ndarray, centroids_mm: np.ndarray, gaps_mm: np.ndarray
) -> np.ndarray:
    """(m, k, 4, 4) matrices of k bones at m times, the identity at 0 and ``ends`` (k, 4, 4) at 1.

    centroids_mm: (k, 3) at time 0. gaps_mm: (k, k) between the bones; the tree hangs each bone on its nearest.
    """
    if kind == "screw":
        path = exp(times[:, None, None] * log(ends))
    elif kind == "centroid":
        turns = np.stack([Rotation.from_matrix(end[:3, :3]).as_rotvec() for end in ends])
        path = exp(times[:, None, None] * np.concatenate([turns, np.zeros_like(turns)], 1))
        shifts = np.einsum("kab,kb->ka", ends[:, :3, :3], centroids_mm) + ends[:, :3, 3] - centroids_mm
        there = centroids_mm + times[:, None, None] * shifts
        path[..., :3, 3] = there - np.einsum("mkab,kb->mka", path[..., :3, :3], centroids_mm)
    else:
        path = _tree(ends, times, centroids_mm, gaps_mm)
    path[times == 0] = np.eye(4)
    path[times == 1] = ends
    return path


def _tree(ends: np.ndarray, times: np.ndarray, centroids_mm: np.ndarray, gaps_mm: np.ndarray) -> np.ndarray:
    """After kinematic-tree polyrigid transforms; the root is the bone that moves least."""
    moved = np.einsum("kab,kb->ka", ends[:, :3, :3], centroids_mm) + ends[:, :3, 3]
    turn = np.linalg.norm(log(ends)[:, :3], axis=1)
    root = int(np.argmin(np.linalg.norm(moved - centroids_mm, axis=1) + 30.0 * turn))  # a bone is some 30 mm in radius
    edges = minimum_spanning_tree(np.maximum(gaps_mm, 0) + 1e-3)
    order, parents = breadth_first_order(edges, root, directed=False)
    path = np.empty((len(times), len(ends), 4, 4))
    path[:, root] = exp(times[:, None] * log(ends[root]))
    for child in order[1:]:
        parent = parents[child]
        relative = log(np.linalg.inv(ends[parent]) @ ends[child])
        path[:, child] = path[:, parent] @ exp(times[:, None] * relative)
    return path


def largest_angle_deg(matrices: Sequence[np.ndarray] | np.ndarray) -> float:
    """Largest rotation angle among rigid matrices."""
    return max(float(np.degrees(np.linalg.norm(log(np.asarray(m))[:3]))) for m in matrices)
