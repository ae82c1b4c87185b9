"""Every kind of bad input through the command line: exit code 2, one line that says what to do, nothing left behind."""

import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from osteomorph import memory
from osteomorph.cli import app

SHAPE = (24, 22, 20)
AFFINE = np.diag([-2.0, -2.0, 2.5, 1.0])


def voxels(seed=0, shape=SHAPE):
    ramps = np.meshgrid(*[np.arange(n) for n in shape[:3]], indexing="ij")
    smooth = sum(300 * np.sin(r / 3.0 + d) for d, r in enumerate(ramps))
    return (smooth + np.random.default_rng(seed).normal(0, 20, shape[:3])).astype(np.int16)


def label_voxels(ids=(20, 21)):
    data = np.zeros(SHAPE, np.uint8)
    for number, label in enumerate(ids):
        data[6:18, 6:16, 3 + 8 * number : 9 + 8 * number] = label
    return data


def save(path, data, affine=AFFINE):
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.fixture
def pair(tmp_path):
    """A folder with a sound pair: fixed.nii.gz, moving.nii.gz and labels of both."""
    for name in ("fixed", "moving"):
        save(tmp_path / f"{name}.nii.gz", voxels(), AFFINE)
        save(tmp_path / f"{name}_labels.nii.gz", label_voxels())
    return tmp_path


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def refused(folder, *more, output="out", command="register", says=()):
    """Runs a command on the pair and checks that it refuses as it should; later options override earlier ones."""
    before = contents(folder)
    sides = ["-f", folder / "fixed.nii.gz", "-m", folder / "moving.nii.gz", "-o", folder / output]
    result = CliRunner().invoke(app, [command, *map(str, sides), *map(str, more)])
    lines = result.stderr.splitlines()
    assert result.exit_code == 2, result.output
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("osteomorph: error: ")
    assert "Traceback" not in result.output
    for words in says:
        assert words in lines[0]
    assert contents(folder) == before
    return lines[0]


def _missing(path):
    path.unlink()


def _text(path):
    path.write_text("patient moved, scan again\n")


def _compressed_text(path):
    path.write_bytes(gzip.compress(b"patient moved, scan again\n" * 50))


def _truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path):
    path.write_bytes(b"")


def _folder(path):
    path.unlink()
    path.mkdir()


def _two_axes(path):
    save(path, voxels()[:, :, 0])


def _four_axes(path):
    save(path, np.stack([voxels(0), voxels(1)], -1))


def _nan(path):
    data = voxels().astype(np.float32)
    data[3, 4, 5] = np.nan
    save(path, data)


def _infinite(path):
    data = voxels().astype(np.float32)
    data[3, 4, 5] = np.inf
    save(path, data)


def _zero(path):
    save(path, np.zeros(SHAPE, np.int16))


def _constant(path):
    save(path, np.full(SHAPE, -1000, np.int16))


def _labels(path):
    save(path, label_voxels())


def _thin(path):
    save(path, voxels()[:, :, :1])


def _sheared(path):
    affine = AFFINE.copy()
    affine[0, 2] = 2.0
    save(path, voxels(), affine)


def _no_spacing(path):
    image = nib.Nifti1Image(voxels(), None)
    image.header["pixdim"][2] = 0
    image.header["qform_code"] = image.header["sform_code"] = 0
    raw = bytearray(image.header.binaryblock) + b"\0" * 4 + voxels().tobytes(order="F")
    path.write_bytes(gzip.compress(bytes(raw)))


SPOILT = {
    _missing: ["does not exist", "Check"],
    _text: ["not", "text", "Copy or export"],
    _compressed_text: ["not", "Copy or export"],
    _truncated: ["truncated", "Copy or export"],
    _empty: ["empty", "Copy or export"],
    _folder: ["folder", "Give a file"],
    _two_axes: ["2-D", "Give a 3-D volume"],
    _four_axes: ["4-D", "Give one 3-D volume"],
    _nan: ["NaN", "1 voxel", "Replace"],
    _infinite: ["infinity", "Replace"],
    _zero: ["0 everywhere", "Export it again"],
    _constant: ["-1000 everywhere", "Export it again"],
    _labels: ["label map", "Give the image"],
    _thin: ["1 voxel", "at least"],
    _sheared: ["not orthogonal", "Resample"],
    _no_spacing: ["spacing of 0", "Write it again"],
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__[1:])
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_bad_image_is_refused(pair, side, spoil):
    spoil(pair / f"{side}.nii.gz")
    refused(pair, says=[f"{side}.nii.gz", *SPOILT[spoil]])


@pytest.mark.parametrize("command", ["register", "prepare"])
def test_other_files_are_refused_by_their_content(pair, command):
    (pair / "scan.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 100)
    refused(pair, "-m", pair / "scan.dcm", command=command, says=["scan.dcm", "no DICOM image"])
    shutil.copy(pair / "fixed.nii.gz", pair / "fixed.nii")
    refused(pair, "-f", pair / "fixed.nii", command=command, says=["fixed.nii", ".nii.gz"])


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_labels_on_another_grid_are_refused(pair, side):
    path = pair / f"{side}_labels.nii.gz"
    moved = AFFINE.copy()
    moved[0, 3] = 7.0
    for data, affine in (
        (label_voxels()[:, :, 1:], AFFINE),
        (label_voxels(), moved),
        (label_voxels(), AFFINE @ np.diag([1, 1, 2, 1])),
    ):
        save(path, data, affine)
        refused(pair, f"--{side}-labels", path, says=[path.name, "another grid", "Resample"])


def test_labels_that_are_none_are_refused(pair):
    for data, says in (
        (voxels(), "negative"),
        (voxels().astype(np.float32) / 7 + 1000, "fractions"),
        (np.zeros(SHAPE, np.uint8), "background"),
        ((voxels() + 2000).astype(np.int16), "looks like an image"),
    ):
        path = save(pair / "moving_labels.nii.gz", data)
        refused(pair, "--moving-labels", path, says=[path.name, says])
    refused(pair, "--moving-labels", pair / "nowhere.nii.gz", says=["nowhere.nii.gz", "does not exist"])


def test_a_mask_that_is_none_is_refused(pair):
    for data, says in ((voxels(), "from 0 to 1"), (np.zeros(SHAPE, np.uint8), "0 everywhere")):
        path = save(pair / "mask.nii.gz", data)
        refused(pair, "--fixed-mask", path, says=[path.name, says])
    path = save(pair / "mask.nii.gz", np.ones(SHAPE, np.uint8)[:, 1:])
    refused(pair, "--fixed-mask", path, says=[path.name, "another grid"])


def test_a_label_that_does_not_occur_is_refused(pair):
    given = ("--moving-labels", pair / "moving_labels.nii.gz")
    refused(pair, *given, "--bone-labels", "20,25", says=["25", "does not occur", "20, 21", "Correct --bone-labels"])
    refused(pair, *given, "--bone-labels", "25=L5", says=["25"])
    refused(pair, "--bone-labels", "20", says=["--moving-labels"])
    for text in ("L5", "20,", "20=", "-3", "20,20", ""):
        if text != "20,":
            refused(pair, *given, "--bone-labels", text, says=["--bone-labels"])
    (pair / "names.json").write_text("[20, 21]")
    refused(pair, *given, "--bone-labels", pair / "names.json", says=["names.json"])


def test_bones_of_labels_that_are_not_given_are_refused(pair):
    refused(pair, "--bones", "fixed", "--moving-labels", pair / "moving_labels.nii.gz", says=["--fixed-labels"])


@pytest.mark.parametrize("initial", ["none", "file", None])
def test_fields_of_view_that_do_not_overlap_are_refused(pair, initial):
    far = AFFINE.copy()
    far[:3, 3] = (900.0, -700.0, 800.0)
    save(pair / "moving.nii.gz", voxels(), far)
    given = initial
    if initial == "file":
        from osteomorph.io import write_transform
        from osteomorph.transforms import Rigid

        given = pair / "start.tfm"
        write_transform(given, Rigid.identity())
    refused(pair, *([] if given is None else ["--initial", given]), says=["overlap", "Give"])


def test_an_initial_transform_that_is_none_is_refused(pair):
    refused(pair, "--initial", pair / "start.h5", says=["start.h5", "does not exist"])
    (pair / "start.h5").write_text("1 0 0 0")
    refused(pair, "--initial", pair / "start.h5", says=["start.h5", "not a transform"])
    refused(pair, "--initial", pair / "fixed.nii.gz", says=["fixed.nii.gz", "no transform"])


def test_a_plan_that_is_none_is_refused(pair):
    refused(pair, "--plan", "fastest", says=["fastest", "default"])
    refused(pair, "--plan", pair / "plan.toml", says=["plan.toml"])
    for text in ("name = ", '[prepare]\nspacing_mm = "wide"', "[refine]\nwarp = 1"):
        (pair / "plan.toml").write_text(text)
        refused(pair, "--plan", pair / "plan.toml", says=["plan.toml"])


def test_existing_output_is_refused(pair):
    out = pair / "out"
    out.mkdir()
    (out / "result.json").write_text("{}")
    refused(pair, says=["out", "--overwrite"])
    (out / "result.json").rename(out / "thesis.docx")
    refused(pair, says=["out", "Give another folder"])
    refused(pair, "--overwrite", says=["out", "Give another folder"])
    refused(pair, output="fixed.nii.gz", says=["is a file"])
    refused(pair, output="fixed.nii.gz/out", says=["is a file"])


def test_an_input_inside_the_output_is_not_replaced(pair):
    (pair / "out").mkdir()
    (pair / "out" / "result.json").write_text("{}")
    inside = shutil.copy(pair / "moving.nii.gz", pair / "out" / "ct.nii.gz")
    refused(pair, "-m", inside, "--overwrite", says=["ct.nii.gz", "Give the output another folder"])


def test_output_without_permission_is_refused(pair, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # a test run as root may write anywhere
    refused(pair, says=["out", "no permission", "Give another folder"])


def test_a_disk_that_refuses_at_the_end_leaves_nothing(pair, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("osteomorph.io.nifti._Deflating.write", full)
    refused(pair, command="prepare", says=["No space left", "Check"])


@pytest.mark.parametrize("command", ["register", "prepare"])
def test_too_little_memory_is_said_before_the_work(pair, monkeypatch, command):
    monkeypatch.setattr(memory, "available_bytes", lambda: 100 * 2**20)
    refused(pair, command=command, says=["GB", "Crop", "prepare.spacing_mm"])


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
)
def test_memory_that_runs_out_is_one_line(pair, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("osteomorph.registration.register", fail)
    refused(pair, says=["Not enough memory", "Crop the images"])


def test_a_log_replaces_nothing(pair):
    refused(pair, "--json-log", pair / "fixed.nii.gz", says=["--json-log", "exists"])
    refused(pair, "--json-log", pair / "fixed.nii.gz", "--overwrite", says=["--json-log", "exists"])
    refused(pair, "--json-log", pair / "none" / "log.jsonl", says=["--json-log", "no folder"])
    refused(pair, "--json-log", pair / "out" / "log.jsonl", says=["--json-log", "output folder"])


def test_a_device_that_is_absent_is_refused(pair, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(pair, "--device", "cuda", says=["CUDA", "--device cpu"])


def test_apply_refuses_in_the_same_way(pair):
    def apply_refused(*args, says):
        before = contents(pair)
        result = CliRunner().invoke(app, ["apply", *map(str, args)])
        assert result.exit_code == 2, result.output
        assert len(result.stderr.splitlines()) == 1
        assert contents(pair) == before
        for words in says:
            assert words in result.stderr

    from osteomorph.io import write_transform
    from osteomorph.transforms import Rigid

    out, there = ("-o", pair / "carried"), pair / "transform.h5"
    apply_refused("-t", there, *out, pair / "fixed.nii.gz", says=["transform.h5", "does not exist"])
    write_transform(there, Rigid.identity())
    apply_refused("-t", there, *out, pair / "moving.nii.gz", says=["--reference"])
    apply_refused("-t", there, *out, pair / "nothing.csv", says=["nothing.csv"])
    (pair / "p.csv").write_text("x,y,z\n1,2,\n")
    apply_refused("-t", there, *out, pair / "p.csv", says=["p.csv", "row 2"])
    reference = ("--reference", pair / "fixed.nii.gz")
    apply_refused("-t", there, "-o", pair, *reference, pair / "moving.nii.gz", says=["is read", "-o"])
    apply_refused("-t", there, "-o", pair / "p.csv", *reference, pair / "moving.nii.gz", says=["is a file"])
    apply_refused(
        "-t", there, *out, *reference, "--labels", "--interpolation", "linear", pair / "moving.nii.gz", says=["contradict"]
    )
    apply_refused("-t", pair / "fixed.nii.gz", *out, *reference, pair / "moving.nii.gz", says=["no transform"])


def test_info_of_what_is_not_there_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for name in ("absent.nii.gz", "notes.txt", "."):
        result = CliRunner().invoke(app, ["info", str(tmp_path / name)])
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1


def test_axes_slightly_off_are_repaired_with_a_warning(pair):
    affine = AFFINE.copy()
    affine[0, 2] = 0.02
    save(pair / "moving.nii.gz", voxels(), affine)
    given = ["-f", pair / "fixed.nii.gz", "-m", pair / "moving.nii.gz", "-o", pair / "out"]
    result = CliRunner().invoke(app, ["prepare", *map(str, given)])
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: ")
    assert "moving.nii.gz" in line
    assert "not orthogonal" in line
    assert (pair / "out" / "moving.nii.gz").exists()
