"""What files hold of exact bones and the soft field around them: T and its inverse, sampled so that bones stay rigid."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from osteomorph.exact_bones import ExactBones
from osteomorph.geometry import Grid, sample
from osteomorph.lattice import lattice, rigid_displacement
from osteomorph.transforms import Displacement, Rigid, Transform

INVERSE_TOLERANCE_MM = 0.1
"""Of the bones' inverse motion between bones, where it is interpolated; its mean error stays a tenth of that."""


def stored_grid(grid: Grid, spacing_mm: float) -> Grid:
    """Nodes at voxel centres, at about ``spacing_mm``: between them too where voxels are long, at some where they are short."""
    shape, affine = list(grid.shape), grid.affine.copy()
    for axis, h in enumerate(grid.spacing_mm / spacing_mm):
        parts, skipped = (round(h), 1) if h >= 1.5 else (1, max(1, int(1.1 / h)))
        shape[axis] = -(-(shape[axis] - 1) * parts // skipped) + 1
        affine[:3, axis] *= skipped / parts
    return Grid((shape[0], shape[1], shape[2]), affine)


def stored_field(psi: Displacement, field: Displacement, onto: Grid) -> Displacement:
    """x -> (x + field)(psi(x)) at the nodes of ``onto``: T before the rigid start."""
    out = torch.empty(3, *onto.shape)
    for planes, part in onto.slabs():
        moved = field.after(psi).carried(part)
        out[:, planes] = moved.sub_(part.points(torch.float64).flatten(1)).float().unflatten(1, part.shape)
    return Displacement(out, onto)


def stored_inverse(exact: ExactBones, start: Rigid, moving: Grid, seen: Displacement, spacing_mm: float) -> Transform:
    """T^-1 as the start's inverse, then a field whose nodes are voxel centres of the moving image.

    seen: T before the start. The field covers what of the moving image the fixed field of view shows.
    """
    inner = _shown(stored_grid(moving, spacing_mm), seen, start)
    motion = lattice(exact.base.inverse(), inner, INVERSE_TOLERANCE_MM, then=partial(_before, exact.flow)).vectors
    onto = inner.moved(start.inverse().matrix)
    # nodes lie at start^-1(y); a point y goes to y + motion
    out = motion.sub_(rigid_displacement(start.inverse(), inner))
    return Displacement(out, onto).after(start.inverse())


def _before(psi: Displacement, aim: Float[Tensor, "3 n"], steps: int = 24, tolerance_mm: float = 5e-3) -> Float[Tensor, "3 n"]:
    """x with psi(x) = aim, by fixed-point steps at the points that are still off; halved where one does not come nearer."""
    found = aim - sample(psi.vectors, psi.grid, aim.float())
    open_ = torch.arange(aim.shape[1])
    share, last = torch.ones_like(aim[0]), torch.full_like(aim[0], torch.inf)
    for _ in range(steps):
        here = found[:, open_]
        left = aim[:, open_] - here - sample(psi.vectors, psi.grid, here.float())
        off = left.square().sum(0)
        still = off > tolerance_mm**2
        share, last, open_ = torch.where(off < last, share, share / 2)[still], off[still], open_[still]
        if len(open_) == 0:
            break
        found[:, open_] = here[:, still] + share * left[:, still]
    return found


def _shown(moving: Grid, seen: Displacement, start: Rigid, margin_mm: float = 6.0) -> Grid:
    """The part of a grid that holds where the fixed field of view goes, and a little more."""
    part = moving.around(start(seen(seen.grid.strided(4).points(torch.float64).flatten(1))), margin_mm)
    return moving if part is None else moving.cropped(part)
