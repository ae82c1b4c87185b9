"""Pure functions of (vectors, Grid): derivatives, exponential, inverse.

Vectors are ``(*b, 3, i, j, k)``, components along the RAS world axes in mm, at the grid's voxel centres. Derivatives are
per mm along world axes, so that a Jacobian has no unit and a rotation is a rotation on any grid.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from osteomorph.geometry import Grid, sample
from osteomorph.threads import spread


def gradient(values: Float[Tensor, "*b c i j k"], grid: Grid) -> Float[Tensor, "*b c 3 i j k"]:
    """d(values)/d(world axis) per mm: central differences, one-sided at the border (as ``numpy.gradient``)."""
    along_array = _along_array(values, grid)
    direction = torch.as_tensor(grid.direction.copy(), dtype=values.dtype, device=values.device)
    if torch.equal(direction.abs(), torch.eye(3, dtype=values.dtype, device=values.device)):
        return along_array * direction.diagonal()[:, None, None, None]
    return torch.einsum("wd,...dijk->...wijk", direction, along_array)


def _along_array(values: Float[Tensor, "*b c i j k"], grid: Grid) -> Float[Tensor, "*b c 3 i j k"]:
    """The same per mm along the array axes."""
    return torch.stack(_differences(values, grid), -4)


def _differences(values: Float[Tensor, "*b c i j k"], grid: Grid) -> list[Tensor]:
    """The same, one tensor per axis."""
    per_axis = []
    for d, axis in enumerate((-3, -2, -1)):
        if values.shape[axis] == 1:
            per_axis.append(torch.zeros_like(values))
            continue
        n = values.shape[axis]
        inner = (values.narrow(axis, 2, n - 2) - values.narrow(axis, 0, n - 2)) / 2 if n > 2 else None
        first = values.narrow(axis, 1, 1) - values.narrow(axis, 0, 1)
        last = values.narrow(axis, n - 1, 1) - values.narrow(axis, n - 2, 1)
        parts = [first, inner, last] if inner is not None else [first, last]
        per_axis.append(torch.cat(parts, axis).div_(float(grid.spacing_mm[d])))
    return per_axis


def along_axes(values: Float[Tensor, "n a b c"], matrices: Sequence[Tensor]) -> Float[Tensor, "n i j k"]:
    """Each axis multiplied with a matrix of its own, (i, a), (j, b) and (k, c), without copies. Carries gradients."""
    first, second, third = matrices
    values = torch.matmul(first, values.flatten(2)).unflatten(2, values.shape[2:])
    return torch.matmul(torch.matmul(second, values), third.T)


def jacobian(vectors: Float[Tensor, "*b 3 i j k"], grid: Grid) -> Float[Tensor, "*b 3 3 i j k"]:
    """Jacobian of x + u(x): entry [a, b] is d(component a)/d(world axis b)."""
    identity = torch.eye(3, dtype=vectors.dtype, device=vectors.device)[:, :, None, None, None]
    return gradient(vectors, grid) + identity


def determinant(matrices: Float[Tensor, "*b 3 3 i j k"]) -> Float[Tensor, "*b i j k"]:
    """Determinant of a 3x3 matrix at every voxel."""
    (a, b, c), (d, e, f), (g, h, i) = [[matrices[..., r, s, :, :, :] for s in range(3)] for r in range(3)]
    return _determinant(a, b, c, d, e, f, g, h, i)


def _determinant(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor, g: Tensor, h: Tensor, i: Tensor) -> Tensor:
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def jacobian_determinant(vectors: Float[Tensor, "*b 3 i j k"], grid: Grid) -> Float[Tensor, "*b i j k"]:
    """Local volume change of x + u(x): 1 keeps volume, at or below 0 folds.

    Taken along the array axes, where it is the same, and in slabs: nine derivatives of a large field are more than it all.
    """
    turn, n = torch.as_tensor(grid.direction.T.copy(), dtype=vectors.dtype, device=vectors.device), vectors.shape[-3]

    def of(slab: tuple[slice, Grid]) -> Tensor:
        planes, _ = slab
        low, high = max(0, planes.start - 1), min(n, planes.stop + 1)
        part = vectors.narrow(-3, low, high - low)
        turned = (turn @ part.flatten(-3)).unflatten(-1, part.shape[-3:])
        rises = [
            rise.narrow(-3, planes.start - low, planes.stop - planes.start).unbind(-4) for rise in _differences(turned, grid)
        ]
        (a, d, g), (b, e, h), (c, f, i) = rises
        return _determinant(1 + a, b, c, d, 1 + e, f, g, h, 1 + i)

    return torch.cat(list(spread(of, grid.slabs(8))), -3)


def compose(outer: Float[Tensor, "*b 3 i j k"], inner: Float[Tensor, "*b 3 i j k"], grid: Grid) -> Float[Tensor, "*b 3 i j k"]:
    """Displacement of outer(inner(x)), both on ``grid``: u(x) = inner(x) + outer(x + inner(x))."""
    if inner.ndim > 4 or outer.requires_grad or inner.requires_grad:
        points = (grid.points(inner.dtype, inner.device) + inner).flatten(-3)
        return inner + sample(outer, grid, points).unflatten(-1, grid.shape)
    out = torch.empty_like(inner)
    for planes, part in grid.slabs():
        here = inner[:, planes]
        points = part.points(inner.dtype, inner.device).add_(here).flatten(1)
        torch.add(here, sample(outer, grid, points).unflatten(1, part.shape), out=out[:, planes])
    return out


def exponential(vectors: Float[Tensor, "*b 3 i j k"], grid: Grid, squarings: int = 6) -> Float[Tensor, "*b 3 i j k"]:
    """Displacement at time 1 of the flow of a stationary velocity, by scaling and squaring (Arsigny et al., 2006)."""
    step = vectors / 2**squarings
    for _ in range(squarings):
        step = compose(step, step, grid)
    return step


def inverse(
    vectors: Float[Tensor, "3 i j k"], grid: Grid, onto: Grid, iterations: int = 40, tolerance_mm: float = 1e-4
) -> Float[Tensor, "3 i2 j2 k2"]:
    """Displacement v on ``onto`` with (x + u)(y + v(y)) = y, by damped Newton steps with the Jacobian at the current guess.

    Beyond ``grid`` the displacement u is that of its border. A step that does not come nearer is taken back and halved.
    """
    margin = margin_voxels(vectors, grid)
    widths = [w for m in reversed(margin) for w in (m, m)]
    wide, around = pad(vectors[None], widths, mode="replicate")[0], grid.padded(margin)
    data = torch.cat([wide, jacobian(wide, around).flatten(0, 1)])
    points = onto.points(vectors.dtype, vectors.device).flatten(1)
    guess = -sample(wide, around, points)
    open_ = torch.arange(points.shape[1], device=vectors.device)
    step = torch.zeros_like(points)
    share = torch.ones_like(points[0])
    error = torch.full_like(points[0], torch.inf)
    identity = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    for _ in range(iterations):
        at = sample(data, around, points[:, open_] + guess[:, open_])
        left = guess[:, open_] + at[:3]
        length = left.norm(dim=0)
        nearer = length < error[open_]
        matrices = at[3:].T.reshape(-1, 3, 3)
        sound = torch.linalg.det(matrices) > 0.05
        newton = torch.linalg.solve(torch.where(sound[:, None, None], matrices, identity), left.T[..., None])[..., 0].T
        guess[:, open_] += torch.where(nearer, 0.0, share[open_] * step[:, open_])
        step[:, open_] = torch.where(nearer, newton, step[:, open_])
        share[open_] = torch.where(nearer, 1.0, share[open_] / 2)
        error[open_] = torch.minimum(error[open_], length)
        open_ = open_[error[open_] > tolerance_mm]
        if open_.numel() == 0:
            break
        guess[:, open_] -= share[open_] * step[:, open_]
    return guess.unflatten(-1, onto.shape)


def margin_voxels(vectors: Float[Tensor, "3 i j k"], grid: Grid) -> tuple[int, int, int]:
    """Voxels per array axis that the largest displacement spans, plus one."""
    reach_mm = float(vectors.norm(dim=0).max()) if vectors.numel() else 0.0
    steps = np.ceil(reach_mm / grid.spacing_mm).astype(int) + 1
    return int(steps[0]), int(steps[1]), int(steps[2])
