"""DICOM series: folders and files as scanners export them, in any orientation, and those that are refused."""

import locale
import shutil
import struct
import threading

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import GRIDS, oblique_grid
from typer.testing import CliRunner

from osteomorph.apply import apply_transform
from osteomorph.cli import app
from osteomorph.describe import describe
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image
from osteomorph.io import dicom, digest, read_header, read_image, read_labels, write_image, write_transform
from osteomorph.io.headers import HeaderWarning
from osteomorph.transforms import Rigid

LPS = np.diag([-1.0, -1.0, 1.0])
WHOLE = {"0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1"}
"""How values are stored, which ITK has to be told of a rescaled series."""


def write_series(folder, values, grid, uid="1.2.3", names=None, slope=1.0, intercept=0.0, corner=None, **tags):
    """One file per plane along the third axis of a RAS grid. corner: plane -> where it lies instead, RAS mm."""
    folder.mkdir(exist_ok=True)
    ours = locale.setlocale(locale.LC_ALL)
    kept = sitk.ImageFileWriter()
    kept.SetImageIO("GDCMImageIO")
    kept.KeepOriginalImageUIDOn()
    for k in range(grid.shape[2]):
        dtype = np.int16 if slope == int(slope) and not WHOLE.keys() & tags.keys() else np.float32
        plane = sitk.GetImageFromArray(values[:, :, k].T.astype(dtype))
        plane.SetSpacing([float(h) for h in grid.spacing_mm[:2]])
        place = (grid.affine @ [0, 0, k, 1])[:3] if corner is None else corner(k)
        told = {
            "0008|0060": "CT",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0008|0018": f"{uid}.{k + 1}",
            "0020|0032": "\\".join(f"{v:.8f}" for v in LPS @ place),
            "0020|0037": "\\".join(f"{v:.10f}" for v in (LPS @ grid.direction[:, :2]).T.ravel()),
            "0028|1053": str(slope),
            "0028|1052": str(intercept),
            **(WHOLE if slope != int(slope) else {}),
            **tags,
        }
        for tag, value in told.items():
            plane.SetMetaData(tag, value)
        kept.SetFileName(str(folder / (names[k] if names else f"IM{k:04d}.dcm")))
        kept.Execute(plane)
    locale.setlocale(locale.LC_ALL, ours)  # which GDCM leaves as "C"
    return folder


def ct(grid, seed=0):
    return np.random.default_rng(seed).integers(-1000, 1500, grid.shape).astype(float)


def right_handed(grid):
    """With a third axis that is the cross product of the other two, as DICOM has it."""
    affine = grid.affine.copy()
    if np.linalg.det(affine[:3, :3]) < 0:
        affine[:3, 3] += affine[:3, 2] * (grid.shape[2] - 1)
        affine[:3, 2] *= -1
    return Grid(grid.shape, affine)


@pytest.mark.parametrize("name", [*GRIDS, "tilted"])
def test_a_series_is_the_volume_it_was_cut_from(tmp_path, name):
    grid = right_handed(oblique_grid((7, 9, 6)) if name == "tilted" else GRIDS[name])
    values = ct(grid)
    order = np.random.default_rng(1).permutation(grid.shape[2])
    folder = write_series(tmp_path / "series", values, grid, names=[f"{n}" for n in order], intercept=-1024.0)
    image = read_image(folder)
    assert image.grid.isclose(grid, 1e-4)
    np.testing.assert_array_equal(image.data[0].numpy(), values)
    assert image.stored == np.int32  # -33792 to 31743 is more than 16 bits
    one = read_image(folder / "0")
    assert torch.equal(one.data, image.data)
    assert one.grid == image.grid
    write_image(tmp_path / "same.nii.gz", image)  # by another library's reading of the same places
    again = read_image(tmp_path / "same.nii.gz")
    assert again.grid.isclose(grid, 1e-3)
    torch.testing.assert_close(again.data, image.data)


def test_values_are_rescaled_and_stored_narrowly(tmp_path):
    grid = right_handed(oblique_grid((7, 9, 6)))
    plain = read_image(write_series(tmp_path / "plain", ct(grid), grid))
    assert plain.stored == np.int16
    twelve = {"0028|0100": "16", "0028|0101": "12", "0028|0102": "11", "0028|0103": "0"}
    head = read_header(write_series(tmp_path / "ct", ct(grid), grid, intercept=-1024.0, **twelve))
    assert head.dtype == np.int16
    np.testing.assert_array_equal(read_image(tmp_path / "ct").data[0].numpy(), ct(grid))
    halves = np.round(ct(grid)) / 2
    image = read_image(write_series(tmp_path / "mr", halves, grid, slope=0.5))
    assert image.stored == np.float32
    np.testing.assert_allclose(image.data[0].numpy(), halves)


def test_the_only_volume_of_a_folder_is_taken_and_several_are_listed(tmp_path):
    grid = right_handed(oblique_grid((7, 9, 6)))
    few = Grid((7, 9, 3), grid.affine)
    folder = write_series(tmp_path / "study", ct(grid), grid, names=[f"a{k}" for k in range(6)])
    write_series(folder, ct(few, 1), few, uid="1.2.9", names=["scout0", "scout1", "scout2"])
    (folder / "notes.txt").write_text("no DICOM")
    assert torch.equal(read_image(folder).data[0], torch.from_numpy(ct(grid)).float())
    write_series(folder, ct(grid, 2), grid, uid="1.2.4", names=[f"b{k}" for k in range(6)], **{"0008|103e": "T2 sagXg"})
    for k in range(6):
        named = (folder / f"b{k}").read_bytes()
        (folder / f"b{k}").write_bytes(named.replace(b"sagXg", "sag\xe4g".encode("latin-1")))
    with pytest.raises(InputError, match=r"holds 2 DICOM series: .*T2 sag\?g \(CT, 6 files, b0\)") as caught:
        read_image(folder)
    assert "scout" not in str(caught.value)
    assert torch.equal(read_image(folder / "b3").data[0], torch.from_numpy(ct(grid, 2)).float())


def moved_corner(grid, shift):
    return lambda k: (grid.affine @ [0, 0, k, 1])[:3] + shift(k)


REFUSED = {
    "a slice is missing": (lambda g, k: g.affine[:3, 2] * (k > 2), r"IM0002.dcm and IM0003.dcm .*missing"),
    "two at a place": (lambda g, k: -g.affine[:3, 2] * (k > 2), "several images of one place"),
    "slices beside each other": (lambda g, k: 9 * g.affine[:3, 0] * k, "degrees from upright"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_slices_that_are_no_even_stack_are_refused(tmp_path, what):
    shift, said = REFUSED[what]
    grid = right_handed(oblique_grid((7, 9, 6)))
    folder = write_series(tmp_path / "series", ct(grid), grid, corner=moved_corner(grid, lambda k: shift(grid, k)))
    with pytest.raises(InputError, match=said) as caught:
        read_image(folder)
    assert "\n" not in str(caught.value)


def leaning(grid, voxels):
    """Corners of slices that lie that many voxels beside each other, along both axes of a slice."""
    return lambda k: (grid.affine @ [k * voxels[0], k * voxels[1], k, 1])[:3]


@pytest.mark.parametrize("voxels", [(0.0, 0.4), (0.0, -0.7), (0.6, 0.0), (-0.3, 0.5)])
@pytest.mark.parametrize("name", [*GRIDS, "oblique"])
def test_a_gantry_tilt_is_taken_out(tmp_path, name, voxels):
    """What is linear in the world stays so, wherever a slice shows it."""
    grid = right_handed(oblique_grid((17, 19, 8)) if name == "oblique" else GRIDS[name])
    corner, n = leaning(grid, voxels), grid.shape[2]
    index = np.stack(np.meshgrid(*(np.arange(m) for m in grid.shape), indexing="ij")).astype(float)
    world = np.einsum("wa,aijk->wijk", grid.affine[:3, :3], index[:, :, :, :1] * np.array([1, 1, 0])[:, None, None, None])
    world = world + np.stack([corner(k) for k in range(n)], -1)[:, None, None]
    slope = np.array([3.0, -2.0, 1.5])
    values = np.einsum("w,wijk->ijk", slope, world) + 500
    folder = write_series(tmp_path / "series", values, grid, corner=corner, slope=0.05)
    with pytest.warns(HeaderWarning, match="gantry tilt of [0-9.]+ degrees"):
        image = read_image(folder)
    turned = image.grid.direction.T @ grid.direction
    np.testing.assert_allclose(turned, np.eye(3), atol=1e-4)
    np.testing.assert_allclose(image.grid.spacing_mm, grid.spacing_mm, rtol=1e-4)
    assert image.grid.shape == (*(m + int(np.ceil(abs(v) * (n - 1))) for m, v in zip(grid.shape, voxels)), n)  # noqa: B905
    points = image.grid.points(torch.float64).numpy()
    truth = np.einsum("w,wijk->ijk", slope, points) + 500
    from_corner = np.stack([points[..., k] - corner(k)[:, None, None] for k in range(n)], -1)
    at = np.einsum("aw,wijk->aijk", np.linalg.inv(grid.affine[:3, :3])[:2], from_corner)
    shown = ((at >= -1e-6) & (at <= np.array(grid.shape[:2])[:, None, None, None] - 1 + 1e-6)).all(0)
    beyond = ((at < -1) | (at > np.array(grid.shape[:2])[:, None, None, None])).any(0)
    found = image.data[0].numpy()
    assert shown.mean() > 0.3
    np.testing.assert_allclose(found[shown], truth[shown], atol=0.06)
    assert (found[beyond] == found.min()).all()


def test_a_tilt_is_measured_from_upright(tmp_path):
    grid = right_handed(oblique_grid((17, 19, 8)))
    folder = write_series(tmp_path / "series", ct(grid), grid, corner=leaning(grid, (0.0, 0.5)))
    with pytest.warns(HeaderWarning):
        head = read_header(folder)
    sine = 0.5 * grid.spacing_mm[1] / grid.spacing_mm[2]
    assert head.tilt.angle_deg == pytest.approx(np.degrees(np.arctan(sine)), abs=0.01)
    assert head.grid.shape == head.shape


def test_headers_that_round_are_not(tmp_path):
    grid = right_handed(oblique_grid((7, 9, 6)))
    folder = write_series(tmp_path / "series", ct(grid), grid, corner=lambda k: (grid.affine @ [0, 0, k, 1])[:3].round(2))
    assert read_image(folder).grid.isclose(grid, 0.02)


def test_slices_that_are_not_parallel_are_refused(tmp_path):
    grid = right_handed(oblique_grid((7, 9, 6)))
    folder = write_series(tmp_path / "series", ct(grid), grid)
    across = Grid((9, 6, 1), right_handed(Grid((9, 6, 7), grid.affine[:, [1, 2, 0, 3]])).affine)
    write_series(folder, ct(across), across, names=["z.dcm"])
    with pytest.raises(InputError, match=r"IM0000.dcm and z.dcm differ in size, spacing or orientation"):
        read_image(folder)


@pytest.mark.parametrize("name", [*GRIDS, "oblique"])
def test_a_volume_that_itk_wrote_as_one_file_is_read(tmp_path, name):
    grid = right_handed(oblique_grid((7, 9, 6)) if name == "oblique" else GRIDS[name])
    values = ct(grid) + 1000
    volume = sitk.GetImageFromArray(values.T.astype(np.uint16))
    volume.SetSpacing(grid.spacing_mm.tolist())
    volume.SetDirection((LPS @ grid.direction).ravel().tolist())
    volume.SetOrigin((LPS @ grid.affine[:3, 3]).tolist())
    ours = locale.setlocale(locale.LC_ALL)
    sitk.WriteImage(volume, str(tmp_path / "volume.dcm"))
    locale.setlocale(locale.LC_ALL, ours)
    image = read_image(tmp_path / "volume.dcm")
    assert image.grid.isclose(grid, 1e-3)
    np.testing.assert_array_equal(image.data[0].numpy(), values)


def test_other_folders_and_files_are_refused(tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="folder without DICOM images"):
        read_image(tmp_path / "empty")
    grid = right_handed(oblique_grid((7, 9, 6)))
    folder = write_series(tmp_path / "series", ct(grid), grid)
    whole = (folder / "IM0003.dcm").read_bytes()
    (folder / "IM0003.dcm").write_bytes(whole[:-40])
    with pytest.raises(InputError, match=r"IM0003.dcm holds no DICOM image, or is truncated"):
        read_image(folder / "IM0003.dcm")
    for path in (folder, folder / "IM0000.dcm"):
        with pytest.raises(InputError, match=r"IM0003.dcm is truncated or damaged, and may be a slice"):
            read_image(path)
    assert capfd.readouterr().err == ""  # GDCM is not heard


def element(group, number, kind, value):
    value += ("\0" if kind == "UI" else " ") * (len(value) % 2)
    return struct.pack("<HH", group, number) + kind.encode() + struct.pack("<H", len(value)) + value.encode()


def structures():
    """A DICOM file without an image, as lies beside the CT that a plan was made on."""
    what = "1.2.840.10008.5.1.4.1.1.481.3"
    meta = element(2, 2, "UI", what) + element(2, 3, "UI", "1.2.7.1") + element(2, 16, "UI", "1.2.840.10008.1.2.1")
    meta = struct.pack("<HH", 2, 0) + b"UL" + struct.pack("<HI", 4, len(meta)) + meta
    body = element(8, 0x16, "UI", what) + element(8, 0x18, "UI", "1.2.7.1") + element(8, 0x60, "CS", "RTSTRUCT")
    return b"\0" * 128 + b"DICM" + meta + body + element(32, 13, "UI", "1.2") + element(32, 14, "UI", "1.2.7")


def test_structures_beside_a_series_are_left_alone(tmp_path):
    grid = right_handed(oblique_grid((7, 9, 6)))
    folder = write_series(tmp_path / "series", ct(grid), grid)
    (folder / "RS.dcm").write_bytes(structures())
    assert torch.equal(read_image(folder).data[0], torch.from_numpy(ct(grid)).float())
    with pytest.raises(InputError, match=r"RS.dcm holds no DICOM image"):
        read_image(folder / "RS.dcm")
    (folder / "IM0005.dcm").write_bytes((folder / "IM0005.dcm").read_bytes()[:140])  # the last slice, nearly all of it lost
    with pytest.raises(InputError, match=r"IM0005.dcm is truncated"):
        read_image(folder)


def test_readers_in_two_threads_leave_warnings_as_they_were(tmp_path):
    inside, leave = threading.Event(), threading.Event()

    def read():
        with dicom._quietly():
            inside.set()
            assert leave.wait(10)

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    thread = threading.Thread(target=read)
    with dicom._quietly():
        thread.start()
        assert inside.wait(10)
    assert not sitk.ProcessObject.GetGlobalWarningDisplay()
    leave.set()
    thread.join()
    assert sitk.ProcessObject.GetGlobalWarningDisplay() == before


def test_the_digest_follows_every_file(tmp_path):
    grid = right_handed(oblique_grid((7, 9, 6)))
    folder = write_series(tmp_path / "series", ct(grid), grid)
    first = digest(folder)
    assert digest(folder / "IM0002.dcm") == first
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert digest(tmp_path / "elsewhere") == first
    other = write_series(tmp_path / "other", ct(grid, 5), grid)
    shutil.copy(other / "IM0005.dcm", folder)
    assert digest(folder) != first


def test_a_series_is_described_and_carried(tmp_path):
    grid = right_handed(oblique_grid((20, 18, 12)))
    folder = write_series(tmp_path / "ct", ct(grid), grid)
    facts = dict(describe(folder))
    assert facts["DICOM series"] == "12 files, IM0000.dcm to IM0011.dcm"
    assert facts["kind"] == "image"
    assert dict(describe(folder / "IM0004.dcm")) == facts
    write_transform(tmp_path / "still.h5", Rigid.identity())
    (done,) = apply_transform(tmp_path / "still.h5", [folder], tmp_path / "out", reference=folder)
    assert done.target == tmp_path / "out" / "ct.nii.gz"
    torch.testing.assert_close(read_image(done.target).data, read_image(folder).data, atol=1, rtol=0)


def test_register_reads_series_and_writes_what_it_always_does(pair, tmp_path):
    """The phantom's CT as a series, beside the same as NIfTI: one result."""
    moving = pair.case.moving
    values = moving.data[0].numpy().round()
    grid = moving.grid
    write_image(tmp_path / "ct.nii.gz", Image(torch.from_numpy(values)[None].float(), grid, np.dtype(np.int16)))
    write_image(tmp_path / "mr.nii.gz", pair.case.fixed)
    planes, there = values, right_handed(grid)
    if not there.isclose(grid):
        planes = values[:, :, ::-1]
    write_series(tmp_path / "series", planes, there)
    for name, source in (("a", "ct.nii.gz"), ("b", "series")):
        given = ["-f", tmp_path / "mr.nii.gz", "-m", tmp_path / source, "-o", tmp_path / name, "--plan", "rigid"]
        done = CliRunner().invoke(app, ["register", *map(str, given)])
        assert done.exit_code in (0, 3), done.output
    one, other = (read_image(tmp_path / name / "moved.nii.gz") for name in "ab")
    assert one.grid == other.grid
    assert float((one.data - other.data).abs().mean()) < 0.02 * float(one.data.std())
    assert (tmp_path / "b" / "report.html").is_file()


def write_enhanced(path, values, grid, order=None, corner=None, intercepts=None, per_frame=(), without=()):
    """One file of many frames, as newer scanners write them. order: of the frames in it. per_frame: groups that each frame says
    for itself. without: groups that nobody says."""
    from pydicom import Dataset, FileMetaDataset, uid
    from pydicom.sequence import Sequence

    def one(**elements):
        item = Dataset()
        for name, value in elements.items():
            setattr(item, name, value)
        return Sequence([item])

    def groups(k):
        place = (grid.affine @ [0, 0, k, 1])[:3] if corner is None else corner(k)
        return {
            "PlanePositionSequence": one(ImagePositionPatient=[round(float(v), 8) for v in LPS @ place]),
            "PlaneOrientationSequence": one(
                ImageOrientationPatient=[round(float(v), 10) for v in (LPS @ grid.direction[:, :2]).T.ravel()]
            ),
            "PixelMeasuresSequence": one(PixelSpacing=[float(h) for h in grid.spacing_mm[1::-1]]),
            "PixelValueTransformationSequence": one(
                RescaleSlope=1, RescaleIntercept=-1024 if intercepts is None else intercepts[k], RescaleType="HU"
            ),
        }

    def said(k, names):
        item = Dataset()
        for name, group in groups(k).items():
            if name in names and name not in without:
                setattr(item, name, group)
        return item

    frames = list(range(grid.shape[2]) if order is None else order)
    alone = {"PlanePositionSequence", *per_frame}
    data, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.EnhancedCTImageStorage
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid.generate_uid(entropy_srcs=[str(path)])
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.file_meta = meta
    data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = "CT", "1.2.4", "1.2"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.Columns, data.Rows, data.NumberOfFrames = grid.shape[0], grid.shape[1], len(frames)
    data.SharedFunctionalGroupsSequence = Sequence([said(0, groups(0).keys() - alone)])
    data.PerFrameFunctionalGroupsSequence = Sequence([said(k, alone) for k in frames])
    data.PixelData = np.stack([values[:, :, k].T + 1024 for k in frames]).astype("<i2").tobytes()
    path.parent.mkdir(exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("own", [(), ("PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence")])
@pytest.mark.parametrize("name", [*GRIDS, "oblique"])
def test_frames_of_one_file_are_the_volume_they_were_cut_from(tmp_path, name, own):
    grid = right_handed(oblique_grid((7, 9, 6)) if name == "oblique" else GRIDS[name])
    values = ct(grid)
    order = np.random.default_rng(2).permutation(grid.shape[2])
    path = write_enhanced(tmp_path / "series" / "IM1", values, grid, order, per_frame=own)
    for given in (path, path.parent):
        image = read_image(given)
        assert image.grid.isclose(grid, 1e-4)
        np.testing.assert_array_equal(image.data[0].numpy(), values)
    assert image.stored == np.int32  # less 1024 it is more than 16 bits
    assert ("DICOM series", f"IM1, {grid.shape[2]} frames") in describe(path)
    across = Grid((9, 6, 2), right_handed(Grid((9, 6, 7), grid.affine[:, [1, 2, 0, 3]])).affine)
    write_series(path.parent, ct(across), across, names=["pilot 1", "pilot 2"])
    assert read_image(path.parent).grid.isclose(grid, 1e-4)
    assert digest(path) == digest(path.parent)


def test_frames_of_a_tilted_gantry_are_set_upright(tmp_path):
    grid = right_handed(oblique_grid((17, 19, 8)))
    slices = write_series(tmp_path / "slices", ct(grid), grid, corner=leaning(grid, (0.0, 0.4)))
    frames = write_enhanced(tmp_path / "frames" / "IM1", ct(grid), grid, [3, 1, 0, 2, 7, 5, 6, 4], leaning(grid, (0.0, 0.4)))
    with pytest.warns(HeaderWarning, match="gantry tilt"):
        one, other = read_image(slices), read_image(frames)
    assert one.grid.isclose(other.grid, 1e-4)
    torch.testing.assert_close(one.data, other.data, atol=1.0, rtol=0)


def test_frames_that_are_no_volume_are_refused(tmp_path):
    grid = right_handed(oblique_grid((7, 9, 6)))
    values = ct(grid)
    echoes = write_enhanced(tmp_path / "a" / "IM1", values, grid, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5])
    with pytest.raises(InputError, match=r"several images of one place \(frame \d+, frame \d+\)"):
        read_header(echoes)
    film = write_enhanced(tmp_path / "b" / "IM1", values, grid, without=("PixelMeasuresSequence",))
    with pytest.raises(InputError, match="6 frames and does not say where each lies"):
        read_header(film)
    uneven = write_enhanced(
        tmp_path / "c" / "IM1", values, grid, intercepts=range(6), per_frame=["PixelValueTransformationSequence"]
    )
    with pytest.raises(InputError, match="rescaled differently"):
        read_header(uneven)
    both = write_enhanced(tmp_path / "d" / "IM1", values, grid)
    write_enhanced(tmp_path / "d" / "IM2", values, grid)
    with pytest.raises(InputError, match="2 files of several frames"):
        read_header(both)


def write_dose(path):
    """Of one plane, that says where others are."""
    from pydicom import Dataset, FileMetaDataset, uid

    data, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.RTDoseStorage
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid.generate_uid(entropy_srcs=["dose"])
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.file_meta = meta
    data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = "RTDOSE", "1.2.9", "1.2"
    data.ImagePositionPatient, data.ImageOrientationPatient, data.PixelSpacing = [0, 0, 0], [1, 0, 0, 0, 1, 0], [2, 2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.Columns, data.Rows, data.FrameIncrementPointer = 4, 4, 0x3004000C
    data.GridFrameOffsetVector, data.DoseGridScaling = [0, 5, 10], 0.1
    data.PixelData = bytes(32)
    data.save_as(path, enforce_file_format=True)


def test_other_files_in_the_folder_do_not_stop_a_series(tmp_path):
    grid = right_handed(oblique_grid((7, 9, 6)))
    folder = write_series(tmp_path / "series", ct(grid), grid)
    write_dose(folder / "dose.dcm")
    with pytest.raises(RuntimeError):  # what GDCM makes of this folder
        sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    (folder / "Thumbs.db").write_bytes(b"\0" * 600)
    (folder / "readme.txt").write_text("a series")
    assert read_image(folder).grid.isclose(grid, 1e-4)
    assert read_image(folder / "IM0003.dcm").grid.isclose(grid, 1e-4)
    (folder / "note.dcm").write_text("no image, whatever its name")
    with pytest.raises(InputError, match="holds no DICOM image"):
        read_image(folder / "note.dcm")
    with pytest.raises(InputError, match="dose"):
        read_image(folder / "dose.dcm")


def test_labels_on_a_tilted_gantry_are_refused(tmp_path):
    grid = right_handed(oblique_grid((17, 19, 8)))
    labels = np.zeros(grid.shape)
    labels[4:9, 4:9, 2:6], labels[9:12, 4:9, 2:6] = 2, 7
    upright = write_series(tmp_path / "upright", labels, grid)
    assert read_labels(upright).ids() == [2, 7]
    leans = write_series(tmp_path / "leans", labels, grid, corner=leaning(grid, (0.0, 0.4)))
    with pytest.warns(HeaderWarning), pytest.raises(InputError, match="labels on slices of a tilted gantry"):
        read_labels(leans)
