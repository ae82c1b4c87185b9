"""Cohorts on disk, and the command that makes them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from osteomorph import io
from osteomorph.cli import app
from osteomorph.cohort import read_cohort
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.simulate.write import FILES, save
from osteomorph.transforms import Displacement, Rigid

COARSE = ("--spacing", "7")


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_saved_pair_reads_back(pair, tmp_path, bone_points):
    folder = tmp_path / "pair000"
    save(pair, folder, more={"patient": "someone"})
    assert {f.name for f in folder.iterdir()} == {f"{n}.nii.gz" for n in FILES} | {"pair.json"}
    assert torch.equal(io.read_image(folder / "moving.nii.gz").data, pair.case.moving.data)
    assert torch.equal(io.read_image(folder / "fixed.nii.gz").data, pair.case.fixed.data)
    assert torch.equal(io.read_labels(folder / "fixed_labels.nii.gz").data.int(), pair.case.fixed_labels.data.int())
    field = io.read_transform(folder / "displacement.nii.gz")
    assert isinstance(field, Displacement)
    points = pair.case.fixed.grid.points(torch.float64).flatten(1)
    assert float((field(points) - pair.truth(points)).norm(dim=0).max()) < 1e-3
    content = json.loads((folder / "pair.json").read_text())
    assert content["parameters"]["seed"] == 0
    assert content["parameters"]["mr"]["contrast"] == "t2"
    assert content["patient"] == "someone"
    assert {b["name"] for b in content["bones"] if b["labelled"]} == {"L3", "L4", "L5"}
    (l4,) = [b for b in content["bones"] if b["label"] == 23]
    np.testing.assert_array_equal(l4["matrix"], pair.poses[23])
    inside = points[:, (pair.case.fixed_labels.data == 23).flatten()]
    assert float((field(inside) - Rigid(np.array(l4["matrix"]))(inside)).norm(dim=0).max()) < 1e-4


def test_truth_may_be_stored_coarser(pair, tmp_path):
    save(pair, tmp_path / "p", truth_spacing_mm=9.0)
    field = io.read_transform(tmp_path / "p" / "displacement.nii.gz")
    np.testing.assert_allclose(field.grid.spacing_mm, 9.0, atol=1e-4)
    points = field.grid.points(torch.float64).flatten(1)
    assert float((field(points) - pair.truth(points)).norm(dim=0).max()) < 1e-3


def test_command_writes_a_cohort_that_goes_on_where_it_stopped(tmp_path):
    out = tmp_path / "cohort"
    result = run("simulate", "-o", out, "-n", 2, "--seed", 3, *COARSE, "--contrast", "mixed", "--truth-spacing", 12)
    assert result.exit_code == 0, result.output
    cohort = read_cohort(out)
    assert [pair.id for pair in cohort.pairs] == ["pair000", "pair001"]
    assert len({pair.patient for pair in cohort.pairs}) == 2
    assert cohort.names[23] == "L4"
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*.nii.gz")}
    one = json.loads((out / "pair000" / "pair.json").read_text())

    again = run("simulate", "-o", out, "-n", 3, "--seed", 3, *COARSE, "--contrast", "mixed", "--truth-spacing", 12)
    assert again.exit_code == 0, again.output
    assert all(f.stat().st_mtime_ns == time for f, time in before.items())
    assert len(read_cohort(out).pairs) == 3

    other = run("simulate", "-o", out, "-n", 1, "--seed", 4, *COARSE)
    assert other.exit_code == 2
    assert "another request" in other.stderr
    assert json.loads((out / "pair000" / "pair.json").read_text()) == one
    assert not [f for f in out.iterdir() if f.name.startswith(".")]


def ball(points, centre, radius):
    return (points - torch.tensor(centre)[:, None]).norm(dim=0) - radius


@pytest.fixture
def ct_files(tmp_path):
    """A CT of a cylinder of flesh with two balls of bone, and its labels."""
    affine = np.diag([-2.5, -2.5, 2.5, 1.0])
    affine[:3, 3] = (60.0, 60.0, -60.0)
    grid = Grid((49, 49, 49), affine)
    points = grid.points().flatten(1)
    hu = torch.full((grid.voxels,), -1000.0)
    hu[points[:2].norm(dim=0) < 52] = 50.0
    data = torch.zeros(grid.voxels, dtype=torch.int16)
    for label, centre in ((1, (0.0, 0.0, 22.0)), (2, (0.0, 0.0, -22.0))):
        distance = ball(points, centre, 16.0)
        hu[distance < 0] = 700.0
        hu[distance < -4] = 220.0
        data[distance < 0] = label
    hu += 8 * torch.randn(grid.voxels, generator=torch.Generator().manual_seed(0))
    image = Image(hu.unflatten(0, grid.shape)[None], grid, np.dtype(np.int16))
    io.write_image(tmp_path / "ct.nii.gz", image)
    io.write_image(tmp_path / "labels.nii.gz", Labels(data.unflatten(0, grid.shape)[None], grid))
    (tmp_path / "labels.json").write_text('{"1": "vertebrae_L4", "2": "vertebrae_L5"}')
    return tmp_path


def test_command_simulates_from_a_ct_and_keeps_its_voxels(ct_files):
    out = ct_files / "out"
    result = run(
        "simulate", "-o", out, "--ct", ct_files / "ct.nii.gz", "--labels", ct_files / "labels.nii.gz", "--spacing", 3.5
    )
    assert result.exit_code == 0, result.output
    moving = io.read_image(out / "pair000" / "moving.nii.gz")
    assert torch.equal(moving.data, io.read_image(ct_files / "ct.nii.gz").data)
    content = json.loads((out / "pair000" / "pair.json").read_text())
    assert [b["name"] for b in content["bones"]] == ["L4", "L5"]
    assert content["anatomy"]["kind"] == "ct"
    assert content["patient"] == "ct"


def test_command_simulates_from_a_label_map_alone(ct_files):
    result = run("simulate", "-o", ct_files / "out", "--labels", ct_files / "labels.nii.gz", "--spacing", 3.5)
    assert result.exit_code == 0, result.output
    moving = io.read_image(ct_files / "out" / "pair000" / "moving.nii.gz")
    assert float(moving.data.max()) > 150


def refused(result, *words):
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("osteomorph:")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_bad_requests_get_one_line(ct_files, tmp_path):
    ct, labels = ct_files / "ct.nii.gz", ct_files / "labels.nii.gz"
    out = tmp_path / "never"
    refused(run("simulate", "-o", out, "--ct", ct), "--labels")
    refused(run("simulate", "-o", out, "--view", "skull"), "skull", "lumbar")
    refused(run("simulate", "-o", out, "--contrast", "flair", *COARSE), "flair", "gre")
    refused(run("simulate", "-o", out, "--ct", ct, "--labels", labels, "--view", "skull"), "skull", "whole")
    refused(run("simulate", "-o", out, "--ct", tmp_path / "gone.nii.gz", "--labels", labels), "gone.nii.gz")
    refused(run("simulate", "-o", out, "--ct", ct, "--labels", ct), "label")
    (ct_files / "labels.json").write_text('{"1": "vertebrae_L4"}')
    refused(run("simulate", "-o", out, "--ct", ct, "--labels", labels), "one bone")
    (ct_files / "labels.json").write_text('{"1": "liver", "2": "spleen"}')
    refused(run("simulate", "-o", out, "--ct", ct, "--labels", labels), "bone")
    (ct_files / "labels.json").unlink()
    refused(run("simulate", "-o", out, "--labels", labels), "name")
    assert not out.exists()


def cropped(folder: Path, name: str, corner: int) -> Path:
    image = io.read_labels(folder / name) if "labels" in name else io.read_image(folder / name)
    size = 20
    part = (slice(None), *[slice(corner, corner + size)] * 3)
    grid = image.grid.padded((-corner,) * 3, (corner + size - image.grid.shape[0],) * 3)
    target = folder / f"small_{name}"
    io.write_image(target, type(image)(image.data[part].clone(), grid))
    return target


def test_a_tiny_field_of_view_is_said(ct_files):
    small = cropped(ct_files, "ct.nii.gz", 14), cropped(ct_files, "labels.nii.gz", 14)
    refused(run("simulate", "-o", ct_files / "o", "--ct", small[0], "--labels", small[1]), "field of view")
