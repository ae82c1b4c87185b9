"""Rows say what was done to a pair: worked out by hand where possible, and beside `measure` elsewhere."""

import numpy as np
import pytest
import torch
from conftest import GRIDS
from scipy.spatial.transform import Rotation

from osteomorph.case import Case
from osteomorph.errors import InputError
from osteomorph.evaluate import evaluate, read_rows, write_rows
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.measure import measure
from osteomorph.transforms import Displacement, Rigid


def boxes(grid, *edges):
    """Label 22, 23, ... in boxes (start, stop) of voxels."""
    data = torch.zeros(1, *grid.shape, dtype=torch.int16)
    for label, (start, stop) in enumerate(edges, 22):
        data[0][tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = label
    return Labels(data, grid, {22: "L3", 23: "L4"})


def unit_grid(shape=(20, 16, 14), spacing=2.0):
    return Grid(shape, np.diag([spacing, spacing, spacing, 1.0]))


@pytest.fixture
def case():
    grid = unit_grid()
    fixed = boxes(grid, ((2, 3, 3), (6, 7, 7)), ((10, 3, 3), (14, 7, 7)))
    moving = boxes(grid, ((3, 3, 3), (7, 7, 7)), ((10, 3, 3), (14, 7, 7)))
    image = Image(torch.rand(1, *grid.shape), grid)
    return Case(image, image, fixed, moving)


def by_bone(rows):
    return {row["bone"]: row for row in rows}


def test_overlap_by_hand(case):
    """L3 is off by one of its four voxels; L4 is right; together 7 of 8."""
    rows = by_bone(evaluate(Rigid.identity(), case))
    assert rows["L3"]["dice"] == pytest.approx(3 / 4)
    assert rows["L4"]["dice"] == 1
    assert rows["L4+L3"]["dice"] == pytest.approx(7 / 8)
    assert rows["L4+L3"]["hd99_mm"] == rows["L3"]["hd99_mm"] == 2.0  # one voxel of 2 mm
    assert rows["L4"]["msd_mm"] == 0
    assert rows["L4+L3"]["msd_mm"] == pytest.approx(rows["L3"]["msd_mm"] / 2)  # as many surface voxels in both
    assert rows["L4+L3"]["role"] == "pooled"


def test_pooled_surface_distances_are_one_list():
    """A large bone that is right hides a small one that is off by a voxel: its share is under a hundredth of the list."""
    grid = unit_grid((40, 40, 30))
    case = Case(
        *[Image(torch.zeros(1, *grid.shape), grid)] * 2,
        boxes(grid, ((2, 2, 2), (3, 3, 3)), ((6, 6, 6), (36, 36, 26))),
        boxes(grid, ((3, 2, 2), (4, 3, 3)), ((6, 6, 6), (36, 36, 26))),
    )
    rows = by_bone(evaluate(Rigid.identity(), case))
    assert rows["L3"]["hd99_mm"] == 2.0
    assert rows["L4+L3"]["hd99_mm"] == 0.0


@pytest.mark.parametrize("name", ["oblique", "LAS", "LPS"])
def test_a_rotation_is_rigid_on_any_grid(name):
    grid = GRIDS[name]
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (3, -4, 5), degrees=True).as_matrix()
    matrix[:3, 3] = (1.0, 2.0, -1.0)
    labels = boxes(grid, ((4, 4, 3), (12, 12, 8)))
    image = Image(torch.zeros(1, *grid.shape), grid)
    row = evaluate(Rigid(matrix), Case(image, image, labels))[0]
    assert row["rigidity_max_mm"] < 1e-4
    assert row["det_mean"] == pytest.approx(1, abs=1e-5)
    assert row["det_sd"] < 1e-5
    assert "dice" not in row


def test_a_stretch_is_seen_and_not_rigid():
    """1.1 times as long along one axis: det J 1.1 everywhere, and 0.1 x half the length left at the ends but for the fit."""
    grid = unit_grid(spacing=1.0)
    vectors = torch.zeros(3, *grid.shape)
    vectors[0] = 0.1 * grid.points()[0]
    image = Image(torch.zeros(1, *grid.shape), grid)
    row = evaluate(Displacement(vectors, grid), Case(image, image, boxes(grid, ((2, 2, 2), (12, 4, 4)))))[0]
    assert row["det_mean"] == pytest.approx(1.1, abs=1e-5)
    assert row["rigidity_max_mm"] == pytest.approx(0.45, abs=1e-4)  # ten voxels: the ends are 4.5 mm from the middle


def test_inner_spread_leaves_the_surface_out():
    """A field that is zero in a bone and grows outside it: the central difference at the surface reaches out."""
    grid = unit_grid(spacing=1.0)
    labels = boxes(grid, ((4, 4, 4), (11, 11, 11)))
    vectors = 0.4 * torch.rand(3, *grid.shape) * ~labels.mask()
    image = Image(torch.zeros(1, *grid.shape), grid)
    row = evaluate(Displacement(vectors, grid), Case(image, image, labels))[0]
    assert row["det_sd"] > 0.01
    assert row["det_sd_inner"] == pytest.approx(0, abs=1e-6)
    assert row["rigidity_max_mm"] == pytest.approx(0, abs=1e-5)


def test_soft_tissue_by_distance_from_bone():
    """The error equals the distance along x: each band's mean is that of its voxels."""
    grid = Grid((60, 5, 5), np.eye(4))
    bone = boxes(grid, ((0, 0, 0), (5, 5, 5)))
    body = Labels(torch.ones(1, *grid.shape, dtype=torch.int16), grid)
    vectors = torch.zeros(3, *grid.shape)
    vectors[1] = (grid.points()[0] - 4).clamp(min=0)
    moving = Image(torch.zeros(1, 80, 80, 5), Grid((80, 80, 5), np.eye(4)))
    case = Case(Image(torch.zeros(1, *grid.shape), grid), moving, bone)
    row = evaluate(Displacement(vectors, grid), case, Rigid.identity(), body)[-1]
    assert row["tre_soft_0_10_mm"] == pytest.approx(5.5)  # 1 to 10 mm
    assert row["tre_soft_10_20_mm"] == pytest.approx(15.5)
    assert row["tre_soft_20_30_mm"] == pytest.approx(25.5)
    assert row["tre_soft_30_up_mm"] == pytest.approx(43.0)  # 31 to 55 mm
    assert row["tre_mean_mm"] == pytest.approx(0, abs=1e-5)


def test_what_the_moving_image_never_saw_is_left_out():
    grid = Grid((20, 5, 5), np.eye(4))
    bone = boxes(grid, ((0, 0, 0), (20, 5, 5)))
    vectors = torch.zeros(3, *grid.shape)
    vectors[1, 10:] = 7.0
    half = Image(torch.zeros(1, 10, 5, 5), Grid((10, 5, 5), np.eye(4)))
    case = Case(Image(torch.zeros(1, *grid.shape), grid), half, bone)
    assert evaluate(Displacement(vectors, grid), case, Rigid.identity())[0]["tre_max_mm"] == 0


def test_bones_without_labels_have_rows_of_their_own(case):
    bones = Labels(case.fixed_labels.data.clone(), case.fixed.grid, {22: "L3", 23: "L4", 26: "sacrum"})
    bones.data[0, 16:19, 10:13, 9:12] = 26
    rows = by_bone(evaluate(Rigid.identity(), case, Rigid.identity(), None, bones))
    assert {row["role"] for row in rows.values()} == {"labelled", "unlabelled", "pooled"}
    assert rows["sacrum"]["role"] == "unlabelled"
    assert rows["sacrum"]["rigidity_max_mm"] < 1e-5
    assert "dice" not in rows["sacrum"]
    assert "sacrum" not in next(name for name, row in rows.items() if row["role"] == "pooled")


def test_a_label_that_one_side_lacks_has_no_overlap(case):
    moving = Labels(case.moving_labels.data * (case.moving_labels.data != 22), case.moving.grid)
    rows = by_bone(evaluate(Rigid.identity(), Case(case.fixed, case.moving, case.fixed_labels, moving)))
    assert "dice" not in rows["L3"]
    assert rows["L4"]["dice"] == 1


def test_agrees_with_measure_on_a_simulated_pair(pair):
    truth = pair.truth
    start = Rigid(pair.poses[24])
    rows = by_bone(evaluate(start, pair.case, truth, pair.fixed_body))
    whole = measure(start, pair.case, truth, pair.fixed_body)
    for bone in whole["bones"]:
        row = rows[bone["name"]]
        assert row["dice"] == pytest.approx(bone["dice"])
        for key in ("msd_mm", "hd99_mm", "rigidity_max_mm", "tre_mean_mm", "tre_p95_mm"):
            assert row[key] == pytest.approx(bone[key], abs=2e-4)
    pooled = next(row for row in rows.values() if row["role"] == "pooled")
    assert pooled["tre_mean_mm"] == pytest.approx(whole["tre_bone_mean_mm"], abs=1e-4)
    assert pooled["folding_body_percent"] == pytest.approx(whole["folding_percent"])


def test_body_on_another_grid_is_refused(case):
    other = Labels(torch.ones(1, 4, 4, 4, dtype=torch.int16), unit_grid((4, 4, 4)))
    with pytest.raises(ValueError, match="grid of the fixed image"):
        evaluate(Rigid.identity(), case, None, other)


def test_rows_come_back_as_written(case, tmp_path):
    rows = [{"pair": "007", "method": "US", "fold": 1, **row} for row in evaluate(Rigid.identity(), case)]
    assert read_rows(write_rows(tmp_path / "rows.csv", rows)) == rows
    with pytest.raises(InputError, match=r"\.csv or \.json"):
        write_rows(tmp_path / "rows.txt", rows)
