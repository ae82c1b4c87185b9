"""Two boxes that touch, found by nobody but a formula: what is left of them is rigid to the next voxel, the rest is said."""

import numpy as np
import pytest
import torch
from conftest import oblique_grid, sagittal_grid
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from test_polyrigid import about, bent, box, cube_grid, draw

from osteomorph.certificate import certify
from osteomorph.distances import distance_maps
from osteomorph.fields import jacobian_determinant
from osteomorph.geometry import Grid, sample
from osteomorph.held_bones import LEAST_LEFT, LOOKED_MM, _without, giving_way, held
from osteomorph.image import Labels
from osteomorph.polyrigid import Polyrigid, from_labels
from osteomorph.resampling import resample
from osteomorph.stored_fields import stored_grid
from osteomorph.transforms import Rigid

SPACING_MM = 1.0

TILTED = Rotation.from_euler("xyz", (20, 10, -15), degrees=True).as_matrix()
MIDDLE = np.array([9.0, -6.0, 14.0])


def tilted(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    """An oblique grid about the bones' middle."""
    affine = oblique_grid(shape, spacing).affine.copy()
    affine[:3, 3] += MIDDLE - Grid(shape, affine).centre_mm
    return Grid(shape, affine)


def sagittal(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    affine = sagittal_grid(shape, spacing).affine.copy()
    affine[:3, 3] += MIDDLE - Grid(shape, affine).centre_mm
    return Grid(shape, affine)


def touching(grid: Grid) -> Labels:
    """1 and 2 share a face across a joint that lies askew to every axis; 3 lies apart."""
    places = ((-5.5, 0.0, -6.0), (5.5, 0.0, -6.0), (0.0, 0.0, 14.0))
    halves = ((5.5, 6.0, 6.0), (5.5, 6.0, 6.0), (6.0, 5.0, 4.0))
    return draw(grid, *(box(MIDDLE + TILTED @ at, half, TILTED) for at, half in zip(places, halves, strict=True)))


def posed(turn=(0.0, 0.0, 4.0), shift=(0.5, 0.0, 1.0)) -> dict[int, Rigid]:
    return {1: about(MIDDLE, (1, 0, 2)), 2: about(MIDDLE, turn, shift), 3: about(MIDDLE, (0, 2, 0), (0.0, 1.0, 0.5))}


FIXED = {
    "oblique 1": tilted((36, 32, 42), (1.0, 1.0, 1.0)),
    "oblique 0.8 x 1.2 x 2.2": tilted((44, 28, 20), (0.8, 1.2, 2.2)),
    "sagittal 0.9 x 0.9 x 2": sagittal((46, 36, 18), (0.9, 0.9, 2.0)),
    "fine 0.5": tilted((66, 60, 80), (0.5, 0.5, 0.5)),
}
MOVING = tilted((30, 32, 38), (1.3, 1.1, 1.2))


def stored(transform: Polyrigid, grid: Grid) -> torch.Tensor:
    """(3, i, j, k) displacements of a grid as files hold them: nodes at voxel centres, linear in between."""
    nodes = stored_grid(grid, SPACING_MM)
    points = grid.points(torch.float64).flatten(1)
    return sample(transform.displacement(nodes, torch.float64), nodes, points).unflatten(1, grid.shape)


def inner(grid: Grid) -> torch.Tensor:
    """Voxels with a neighbour on every side."""
    out = torch.zeros(grid.shape, dtype=torch.bool)
    out[1:-1, 1:-1, 1:-1] = True
    return out


@pytest.mark.parametrize(
    ("name", "side"), [*((name, "moving") for name in FIXED), ("oblique 0.8 x 1.2 x 2.2", "fixed"), ("oblique 1", "fixed")]
)
def test_what_is_left_of_touching_bones_is_rigid_to_the_next_voxel(name, side):
    grid, poses = FIXED[name], posed()
    labels = touching(grid if side == "fixed" else MOVING)
    voxel = float(np.prod(labels.grid.spacing_mm)) ** (1 / 3)
    base = from_labels(poses, **{side: labels}, margin_mm=2 * max(voxel, SPACING_MM))
    found = giving_way(base, grid, SPACING_MM)
    here = labels if side == "fixed" else resample(labels, base, grid)
    left = held(here, found, SPACING_MM)

    assert torch.equal(left.data, here.data * (left.data > 0))
    assert torch.equal(left.data == 3, here.data == 3)
    field = stored(found, grid)
    determinant = jacobian_determinant(field, grid)
    points = grid.points(torch.float64)
    for label, pose in poses.items():
        was, kept = (int((part.data == label).sum()) for part in (here, left))
        assert kept > 0.55 * was
        assert (kept < was) == (label != 3)
        inside = (left.data[0] == label) & inner(grid)
        assert (determinant[inside] - 1).abs().max() < 1e-5
        assert (points[:, inside] + field[:, inside] - pose(points[:, inside])).norm(dim=0).max() < 1e-4
    some = points.flatten(1)[:, :: grid.shape[0]]
    assert torch.equal(found(some), base(some))

    told = certify(found, grid, 1000)
    assert set(told.rim_voxels.values()) == {0}
    assert max(told.residual_mm.values()) < 1e-9
    assert told.narrowest_gap_mm > 1.5 * SPACING_MM
    for before, after in zip(base.bodies, found.bodies, strict=True):
        assert not (after.bone.inside & ~before.bone.inside).any()
        lost = int(before.bone.inside.sum()) - int(after.bone.inside.sum())
        assert after.given_mm3 == pytest.approx(lost * float(np.prod(labels.grid.spacing_mm)))
        assert after.given_share == pytest.approx(lost / int(before.bone.inside.sum()))
        assert (after.given_mm3 == 0) == (after.label == 3)


@settings(max_examples=3, deadline=None, derandomize=True)
@given(turn=st.tuples(*[st.floats(-6, 6)] * 3), shift=st.tuples(*[st.floats(-1.5, 1.5)] * 3))
def test_whatever_two_touching_bones_do(turn, shift):
    grid = FIXED["sagittal 0.9 x 0.9 x 2"]
    labels, poses = touching(MOVING), posed(turn, shift)
    base = from_labels(poses, moving=labels, margin_mm=2.6)
    found = giving_way(base, grid, SPACING_MM)
    left = held(resample(labels, base, grid), found, SPACING_MM)
    determinant = jacobian_determinant(stored(found, grid), grid)
    inside = (left.data[0] > 0) & inner(grid)
    assert int(inside.sum()) > 500
    assert (determinant[inside] - 1).abs().max() < 1e-5


def test_thick_slices_take_no_more_than_the_margin():
    grid = tilted((36, 32, 14), (1.0, 1.0, 4.0))
    base = from_labels(posed(), moving=touching(MOVING), margin_mm=2.4)
    here = resample(touching(MOVING), base, grid)
    found = giving_way(base, grid, SPACING_MM)
    left = held(here, found, SPACING_MM)
    assert torch.equal(left.data == 3, here.data == 3)
    assert found.bodies[2].given_mm3 == 0
    for label in (1, 2):
        assert int((here.data == label).sum()) > int((left.data == label).sum()) > 0.55 * int((here.data == label).sum())


def test_bones_that_move_together_keep_their_shared_face():
    labels = touching(MOVING)
    alike = about(MIDDLE, (3, 2, 1), (1.0, 0.0, 0.0))
    found = giving_way(from_labels({1: alike, 2: alike, 3: Rigid.identity()}, moving=labels), FIXED["oblique 1"], SPACING_MM)
    assert [body.given_mm3 for body in found.bodies] == [0.0, 0.0, 0.0]


def test_a_bone_that_would_lose_most_of_itself_keeps_all_and_its_rim_is_reported():
    grid = cube_grid()
    thin = draw(grid, box((0, 0, -7), (8.0, 8, 7)), box((0, 0, 1), (8.0, 8, 1)), box((0, 0, 9), (8.0, 8, 7)))
    poses = {1: Rigid.identity(), 2: about((0.0, 0, 0), (0, 0, 6)), 3: about((0.0, 0, 0), (0, 0, 12))}
    base = from_labels(poses, thin)
    found = giving_way(base, grid, SPACING_MM)
    kept = {body.label: body for body in found.bodies}
    assert kept[2].given_mm3 is None
    assert kept[2] is base.bodies[1]
    assert int(kept[2].rim.sum()) > (1 - LEAST_LEFT) * int(kept[2].bone.inside.sum())
    assert kept[1].given_mm3 > 0
    left = held(thin, found, SPACING_MM)
    assert torch.equal(left.data == 2, thin.data == 2)


def test_labels_that_a_user_gives_are_kept_with_their_rim():
    labels = touching(FIXED["oblique 1"])
    base = from_labels(posed(), labels)
    assert min(int(body.rim.sum()) for body in base.bodies[:2]) > 0
    assert held(labels, base, SPACING_MM).data.equal(labels.data)


def test_bones_that_lie_apart_give_nothing_away():
    found = giving_way(bent(), cube_grid(), SPACING_MM)
    assert [body.given_mm3 for body in found.bodies] == [0.0, 0.0]


@pytest.mark.parametrize(("end", "head"), [(slice(0, 4), 18), (slice(9, 12), 26)])
def test_the_distance_to_what_is_left_is_anew_where_something_was_lost(end, head):
    """Within 4 mm of it as of the bone that is left; further out what it was, which is not above the distance."""
    grid = sagittal_grid()
    grid = grid.padded((0, 0, 0), (20, 0, 0))
    data = torch.zeros(1, *grid.shape, dtype=torch.int16)
    data[0, 4:head, 5:9, 3:9] = 1
    data[0, head : head + 6, 5:18, 3:9] = 1  # just out of sight from what is lost
    bone = distance_maps(Labels(data, grid))[1]
    lost = torch.zeros_like(bone.inside)
    first = bone.inside.nonzero().amin(0)
    lost[first[0] + end.start : first[0] + end.stop, :, first[2] : first[2] + 3] = True
    lost &= bone.inside
    found = _without(bone, lost.nonzero().T)
    left = (bone.inside & ~lost).int()
    true = distance_maps(Labels(left[None], bone.grid))[1].on(bone.grid)
    assert torch.equal(found.inside, left > 0)
    above = (found.values[0] - true)[true > 0]
    assert above.max() < 0.2  # on long voxels another voxel may be the nearest
    near = distance_maps(Labels(lost.int()[None], bone.grid))[1].on(bone.grid) <= LOOKED_MM
    close = near & (true.abs() < LOOKED_MM)
    assert (bone.values[0] - true)[close].abs().max() > 1.0
    off = (found.values[0] - true)[close].abs()
    assert off.max() < 0.2
    assert off.mean() < 1e-3
