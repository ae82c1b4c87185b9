import numpy as np
import pytest
import torch
from conftest import GRIDS, oblique_grid
from scipy import ndimage

from osteomorph.distances import DistanceMap, box_gap_mm, distance_maps, gap_mm, signed_distance
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Labels


def boxes(grid: Grid, *extents) -> Labels:
    """Label k + 1 fills the k-th ((i0, i1), (j0, j1), (k0, k1)), ends left out."""
    data = torch.zeros(1, *grid.shape, dtype=torch.int16)
    for label, ((i0, i1), (j0, j1), (k0, k1)) in enumerate(extents, 1):
        data[0, i0:i1, j0:j1, k0:k1] = label
    return Labels(data, grid)


def to_box(grid: Grid, extent, points: torch.Tensor) -> torch.Tensor:
    """Distance to the faces of a box of voxels; 0 inside."""
    low, high = (torch.tensor([e[end] - 0.5 for e in extent], dtype=torch.float64)[:, None] for end in (0, 1))
    index = grid.index(points)
    beyond = (low - index).clamp(min=0) + (index - high).clamp(min=0)
    return (beyond * torch.as_tensor(grid.spacing_mm)[:, None]).norm(dim=0)


EXTENT = ((8, 14), (7, 11), (4, 8))


def test_labelled_centres_are_negative_and_others_positive(grid):
    labels = boxes(grid, EXTENT)
    here = distance_maps(labels)[1](grid.points(torch.float64).flatten(1)).unflatten(0, grid.shape)
    assert torch.equal(here < 0, labels.data[0] == 1)


def test_distance_to_a_box_is_exact_at_centres_outside(grid):
    labels = boxes(grid, EXTENT)
    points = grid.points(torch.float64).flatten(1)
    outside = labels.data.flatten() == 0
    expected = to_box(grid, EXTENT, points)
    near = outside & (expected < 7)
    assert near.sum() > 300
    found = distance_maps(labels, reach_mm=9.0)[1](points)
    assert torch.allclose(found[near], expected[near], atol=1e-4)


def to_boxes(voxels: torch.Tensor, spacing_mm: np.ndarray, index: torch.Tensor) -> torch.Tensor:
    """Distance in mm of each of (n, 3) voxels to the nearest box of (m, 3) others, one pair after the other."""
    apart = ((index[:, None] - voxels[None]).abs() - 0.5).clamp(min=0) * torch.as_tensor(spacing_mm)
    return apart.square().sum(-1).amin(1).sqrt()


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 1.1, 3.0), (2.5, 0.8, 0.8)])
def test_distances_are_those_to_the_nearest_box_of_any_voxel(spacing_mm):
    draw = np.random.default_rng(5)
    body = ndimage.gaussian_filter(draw.normal(size=(20, 18, 14)), 2) > 0.08
    body[[0, -1]] = body[:, [0, -1]] = body[..., [0, -1]] = False
    grid = Grid(body.shape, np.diag([*spacing_mm, 1.0]))
    found, inside = signed_distance(body, grid, 6.0).values[0], torch.as_tensor(body)
    bone, rest = inside.nonzero(), (~inside).nonzero()
    assert torch.allclose(found[inside].double(), -to_boxes(rest, grid.spacing_mm, bone), atol=1e-4)
    outside = to_boxes(bone, grid.spacing_mm, rest)
    assert outside.max() > 6
    assert torch.allclose(found[~inside].double(), outside.clamp(max=6), atol=1e-4)


def test_surface_lies_halfway_along_every_axis():
    grid = oblique_grid()
    bone = distance_maps(boxes(grid, EXTENT))[1]
    centre = torch.tensor([10.0, 9, 6], dtype=torch.float64)
    for axis, (first, last) in enumerate(EXTENT):
        for end in (first - 0.5, last - 0.5):
            index = centre.clone()
            index[axis] = end
            assert abs(float(bone(grid.world(index[:, None])))) < 1e-4


def test_depth_of_a_thin_plate_is_half_its_voxel():
    grid = oblique_grid()
    bone = distance_maps(boxes(grid, ((4, 20), (4, 16), (6, 7))))[1]
    middle = grid.world(torch.tensor([[11.0], [9.0], [6.0]]).double())
    assert float(bone(middle)) == pytest.approx(-1.5, abs=1e-4)  # 3 mm slices


def test_beyond_the_crop_it_is_a_lower_bound_that_keeps_growing(grid):
    labels = boxes(grid, EXTENT)
    bone = distance_maps(labels, reach_mm=4.0)[1]
    points = grid.padded((25, 25, 25)).points(torch.float64).flatten(1)
    found, truth = bone(points), to_box(grid, EXTENT, points)
    far = truth > 6
    assert (found[far] <= truth[far] + 1e-3).all()
    assert (found[far] >= 0.6 * truth[far]).all()


def test_it_never_changes_faster_than_the_point_moves(grid):
    bone = distance_maps(boxes(grid, EXTENT), reach_mm=4.0)[1]
    points = grid.padded((8, 8, 8)).points(torch.float64).flatten(1)
    step = torch.randn(points.shape, dtype=torch.float64) * 0.5
    assert ((bone(points + step) - bone(points)).abs() / step.norm(dim=0)).max() < 1.8  # linear between centres: sqrt(3)


def test_crop_pads_a_bone_at_the_border_of_the_field_of_view():
    grid = GRIDS["RAS"]
    bone = distance_maps(boxes(grid, ((0, 4), (0, 5), (10, 16))), reach_mm=5.0)[1]
    assert bone.values.min() < 0
    for axis in (1, 2, 3):
        assert bone.values.select(axis, 0).min() >= 4.0
        assert bone.values.select(axis, -1).min() >= 4.0


def test_gap_is_that_between_voxel_faces(grid):
    labels = boxes(grid, ((2, 8), (4, 12), (3, 8)), ((11, 17), (4, 12), (3, 8)), ((8, 10), (4, 12), (3, 8)))
    maps = distance_maps(labels)
    assert gap_mm(maps[1], maps[2]) == pytest.approx(3 * grid.spacing_mm[0], abs=1e-4)
    assert gap_mm(maps[2], maps[1]) == pytest.approx(3 * grid.spacing_mm[0], abs=1e-4)
    assert gap_mm(maps[1], maps[3]) == pytest.approx(0.0, abs=1e-4)


def test_overlapping_bodies_have_a_gap_below_zero():
    grid = oblique_grid()
    bone = distance_maps(boxes(grid, EXTENT))[1]
    shift = np.eye(4)
    shift[:3, 3] = grid.direction[:, 0] * 2.0
    assert gap_mm(bone, bone.moved(shift)) < -1.0


def test_box_gap_is_never_above_the_gap():
    grid = oblique_grid()
    maps = distance_maps(boxes(grid, ((2, 6), (2, 9), (3, 8)), ((15, 20), (12, 18), (3, 8))), reach_mm=70.0)
    for angle in np.linspace(0, 3, 7):
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        gap = gap_mm(maps[1].moved(turn), maps[2])
        assert box_gap_mm(maps[1], maps[2], turn) <= max(gap, 0.0) + 1e-3
    still = box_gap_mm(maps[1], maps[2], np.eye(4))
    assert still == pytest.approx(np.hypot(9 * 0.7, 3 * 1.1), abs=1e-3)
    assert gap_mm(maps[1], maps[2]) == pytest.approx(still, abs=0.4)  # across corners: measured from centres


def test_moved_map_moves_with_the_bone():
    grid = oblique_grid()
    bone, turn = distance_maps(boxes(grid, EXTENT))[1], GRIDS["sagittal"].affine / 1.0
    turn[:3, :3] /= np.linalg.norm(turn[:3, :3], axis=0)
    points = grid.points(torch.float64).flatten(1)
    there = torch.as_tensor(turn[:3, :3].copy()) @ points + torch.as_tensor(turn[:3, 3].copy())[:, None]
    assert torch.allclose(bone.moved(turn)(there), bone(points), atol=1e-4)


def test_joined_map_holds_both_bodies():
    grid = GRIDS["LPS"]
    maps = distance_maps(boxes(grid, ((2, 6), (3, 9), (3, 9)), ((14, 19), (9, 15), (6, 12))), reach_mm=3.0)
    both = maps[1].joined(maps[2])
    centres = grid.points(torch.float64).flatten(1)
    assert torch.equal(both(centres) < 0, (maps[1](centres) < 0) | (maps[2](centres) < 0))
    assert isinstance(both, DistanceMap)


def test_other_labels_are_left_out_and_a_missing_one_is_named():
    labels = boxes(GRIDS["RAS"], ((2, 8), (4, 12), (3, 8)), ((11, 17), (4, 12), (3, 8)))
    assert list(distance_maps(labels, [2])) == [2]
    with pytest.raises(InputError, match="label 7"):
        distance_maps(labels, [1, 7])


@pytest.mark.parametrize("reach_mm", [0.0, 3.0])
def test_a_box_holds_what_lies_within_reach_of_a_body(grid, reach_mm):
    found = distance_maps(boxes(grid, EXTENT))[1]
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    turned[:3, 3] = grid.centre_mm - turned[:3, :3] @ grid.centre_mm
    onto = grid.resampled(grid.spacing_mm * 1.3).moved(turned)
    near = (found.on(onto) <= reach_mm).nonzero()
    box = found.box_on(onto, reach_mm)
    assert len(near) > 0
    assert box is not None
    assert (near >= torch.tensor([s.start for s in box])).all()
    assert (near < torch.tensor([s.stop for s in box])).all()


def test_a_body_far_from_a_grid_has_no_box_on_it():
    grid = Grid((20, 18, 12), np.eye(4))
    away = np.eye(4)
    away[:3, 3] = 200.0
    assert distance_maps(boxes(grid, EXTENT))[1].box_on(grid.moved(away), 3.0) is None


def test_maps_are_made_once_per_label_and_reach(grid, monkeypatch):
    labels = boxes(grid, EXTENT)
    first = distance_maps(labels)
    monkeypatch.setattr("osteomorph.distances.signed_distance", lambda *_: pytest.fail("made again"))
    assert distance_maps(labels, [1])[1] is first[1]
    with pytest.raises(pytest.fail.Exception):
        distance_maps(labels, reach_mm=3.0)
    with pytest.raises(pytest.fail.Exception):
        distance_maps(Labels(labels.data, labels.grid))
