"""The commands, on a small pair; what they refuse is in test_cli_bad_input."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import axis_grid, sagittal_grid
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

import osteomorph
from osteomorph import io, registration
from osteomorph.cli import app
from osteomorph.demo import run_demo
from osteomorph.doctor import Finding
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.transforms import Rigid

QUICK = """
name = "quick"
[prepare]
spacing_mm = 3.0
[refine]
field_spacing_mm = 6.0
levels = [{control_mm = 24.0, iterations = 4, step_mm = 0.5}]
weights = {mutual_information = 1.0, bending = 5.0, rigidity = 1.0}
"""

FILES = {
    "bones.json",
    "displacement.nii.gz",
    "inverse.h5",
    "moved.nii.gz",
    "moved_labels.nii.gz",
    "result.json",
    "transform.h5",
}


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # these images are too small for more, which only wait for each other on a busy machine


def seen(points_mm):
    """Intensity and label of a small anatomy at world points: three round bones in wavy tissue."""
    x, y, z = points_mm
    values = 300 * torch.sin(x / 9) + 200 * torch.sin(y / 7 + 1) + 250 * torch.cos(z / 11)
    labels = torch.zeros_like(values, dtype=torch.int16)
    for label, centre in ((22, 19.0), (23, 0.0), (24, -19.0)):
        labels[((x / 1.3) ** 2 + y**2 + (z - centre) ** 2) < 64] = label
    return values + 600 * (labels > 0), labels


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """An oblique sagittal MR and an axial CT, a small rotation apart, as files with their labels."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pair")
    tilt, motion = np.eye(4), np.eye(4)
    tilt[:3, :3] = Rotation.from_euler("xyz", (4, -3, 5), degrees=True).as_matrix()
    motion[:3, :3] = Rotation.from_euler("xyz", (1, -2, 2), degrees=True).as_matrix()
    motion[:3, 3] = (1.5, -1.0, 2.0)
    sagittal, axial = sagittal_grid((30, 26, 22), (2.2, 2.2, 2.8)), axis_grid((-1, -1, 1), (30, 30, 28), (2.3, 2.3, 2.7))
    sides = {"fixed": (sagittal.moved(tilt), Rigid(motion)), "moving": (axial, Rigid.identity())}
    generator = torch.Generator().manual_seed(0)
    for side, (at, truth) in sides.items():
        affine = at.affine.copy()
        affine[:3, 3] -= at.centre_mm
        grid = Grid(at.shape, affine)
        values, labels = seen(truth(grid.points().flatten(1)))
        values = (800 - 0.6 * values if side == "fixed" else values) + 20 * torch.randn(values.shape, generator=generator)
        io.write_image(
            folder / f"{side}.nii.gz", Image(values.round().unflatten(0, grid.shape)[None], grid, np.dtype(np.int16))
        )
        io.write_image(folder / f"{side}_labels.nii.gz", Labels(labels.unflatten(0, grid.shape)[None], grid))
    (folder / "quick.toml").write_text(QUICK)
    return folder


def sides(pair, out):
    return ["-f", pair / "fixed.nii.gz", "-m", pair / "moving.nii.gz", "-o", out, "--plan", pair / "quick.toml"]


@pytest.fixture(scope="module")
def result(pair):
    """A registration through the command line, and what it printed."""
    labels = ["--fixed-labels", pair / "fixed_labels.nii.gz", "--moving-labels", pair / "moving_labels.nii.gz"]
    names = ["--bone-labels", "22=L3,23=L4,24=L5", "--json-log", pair / "log.jsonl", "--seed", "3"]
    printed = CliRunner().invoke(app, ["register", *map(str, [*sides(pair, pair / "out"), *labels, *names])])
    assert printed.exit_code in (0, 3), printed.output
    return pair / "out", printed


def test_help_names_every_command():
    printed = run("--help").output
    for command in ("register", "apply", "bones", "prepare", "info", "demo", "doctor"):
        assert f"\n  {command} " in printed
        assert "Usage" in run(command, "--help").output


def test_the_version_is_printed():
    assert run("--version").output.strip() == f"osteomorph {osteomorph.__version__}"


def test_help_loads_nothing_heavy():
    script = "import sys, osteomorph.cli; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "typer" in loaded
    assert not {"torch", "numpy", "scipy", "SimpleITK", "nibabel", "pydantic", "rich"} & set(loaded)


def test_wrong_usage_exits_2(tmp_path):
    run("register", "-f", "a.nii.gz", code=2)
    run("register", "-f", "a", "-m", "b", "-o", tmp_path / "c", "--bones", "some", code=2)
    run("register", "-f", "a", "-m", "b", "-o", tmp_path / "c", "--threads", "0", code=2)
    run("enlist", code=2)


def test_register_writes_the_folder_and_prints_each_bone(result):
    out, printed = result
    assert {p.name for p in out.iterdir()} >= set(FILES)
    for words in ("L3", "L4", "L5", "seconds", "memory", "Dice", "transform.h5", str(out)):
        assert words in printed.stdout
    record = json.loads((out / "result.json").read_text())
    assert record["seed"] == 3
    assert record["plan"]["name"] == "quick"
    assert [bone["name"] for bone in json.loads((out / "bones.json").read_text())["bones"]] == ["L3", "L4", "L5"]
    assert printed.exit_code == (0 if record["passed"] else 3)
    assert len(printed.stderr.splitlines()) == len(record["warnings"])


def test_register_logs_its_progress(result):
    lines = [json.loads(line) for line in (result[0].parent / "log.jsonl").read_text().splitlines()]
    assert [line["done"] for line in lines if line["stage"] == "refine"] == [1, 2, 3, 4]
    assert lines[-1]["stage"] == "done"
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_a_result_is_replaced_when_asked(result, pair, monkeypatch):
    out, _ = result
    before = (out / "transform.h5").read_bytes()
    run("register", *sides(pair, out), code=2)
    assert (out / "transform.h5").read_bytes() == before
    monkeypatch.setattr(registration, "register", lambda *args, **kwargs: (_ for _ in ()).throw(InputError("no more.")))
    run("register", *sides(pair, out), "--overwrite", code=2)
    assert (out / "transform.h5").read_bytes() == before


def test_options_reach_the_registration(pair, tmp_path, monkeypatch):
    given = {}

    def record(fixed, moving, **options):
        given.update(options, fixed=fixed, moving=moving, threads=torch.get_num_threads())
        raise InputError("seen.")

    monkeypatch.setattr(registration, "register", record)
    (tmp_path / "names.json").write_text('{"22": "L3"}')
    options = ["--no-refine", "--initial", "centres", "--bones", "both", "--device", "cpu", "--threads", "1", "--seed", "9"]
    options += ["--network", "own.safetensors"]
    masks = ["--fixed-mask", "a.nii.gz", "--moving-mask", "b.nii.gz", "--moving-labels", "c.nii.gz"]
    run("register", *sides(pair, tmp_path / "out"), *options, *masks, "--bone-labels", tmp_path / "names.json", code=2)
    assert given["fixed"] == pair / "fixed.nii.gz"
    assert given["moving"] == pair / "moving.nii.gz"
    assert (given["refine"], given["initial"], given["bones"], given["device"]) == (False, "centres", "both", "cpu")
    assert (given["threads"], given["seed"], given["plan"]) == (1, 9, str(pair / "quick.toml"))
    assert [given[k].name for k in ("fixed_mask", "moving_mask", "moving_labels")] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert given["network"].name == "own.safetensors"
    assert given["fixed_labels"] is None
    assert given["bone_labels"] == {22: "L3"}
    run("register", *sides(pair, tmp_path / "out"), "--bone-labels", "22, 23", code=2)
    assert given["bone_labels"] == [22, 23]
    assert (given["refine"], given["initial"], given["bones"], given["device"]) == (None, None, "auto", "auto")
    assert (given["threads"], given["seed"]) == (torch.get_num_threads(), None)


@pytest.mark.parametrize("threads", [1, 3])
def test_files_are_written_with_the_threads_that_were_asked_for(pair, tmp_path, monkeypatch, threads):
    write, seen = registration.Registration.write, []

    def counted(*args, **options):
        seen.append(torch.get_num_threads())
        return write(*args, **options)

    monkeypatch.setattr(registration.Registration, "write", counted)
    before = torch.get_num_threads()
    run("register", *sides(pair, tmp_path / "out"), "--no-refine", "--initial", "none", "--threads", threads)
    assert seen == [threads]
    assert torch.get_num_threads() == before


def test_a_quality_warning_exits_3_with_the_result_written(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(registration.Registration, "warnings", ("Look\ntwice.",))
    printed = run("register", *sides(pair, tmp_path / "out"), "--no-refine", "--initial", "none", code=3)
    assert printed.stderr == "warning: Look twice.\n"
    assert json.loads((tmp_path / "out" / "result.json").read_text())["passed"] is False
    monkeypatch.setattr(registration.Registration, "warnings", ())
    run("register", *sides(pair, tmp_path / "sound"), "--no-refine", "--initial", "none")


def _raises(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize("where", ["registration.optimise", "record.write_displacement"])
def test_ctrl_c_leaves_nothing(pair, tmp_path, monkeypatch, where):
    monkeypatch.setattr(f"osteomorph.{where}", _raises(KeyboardInterrupt()))
    printed = run("register", *sides(pair, tmp_path / "deep" / "out"), "--initial", "none", code=130)
    assert printed.stderr == "osteomorph: stopped; nothing was written.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing(pair, tmp_path, number, code):
    log = tmp_path / "log.jsonl"
    (tmp_path / "long.toml").write_text(QUICK.replace("iterations = 4", "iterations = 100000"))
    given = [
        *sides(pair, tmp_path / "out")[:-1],
        tmp_path / "long.toml",
        "--initial",
        "none",
        "--threads",
        "1",
        "--json-log",
        log,
    ]
    command = [sys.executable, "-m", "osteomorph", "register", *map(str, given), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (log.exists() and "refine" in log.read_text()):
        time.sleep(0.05)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert "Traceback" not in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "long.toml"]
    assert json.loads(log.read_text().splitlines()[-1])["stage"] == "failed"


def test_a_fault_of_the_program_is_one_line(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(registration, "register", _raises(ZeroDivisionError("division\nby zero")))
    printed = run("register", *sides(pair, tmp_path / "out"), code=1)
    (line,) = printed.stderr.splitlines()
    assert "ZeroDivisionError: division by zero" in line
    assert "--debug" in line
    printed = run("--debug", "register", *sides(pair, tmp_path / "out"), code=1)
    assert "Traceback" in printed.stderr


def test_warnings_of_ours_are_lines_and_of_libraries_are_hidden(monkeypatch):
    def examine():
        for _ in range(2):
            warnings.warn("Axes\nrepaired.", io.HeaderWarning, stacklevel=1)
        warnings.warn("deprecated", UserWarning, stacklevel=1)
        return [Finding("topic", "value")]

    monkeypatch.setattr("osteomorph.doctor.examine", examine)
    assert run("doctor").stderr == "warning: Axes repaired.\n"
    assert "deprecated" in run("--debug", "doctor").stderr


def test_apply_repeats_the_registration(result, pair, tmp_path):
    out, _ = result
    printed = run("apply", "-t", out / "transform.h5", pair / "moving.nii.gz", pair / "moving_labels.nii.gz", "-o", tmp_path)
    moved, again = (nib.load(p / n).get_fdata() for p, n in ((out, "moved.nii.gz"), (tmp_path, "moving.nii.gz")))
    assert np.abs(moved - again).max() <= 1
    labels, carried = (io.read_labels(p / n) for p, n in ((out, "moved_labels.nii.gz"), (tmp_path, "moving_labels.nii.gz")))
    assert torch.equal(labels.data, carried.data)
    assert "image, moving -> fixed space through transform.h5" in printed.stdout
    assert "label map" in printed.stdout
    back = run("apply", "-t", out, pair / "fixed.nii.gz", "-o", tmp_path, "--inverse").stdout
    assert "fixed -> moving space through inverse.h5" in back
    assert io.read_header(tmp_path / "fixed.nii.gz").grid == io.read_header(pair / "moving.nii.gz").grid


def test_prepare_writes_the_canonical_case(pair, tmp_path):
    out = tmp_path / "prepared"
    labels = io.read_labels(pair / "fixed_labels.nii.gz")
    io.write_image(pair / "mask.nii.gz", Labels(labels.mask().to(torch.int16), labels.grid))
    given = [*sides(pair, out), "--moving-labels", pair / "moving_labels.nii.gz", "--fixed-mask", pair / "mask.nii.gz"]
    printed = run("prepare", *given).stdout
    assert {p.name for p in out.iterdir()} == {
        "fixed.nii.gz",
        "moving.nii.gz",
        "moving_labels.nii.gz",
        "fixed_mask.nii.gz",
        "prepared.json",
    }
    image, labels = io.read_image(out / "moving.nii.gz"), io.read_labels(out / "moving_labels.nii.gz")
    assert np.allclose(image.grid.spacing_mm, 3.0, atol=1e-4)
    assert (float(image.data.min()), float(image.data.max())) == (0.0, 1.0)
    assert labels.ids() == io.read_labels(pair / "moving_labels.nii.gz").ids()
    assert "3 x 3 x 3 mm" in printed
    run("prepare", *given, code=2)
    run("prepare", *given, "--overwrite")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "fixed.nii.gz",
            ["image", "int16", "voxels", "spacing", "IPL", "inferior", "oblique by", "field of view", "mean"],
        ),
        ("moving_labels.nii.gz", ["label map", "22 ", "ml in", "LPS"]),
        ("out/displacement.nii.gz", ["displacement in RAS (intent 1006)", "displacements: up to", "Jacobian determinant"]),
        ("quick.toml", ["plan", "quick", "prepare.spacing_mm", "3", "control_mm 24", "sha256"]),
        ("out", ["registration", "rigid start", "mutual_information", "quality check", "bone L3", "rotation"]),
        ("out/transform.h5", ["points fixed -> moving", "LPS mm in the file", "steps", "rigid:", "degrees", "displacements"]),
        ("out/inverse.h5", ["points moving -> fixed"]),
        ("out/bones.json", ["bones", "bone L4", "not rigid by"]),
        ("out/result.json", ["registration", "quick"]),
    ],
)
def test_info_says_what_a_file_holds(result, name, says):
    printed = run("info", result[0].parent / name).stdout
    for words in says:
        assert words in printed


def test_info_knows_the_recipes():
    printed = run("info", "thesis-us-rp").stdout
    for words in ("kind", "plan", "prepare.shape", "320", "rigidity 0.2"):
        assert words in printed


def test_info_of_points_and_of_what_does_not_fit(tmp_path):
    (tmp_path / "p.csv").write_text("r,a,s,name\n1,2,3,a\n4,5,-6,b\n")
    printed = run("info", tmp_path / "p.csv").stdout
    assert "(1.0, 2.0, -6.0) to (4.0, 5.0, 3.0) mm RAS" in printed
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 3), np.float32), np.eye(4)), tmp_path / "four.nii.gz")
    printed = run("info", tmp_path / "four.nii.gz").stdout
    assert "problem" in printed
    assert "4-D" in printed


def test_doctor_checks_the_machine():
    printed = run("doctor").stdout
    for words in ("osteomorph", "torch", "memory", "GB available", "temporary folder", "goes there and back", "bf16"):
        assert words in printed


def test_doctor_finds_broken_arithmetic(monkeypatch):
    from osteomorph.transforms import Rigid

    monkeypatch.setattr(Rigid, "inverse", lambda self: self)
    printed = run("doctor")
    assert "! self-check" in printed.stdout
    assert "self-check" in printed.stderr


def test_the_demo_measures_the_files_it_wrote(tmp_path, pair):
    out = tmp_path / "demo"
    rows, _ = run_demo(out, seed=1, spacing_mm=4.0, plan=pair / "quick.toml")
    assert [row["name"] for row in rows] == ["identity", "rigid start", "result", "truth"]
    identity, start, result, truth = rows
    assert identity["tre_bone_mean_mm"] > 2 > start["tre_bone_mean_mm"] > truth["tre_bone_mean_mm"] == 0
    assert identity["dice_mean"] < start["dice_mean"] < truth["dice_mean"]
    assert result["det_sd"] > 0 == identity["det_sd"]
    assert result["seconds"] > 0
    assert result["peak_memory_gb"] > 0.1
    assert {p.name for p in out.iterdir()} == {"pair", "result", "overlay.png", "table.md", "table.json"}
    assert (out / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "table.json").read_text())["rows"][2]["tre_soft_mean_mm"] == result["tre_soft_mean_mm"]
    written = (out / "table.md").read_text()
    for heading in ("TRE bone", "TRE soft", "Dice", "HD99", "det J", "SD", "folding", "GB"):
        assert heading in written
    assert f"{result['tre_bone_mean_mm']:.3f}" in written


def test_the_demo_prints_its_table_and_names_its_picture(tmp_path, monkeypatch):
    rows = [{"name": "identity", "tre_bone_mean_mm": 7.25, "folding_percent": 0.0}, {"name": "result", "dice_mean": 0.9434}]
    monkeypatch.setattr("osteomorph.demo.run_demo", lambda *args: (rows, ("It folds.",)))
    printed = run("demo", "-o", tmp_path / "demo")
    for words in ("identity", "7.250", "0.9434", str(tmp_path / "demo" / "overlay.png"), "table.md"):
        assert words in printed.stdout
    assert printed.stderr == "warning: It folds.\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    run("demo", "-o", tmp_path / "mine", "--overwrite", code=2)
