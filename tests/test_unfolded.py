"""Two blocks that all but touch, and slide and tilt along each other by more than the space between them."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from osteomorph import fields
from osteomorph.geometry import Grid
from osteomorph.image import Labels
from osteomorph.lattice import lattice
from osteomorph.polyrigid import Polyrigid, from_labels
from osteomorph.transforms import Rigid
from osteomorph.unfolded import FIRST_MM, GENTLE, LEAST_DETERMINANT, folds, unfolded, widened_warnings

TOLERANCE_MM = 0.05


def blocks(grid: Grid, wave_mm: float = 1.5) -> Labels:
    """1 below, 2 above, 3 far to the side; between 1 and 2 lies one voxel, along a wave of 12 mm."""
    x, y, z = (part.reshape(-1) for part in grid.points(torch.float64))
    data = torch.zeros(len(x), dtype=torch.int16)
    beside = (x.abs() < 10) & (y.abs() < 10)
    wave = wave_mm * torch.sin(2 * torch.pi * x / 12)
    data[beside & (z > -14) & (z < wave - 0.5)] = 1
    data[beside & (z > wave + 0.5) & (z < 14)] = 2
    data[((x - 30).abs() < 6) & (y.abs() < 6) & (z.abs() < 6)] = 3
    return Labels(data.unflatten(0, grid.shape)[None], grid)


def grid_of(signs: tuple[int, int, int] = (1, 1, 1)) -> Grid:
    affine = np.diag([*np.array(signs, dtype=float), 1.0])
    affine[:3, 3] = -np.array(signs) * (38.0, 22.0, 22.0)
    return Grid((77, 45, 45), affine)


def tilted(degrees: float, shift_mm: tuple[float, float, float]) -> dict[int, Rigid]:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians([0, 0, degrees])).as_matrix()
    matrix[:3, 3] = shift_mm
    return {1: Rigid.identity(), 2: Rigid(matrix), 3: Rigid.identity()}


def built(labels: Labels, poses: dict[int, Rigid], seen: list[dict[tuple[int, int], float]]):
    def build(gaps) -> Polyrigid:
        seen.append(dict(gaps))
        return from_labels(poses, labels, gaps=gaps, margin_mm=2.0, least_steps=2)

    return build


def least(base: Polyrigid, grid: Grid) -> float:
    return float(fields.jacobian_determinant(lattice(base, grid, TOLERANCE_MM).vectors, grid).min())


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1)])
def test_only_the_bones_whose_samples_fold_get_a_wider_gap(signs):
    grid, seen = grid_of(signs), []
    labels = blocks(grid)
    build = built(labels, tilted(20.0, (-12.0, 4.0, 0.0)), seen)
    usual = build({})
    assert least(usual, grid) <= 0
    assert usual.steepness[1, 2] > GENTLE
    assert folds(usual, grid, (1, 2))
    base, gaps = unfolded(build, grid)
    assert not folds(base, grid, (1, 2))
    assert set(gaps) == {(1, 2)}
    assert gaps[1, 2] >= FIRST_MM
    assert least(base, grid) >= LEAST_DETERMINANT
    whole = {body.label: float(body.bone.inside.sum()) for body in base.bodies}
    for before, after in zip(usual.bodies, base.bodies, strict=True):
        rim = after.rim_mm3 - before.rim_mm3
        assert rim == 0 if after.label == 3 else 0 < rim < 0.25 * whole[after.label]
        inner = after.bone.grid.world((after.bone.inside & ~after.rim).nonzero().T.double())
        assert (base(inner) - after.pose(inner)).abs().max() < 1e-9


@pytest.mark.parametrize("width", [3.0, 4.0, 7.0])
def test_gaps_are_as_wide_as_asked_between_regions(width):
    labels = blocks(grid_of(), wave_mm=0.0)
    base = from_labels(tilted(0.0, (3.0, 0.0, 0.0)), labels, gaps={(1, 2): width}, margin_mm=2.0)
    lower, upper = (body.region for body in base.bodies[:2])
    column = torch.zeros(3, 1601, dtype=torch.float64)
    column[2] = torch.linspace(-8, 8, 1601)
    free = float(((lower(column) > 0) & (upper(column) > 0)).double().mean()) * 16
    assert free == pytest.approx(width, abs=0.1)


def test_a_gentle_motion_is_left_as_it_is():
    grid, seen = grid_of(), []
    base, gaps = unfolded(built(blocks(grid), tilted(1.0, (0.5, 0.0, 0.0)), seen), grid)
    assert gaps == {}
    assert max(base.steepness.values()) <= GENTLE
    assert seen == [{}]
    assert least(base, grid) > 0.3


def test_joints_of_middling_steepness_are_looked_at_too(monkeypatch):
    """A pair of 3.3 that shrinks to .31, with the bound above that; hips of 3.1 have folded in coarser samples."""
    grid, matrix = grid_of(), np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians([4, 0, 0])).as_matrix()
    matrix[:3, 3] = (-2, 0, -0.6)
    build = built(blocks(grid), {1: Rigid.identity(), 2: Rigid(matrix), 3: Rigid.identity()}, [])
    usual = build({})
    assert GENTLE < usual.steepness[1, 2] < 3.5
    assert unfolded(build, grid)[1] == {}
    monkeypatch.setattr("osteomorph.unfolded.LEAST_DETERMINANT", 0.35)
    base, gaps = unfolded(build, grid)
    assert set(gaps) == {(1, 2)}
    assert least(usual, grid) < 0.35 <= least(base, grid)


def test_bones_whose_joint_the_grid_does_not_show_do_not_fold_in_its_samples():
    grid = grid_of()
    usual = from_labels(tilted(20.0, (-12.0, 4.0, 0.0)), blocks(grid), margin_mm=2.0)
    beyond = grid.cropped((slice(60, 77), slice(0, 45), slice(0, 45)))  # the third block
    assert least(usual, beyond) > LEAST_DETERMINANT
    assert not folds(usual, beyond, (1, 2))


@pytest.mark.parametrize("corner", [(5, 3, 6), (13, 9, 2)])
def test_a_part_of_the_grid_tells_what_the_whole_does(corner):
    """Wherever the grid begins: the least determinant of the samples lies where two bones meet."""
    grid = grid_of().padded((-corner[0], -corner[1], -corner[2]), (0, 0, 0))
    for degrees, shift in ((20.0, -12.0), (14.0, -9.0), (8.0, -6.0), (4.0, -3.0)):
        base = from_labels(tilted(degrees, (shift, 2.0, 0.0)), blocks(grid_of()), margin_mm=2.0)
        assert folds(base, grid, (1, 2)) == (least(base, grid) < LEAST_DETERMINANT)


def test_steepness_belongs_to_two_bones_whichever_is_asked_first():
    grid, motion = grid_of(), tilted(14.0, (-9.0, 2.0, 0.0))
    labels = blocks(grid)
    swapped = Labels(torch.tensor([0, 2, 1, 3], dtype=torch.int16)[labels.data.long()], grid)
    one = from_labels(motion, labels, background=Rigid.identity())
    other = from_labels({1: motion[2], 2: motion[1], 3: motion[3]}, swapped, background=Rigid.identity())
    assert one.steepness[1, 2] == pytest.approx(other.steepness[1, 2], rel=1e-6)
    assert one.steps == other.steps


@pytest.mark.parametrize(("shift_mm", "told"), [(16.0, True), (2.0, False)])
def test_steepness_is_left_out_only_where_it_cannot_matter(shift_mm, told):
    """Blocks 14 mm apart, their regions 10; one passes the other."""
    matrix = np.eye(4)
    matrix[:3, 3] = (0, 0, shift_mm)
    poses = {1: Rigid.identity(), 2: Rigid.identity(), 3: Rigid(matrix)}
    found = from_labels(poses, blocks(grid_of(), wave_mm=0.0), margin_mm=2.0, background=Rigid.identity()).steepness
    assert ((1, 3) in found) == told
    assert not told or 1.5 * shift_mm / 14 < found[1, 3] < 1.5 * shift_mm / 9


def test_the_warning_names_the_bones_and_the_gap():
    (said,) = widened_warnings({(4, 7): 2.5}, {4: "L5"})
    assert "L5 and 7" in said
    assert "2.5 mm" in said
