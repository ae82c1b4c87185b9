"""A rigid start on labels: each surface onto the other's signed distance map, least squares over six degrees of freedom."""

from dataclasses import dataclass
from typing import final

import numpy as np
from scipy import ndimage
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from osteomorph.case import Case
from osteomorph.errors import StartError
from osteomorph.geometry import Grid
from osteomorph.image import Labels
from osteomorph.transforms import Rigid

MARGIN_MM = 12.0
"""Reach of a distance map around its label; beyond it the distance to the map's border is added."""
POINTS = 6000
"""Surface points a side that are fitted in the end."""
OUTLIER_MM = 1.0
"""Residual from which the robust loss grows linearly."""
TURN_DEG = 30.0
"""One or two labels are also tried turned by this much about each axis."""
LEAST_DICE, GOOD_DICE = 0.4, 0.7
LEAST_POINTS = 50
"""Surface points below which a label says nothing about a pose."""
LEAST_SEEN = 0.5
"""Share of the surface points that has to lie in the other field of view."""

Found = tuple[Rigid, str, float, tuple[str, ...]]


@final
@dataclass(frozen=True, eq=False)
class Shape:
    """One label of one side.

    distance: (i, j, k) mm to its border, below 0 inside, on ``grid``: a box around it. field: the field of view.
    surface_mm, inside_mm: (3, n) points on its border (none on a face of the field of view) and all its voxels.
    cut: it touches a face of the field of view.
    """

    distance: np.ndarray
    grid: Grid
    field: Grid
    surface_mm: np.ndarray
    inside_mm: np.ndarray
    cut: bool

    @property
    def centroid_mm(self) -> np.ndarray:
        return self.inside_mm.mean(1)

    @property
    def volume_mm3(self) -> float:
        return self.inside_mm.shape[1] * float(np.prod(self.field.spacing_mm))

    def at(self, points_mm: np.ndarray) -> np.ndarray:
        """Signed distance at (3, n) points."""
        index = _apply(np.linalg.inv(self.grid.affine), points_mm)
        held = index.clip(0, np.array(self.grid.shape)[:, None] - 1.0)
        beyond = np.linalg.norm((index - held) * self.grid.spacing_mm[:, None], axis=0)
        return ndimage.map_coordinates(self.distance, held, order=1, mode="nearest") + beyond

    def sees(self, points_mm: np.ndarray) -> np.ndarray:
        """Where the signed distance can be believed: all over, but for a cut label, in the field of view alone."""
        return within(self.field, points_mm) if self.cut else np.ones(points_mm.shape[1], bool)


def start_on_labels(case: Case, ids: list[int]) -> Found:
    """Rigid, method, mean symmetric surface distance in mm, warnings. Raises StartError when the labels do not fit."""
    fixed, moving = shapes(case, ids)
    fits = [_fit(fixed, moving, pose, POINTS // 8, 15) for pose in _poses(fixed, moving)]
    rough, _ = min(fits, key=lambda fit: fit[1])
    rigid, _ = _fit(fixed, moving, rough, POINTS, 60)
    return judged(fixed, moving, ids, rigid, "labels")


def judged(fixed: list[Shape], moving: list[Shape], ids: list[int], rigid: Rigid, method: str) -> Found:
    """The start with its score and warnings; StartError when the labels do not lie on each other."""
    distances, seen = _residuals(fixed, moving, rigid, POINTS)
    names = ", ".join(map(str, ids))
    if seen.mean() < LEAST_SEEN:
        raise StartError(
            f"The start on labels {names} cannot be trusted: only {seen.mean():.0%} of their surface lies in both fields of "
            "view. Start on labels that both images show whole, on images, or give an initial transform."
        )
    score, dice = float(np.abs(distances[seen]).mean()), _dice(fixed, moving, rigid)
    if dice < LEAST_DICE:
        raise StartError(
            f"The start on labels {names} failed: Dice {dice:.2f}, mean surface distance {score:.1f} mm. Check that an id "
            "names the same bone in both maps, or start on images, or give an initial transform."
        )
    warnings = []
    if dice < GOOD_DICE:
        warnings.append(f"Labels overlap poorly after the rigid start (Dice {dice:.2f}, mean surface distance {score:.1f} mm).")
    for side, found in (("fixed", fixed), ("moving", moving)):
        cut = [str(label) for label, one in zip(ids, found, strict=True) if one.cut]
        if cut:
            warnings.append(f"The {side} field of view cuts label {', '.join(cut)}; the rigid start leaves the cut faces out.")
    return rigid, method, score, tuple(warnings)


def shapes(case: Case, ids: list[int]) -> tuple[list[Shape], list[Shape]]:
    """The labels of both sides."""
    if case.fixed_labels is None or case.moving_labels is None:
        raise ValueError("A start on labels needs labels on both sides.")
    return _shapes(case.fixed_labels, ids), _shapes(case.moving_labels, ids)


def _shapes(labels: Labels, ids: list[int]) -> list[Shape]:
    boxes = ndimage.find_objects(labels.data[0].numpy(), max(ids))
    found = [_shape(labels, label, boxes[label - 1]) for label in ids]
    for label, one in zip(ids, found, strict=True):
        if one.surface_mm.shape[1] < LEAST_POINTS:
            raise StartError(
                f"Label {label} is too small or too much cut for a rigid start ({one.inside_mm.shape[1]} voxels). Name the "
                "labels to start on (initialise.labels), start on images, or give an initial transform."
            )
    return found


def _shape(labels: Labels, label: int, box: tuple[slice, slice, slice]) -> Shape:
    """Distances, surface and volume of one label."""
    grid = labels.grid
    mask = labels.data[0][box].numpy() == label
    cut = any(b.start == 0 or b.stop == n for b, n in zip(box, grid.shape, strict=True))
    here, box_grid = boxed(mask, grid, box, MARGIN_MM)
    distance = signed_distance(here, grid.spacing_mm)
    surface = _surface(distance, box_grid)
    surface = surface[:, within(grid, surface)] if cut else surface
    return Shape(distance, box_grid, grid, surface, _apply(box_grid.affine, np.argwhere(here).T.astype(float)), cut)


def boxed(mask: np.ndarray, grid: Grid, box: tuple[slice, ...], margin_mm: float) -> tuple[np.ndarray, Grid]:
    """What ``grid`` holds in ``box``, with a margin of background around it that may reach beyond the field of view."""
    margin = [int(np.ceil(margin_mm / s)) for s in grid.spacing_mm]
    before = [m - b.start for m, b in zip(margin, box, strict=True)]
    after = [b.stop + m - n for m, b, n in zip(margin, box, grid.shape, strict=True)]
    around = grid.padded((before[0], before[1], before[2]), (after[0], after[1], after[2]))
    return np.pad(mask, [(m, m) for m in margin]), around


def signed_distance(mask: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """(i, j, k) mm to the label's border, below 0 inside; the border lies half a voxel from the voxel centres beside it.

    Smoothed by less than a voxel, which takes the voxel steps off the surface.
    """
    half = float(spacing_mm.mean()) / 2
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing_mm)
    return ndimage.gaussian_filter(np.where(mask, half - inside, outside - half), 0.7, mode="nearest")


def within(grid: Grid, points_mm: np.ndarray) -> np.ndarray:
    """Points inside the outer voxels, so that a label's cut face is outside."""
    index = _apply(np.linalg.inv(grid.affine), points_mm)
    return np.asarray(((index >= 0.5) & (index <= np.array(grid.shape)[:, None] - 1.5)).all(0))


def _surface(distance: np.ndarray, grid: Grid) -> np.ndarray:
    """(3, n) world mm where the distance crosses 0: voxels beside the border, carried onto it along the gradient."""
    near = np.argwhere(np.abs(distance) < grid.spacing_mm.mean()).T
    slopes = np.stack([slope[tuple(near)] for slope in np.gradient(distance, *grid.spacing_mm)])
    steep = (slopes**2).sum(0) > 0.25  # not on a ridge, where the gradient says nothing
    near, slopes = near[:, steep], slopes[:, steep]
    step_mm = distance[tuple(near)] * slopes / (slopes**2).sum(0)
    return _apply(grid.affine, near - step_mm / grid.spacing_mm[:, None])


def _poses(fixed: list[Shape], moving: list[Shape]) -> list[Rigid]:
    """Centroids onto centroids: turned as the headers say; by Procrustes for three labels or more, else by TURN_DEG too."""
    a, b = (np.stack([s.centroid_mm for s in side], 1) for side in (fixed, moving))
    weight = np.array([s.volume_mm3 for s in fixed])
    weight = weight / weight.sum()
    turns = [np.eye(3)]
    if len(fixed) >= 3:
        turns.append(procrustes(a - (a @ weight)[:, None], b - (b @ weight)[:, None], weight))
    else:
        vectors = [sign * np.radians(TURN_DEG) * axis for axis in np.eye(3) for sign in (-1, 1)]
        turns.extend(Rotation.from_rotvec(vector).as_matrix() for vector in vectors)
    return [about(turn, a @ weight, b @ weight) for turn in turns]


def procrustes(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Rotation of centred points a (3, n) onto b (Kabsch, 1976); about an axis that they leave open it is least."""
    covariance = (b * weight) @ a.T
    covariance += 1e-3 * np.trace((a * weight) @ a.T) * np.eye(3)
    u, _, vt = np.linalg.svd(covariance)
    turn: np.ndarray = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    return turn


def about(turn: np.ndarray, from_mm: np.ndarray, to_mm: np.ndarray) -> Rigid:
    """y = turn (x - from) + to."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, to_mm - turn @ from_mm
    return Rigid(matrix)


def _fit(fixed: list[Shape], moving: list[Shape], start: Rigid, points: int, evaluations: int) -> tuple[Rigid, float]:
    """Least squares from one pose; the pose and its robust cost a point."""
    centre = np.concatenate([s.inside_mm for s in moving], 1).mean(1)
    radius_mm = float(np.cbrt(sum(s.volume_mm3 for s in moving)))  # turns in mm at the surface, so that steps are alike

    def pose(step: np.ndarray) -> Rigid:
        turn = Rotation.from_rotvec(step[:3] / radius_mm).as_matrix()
        return Rigid(about(turn, centre, centre + step[3:]).matrix @ start.matrix)

    def residuals(step: np.ndarray) -> np.ndarray:
        return _residuals(fixed, moving, pose(step), points)[0]

    found = least_squares(residuals, np.zeros(6), loss="soft_l1", f_scale=OUTLIER_MM, max_nfev=evaluations, xtol=1e-6)
    return pose(found.x), float(found.cost) / found.fun.size


def _residuals(fixed: list[Shape], moving: list[Shape], rigid: Rigid, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances in mm of each surface to the other, both ways; 0 where not seen. And where they are seen."""
    values, seen = [], []
    for sources, targets, matrix in ((fixed, moving, rigid.matrix), (moving, fixed, rigid.inverse().matrix)):
        stride = max(1, sum(s.surface_mm.shape[1] for s in sources) // points)
        for source, target in zip(sources, targets, strict=True):
            moved = _apply(matrix, source.surface_mm[:, ::stride])
            seen.append(target.sees(moved))
            values.append(target.at(moved) * seen[-1])
    return np.concatenate(values), np.concatenate(seen)


def _dice(fixed: list[Shape], moving: list[Shape], rigid: Rigid) -> float:
    """Of all labels together, where the moving image sees a cut one."""
    shared = total = 0.0
    for f, m in zip(fixed, moving, strict=True):
        inside = _apply(rigid.matrix, f.inside_mm)
        back = _apply(rigid.inverse().matrix, m.inside_mm)
        inside, back = inside[:, m.sees(inside)], back[:, f.sees(back)]
        shared += float((m.at(inside) < 0).sum() + (f.at(back) < 0).sum())
        total += inside.shape[1] + back.shape[1]
    return shared / max(total, 1.0)


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    found: np.ndarray = matrix[:3, :3] @ points + matrix[:3, 3:]
    return found
