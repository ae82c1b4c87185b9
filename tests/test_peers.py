"""The bench of peers: frames of displacements, the arithmetic of its table, what a command spends."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GRIDS

BENCH = Path(__file__).parents[1] / "benchmarks"
sys.path[:0] = [str(BENCH), str(BENCH / "peers")]

import blends  # noqa: E402
import metrics  # noqa: E402
import spent  # noqa: E402
import table  # noqa: E402
from pairs import DIFFICULTIES, aligned  # noqa: E402

from osteomorph.case import Case  # noqa: E402
from osteomorph.image import Image, Labels  # noqa: E402
from osteomorph.io import read_transform  # noqa: E402
from osteomorph.polyrigid import from_labels  # noqa: E402
from osteomorph.transforms import Rigid  # noqa: E402


@pytest.mark.parametrize("name", GRIDS)
def test_lps_and_voxels_become_ras(name, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    grid = GRIDS[name]
    steps = np.random.default_rng(0).normal(size=(*grid.shape, 3)).astype(np.float32)
    moved = np.moveaxis(np.indices(grid.shape), 0, -1) + steps
    world = np.einsum("ab,ijkb->aijk", grid.affine[:3, :3], moved) + grid.affine[:3, 3, None, None, None]
    wanted = world - grid.points(torch.float64).numpy()
    np.testing.assert_allclose(metrics.to_ras(steps, "voxels", grid.affine), wanted, atol=1e-4)

    lps = np.moveaxis(wanted, 0, -1) * [-1, -1, 1]
    np.testing.assert_allclose(metrics.to_ras(lps, "LPS", grid.affine), wanted, atol=1e-12)
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.transpose(lps, (2, 1, 0, 3))), isVector=True)
    flip = np.diag([-1, -1, 1, 1]) @ grid.affine
    image.SetSpacing(grid.spacing_mm.tolist())
    image.SetOrigin(flip[:3, 3].tolist())
    image.SetDirection((flip[:3, :3] / grid.spacing_mm).flatten().tolist())
    sitk.WriteImage(image, str(tmp_path / "lps.mha"))
    itk = read_transform(tmp_path / "lps.mha").displacement(grid)
    np.testing.assert_allclose(metrics.to_ras(lps, "LPS", grid.affine), itk, atol=1e-4)


def test_unknown_frames_and_shapes_are_refused():
    with pytest.raises(ValueError, match="frame"):
        metrics.to_ras(np.zeros((2, 2, 2, 3)), "itk", np.eye(4))
    with pytest.raises(ValueError, match="expected"):
        metrics.to_ras(np.zeros((3, 2, 2, 2)), "RAS", np.eye(4))


def row(pair, method, role, **figures):
    return {"pair": pair, "method": method, "role": role, "labels": "none", **{k: str(v) for k, v in figures.items()}}


ROWS = [
    row("a", "ours", "ours", bone_mm=0.1, soft_mm=0.5, dice=0.97),
    row("b", "ours", "ours", bone_mm=0.3, soft_mm=0.7, dice=0.95),
    row("a", "fast", "peer", bone_mm=0.4, soft_mm=2.0, dice=0.9),
    row("b", "fast", "peer", bone_mm=0.6, soft_mm=4.0, dice=0.8),
    row("a", "slow", "peer", bone_mm=0.2, soft_mm=5.0, dice=0.9, inverse_mm=0.1),
    row("a", "truth", "reference", bone_mm=0.0, soft_mm=0.0, dice=1.0),
]


def test_the_table_shows_medians_and_worst_best_first():
    lines = table.markdown(ROWS, {"bone_mm": ("bone", 2), "dice": ("Dice", 3), "inverse_mm": ("inverse", 2)}).splitlines()
    assert lines[2:] == [
        "| truth | none | 1 | 0.00 (0.00) | 1.000 (1.000) | - |",
        "| ours | none | 2 | 0.20 (0.30) | 0.960 (0.950) | - |",
        "| slow | none | 1 | 0.20 (0.20) | 0.900 (0.900) | 0.10 (0.10) |",
        "| fast | none | 2 | 0.50 (0.60) | 0.850 (0.800) | - |",
    ]


def test_the_worst_volume_change_is_the_furthest_from_one():
    assert table.summary(np.array([1.01, 0.9, 1.05]), "det_mean") == (1.01, 0.9)


def test_ratios_compare_pairs_that_both_have_and_skip_references():
    found = {column: rest for column, *rest in table.ratios(ROWS, "ours")}
    assert found["bone_mm"] == ["slow", 0.2, 0.1, 0.5]  # on pair a alone, where slow ran
    assert found["soft_mm"] == ["fast", 3.0, 0.6, pytest.approx(0.2)]
    assert set(found) == {"bone_mm", "soft_mm"}


def test_a_table_is_read_as_it_was_written(tmp_path):
    table.write(tmp_path / "r.csv", ROWS, ("pair", "method", "role", "labels", "bone_mm", "soft_mm", "dice", "inverse_mm"))
    read = table.read(tmp_path / "r.csv")
    assert table.markdown(read) == table.markdown(ROWS)
    assert read[0]["inverse_mm"] == ""


def test_cost_of_a_command_counts_its_children_and_not_its_parent(tmp_path):
    ballast = np.ones(40_000_000)  # 0.3 GB that the child does not have
    child = "import time; x = bytearray(100 << 20); t = time.process_time()\nwhile time.process_time() - t < 0.4: pass"
    code = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {child!r}]).returncode)"
    cost = spent.run([sys.executable, "-c", code], tmp_path / "log", os.environ, 60)
    assert cost.code == 0
    assert cost.cpu_s >= 0.4
    assert 0.09 < cost.peak_gb < ballast.nbytes / 2**30


def test_a_command_that_fails_or_hangs_says_so(tmp_path):
    assert spent.run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log", os.environ, 60).code == 3
    assert spent.run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", os.environ, 0.2).code == 124


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_pairs_are_aligned(difficulty):
    motion = aligned(difficulty)
    assert motion.offset_mm == motion.offset_deg == (0.0, 0.0)
    assert motion.bone_mm == DIFFICULTIES[difficulty].bone_mm


@pytest.fixture(scope="module")
def two_bones():
    grid = GRIDS["oblique"]
    points = grid.points(torch.float64)
    middle = torch.as_tensor(grid.centre_mm)[:, None, None, None]
    ids = torch.zeros(1, *grid.shape, dtype=torch.int16)
    for label, place in ((1, -0.25), (2, 0.25)):
        centre = middle + place * torch.as_tensor(grid.affine[:3, 0] * grid.shape[0])[:, None, None, None]
        ids[0][(points - centre).norm(dim=0) < 0.1 * float(grid.size_mm[0])] = label
    assert set(ids.unique().tolist()) == {0, 1, 2}
    return Labels(ids, grid)


def test_bones_that_no_found_one_holds_a_third_of_are_missed(two_bones):
    known = metrics.Known(
        Case(
            Image(torch.zeros(1, *two_bones.grid.shape), two_bones.grid),
            Image(torch.zeros(1, *two_bones.grid.shape), two_bones.grid),
            two_bones,
        ),
        Rigid.identity(),
        two_bones,
        two_bones,
    )
    assert metrics.missed_bones(two_bones, known) == 0
    assert metrics.missed_bones(two_bones.only([2]), known) == 1
    inside = (two_bones.data == 1).nonzero()
    few = torch.zeros_like(two_bones.data)
    few[tuple(inside[: len(inside) // 4].T)] = 7
    assert metrics.missed_bones(Labels(few, two_bones.grid), known) == 2


def test_blends_are_rigid_in_bone_and_of_one_motion_where_all_share_it(two_bones):
    shift = np.eye(4)
    shift[:3, 3] = (0.4, -0.3, 0.2)
    base = from_labels({1: Rigid.identity(), 2: Rigid(shift)}, fixed=two_bones)
    grid = two_bones.grid
    bone = two_bones.data[0] == 2
    for build in (blends.blended, blends.log_euclidean):
        vectors = build(base, grid).vectors
        assert float(vectors[:, two_bones.data[0] == 1].norm(dim=0).max()) < 1e-4
        assert float((vectors[:, bone] - torch.tensor(shift[:3, 3:]).float()).norm(dim=0).max()) < 1e-4
    one = from_labels({1: Rigid(shift), 2: Rigid(shift)}, fixed=two_bones)
    for build in (blends.blended, blends.log_euclidean):
        np.testing.assert_allclose(build(one, grid).vectors.flatten(1).mean(1), shift[:3, 3], atol=1e-5)
