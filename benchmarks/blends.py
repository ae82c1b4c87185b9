"""Other ways to fill the space between rigid bones, for the ablation: a plain blend, and a stationary log-Euclidean flow."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from osteomorph.geometry import Grid
from osteomorph.polyrigid import Polyrigid
from osteomorph.rigid_paths import log
from osteomorph.transforms import Displacement

STEPS = 8
"""Midpoint steps of the flow."""

Points = Tensor


def weights(base: Polyrigid, points_mm: Points) -> Tensor:
    """(k, n): 1 in a bone's region as it lies in the fixed image, elsewhere Shepard's of the distance to the power 1.5."""
    distance = torch.stack([body.region(points_mm) for body in base.bodies]).clamp(min=1e-9)
    share = (distance.amin(0) / distance) ** 1.5
    return share / share.sum(0)


def blended(base: Polyrigid, grid: Grid) -> Displacement:
    """x -> sum_k w_k(x) T_k(x): displacements of the bones, mixed where they are."""

    def move(points: Points) -> Points:
        there = torch.stack([body.pose(points) for body in base.bodies])
        return (weights(base, points)[:, None] * there).sum(0)

    return _on(grid, move)


def log_euclidean(base: Polyrigid, grid: Grid) -> Displacement:
    """Flow at time 1 of v(x) = sum_k w_k(x) log(T_k) x, with weights that do not move (Arsigny et al., 2009).

    The motion that all bones share comes after, as in `Polyrigid`; each midpoint step is a rigid motion.
    """
    back = base.background.inverse().matrix
    twists = torch.as_tensor(log(np.stack([back @ body.pose.matrix for body in base.bodies])).T)

    def move(points: Points) -> Points:
        for _ in range(STEPS):
            middle = _stepped(twists @ weights(base, points) * (0.5 / STEPS), points)
            points = _stepped(twists @ weights(base, middle) / STEPS, points)
        return base.background(points)

    return _on(grid, move)


def _stepped(twists: Tensor, points: Points) -> Points:
    """exp(twist) point, one small twist (6) each: the series to the fourth order, for angles below 0.1."""
    turn, velocity = twists[:3], twists[3:]
    step = out = torch.linalg.cross(turn, points, dim=0) + velocity
    for order in (2, 3, 4):
        step = torch.linalg.cross(turn, step, dim=0) / order
        out = out + step
    return points + out


def _on(grid: Grid, move: Callable[[Points], Points]) -> Displacement:
    """A function of points as displacements in mm at the voxels of a grid, a few planes at a time."""
    out = torch.empty(3, *grid.shape)
    for k in range(grid.shape[0]):
        plane = grid.padded((-k, 0, 0), (k + 1 - grid.shape[0], 0, 0)).points(torch.float64).flatten(1)
        out[:, k] = (move(plane) - plane).float().unflatten(1, grid.shape[1:])
    return Displacement(out, grid)
