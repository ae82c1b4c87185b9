"""Files that cannot be used are refused with one line that says what is wrong and what to do."""

import gzip
import warnings

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import GRIDS, oblique_grid

from osteomorph.errors import InputError
from osteomorph.image import Image, Labels
from osteomorph.io import check_ids, read_header, read_image, read_labels, read_mask, read_names, write_image

SHAPE = (20, 18, 12)
RNG = np.random.default_rng(0)


def noise(shape=SHAPE):
    return RNG.normal(size=shape).astype(np.float32)


def blocks(low=0):
    data = np.full(SHAPE, low, dtype=np.int16)
    data[3:9, 3:9, 3:9] = 4
    data[10:16, 3:9, 3:9] = 5
    return data


def save(path, data, affine=None, **header):
    affine = np.eye(4) if affine is None else affine
    image = nib.Nifti1Image(data, affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def refused(read, path, *words):
    with warnings.catch_warnings(action="ignore"), pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    assert message.count(". ") >= 1  # what is wrong, then what to do
    for word in words:
        assert word in message
    return message


# -- the file -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("read", [read_header, read_image, read_labels])
def test_missing_file(tmp_path, read):
    refused(read, tmp_path / "none.nii.gz", "does not exist", "Check the path")


def test_folder(tmp_path):
    (tmp_path / "series").mkdir()
    refused(read_image, tmp_path / "series", "is a folder", "DICOM series")


def test_empty_file(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    refused(read_image, tmp_path / "a.nii.gz", "is empty")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_text_under_the_name_of_a_volume(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_text("patient,age\n1,50\n" * 100)
    refused(read_image, path, "although its name ends in " + ending, "it is text", "export it again")


def test_compressed_text(tmp_path):
    with gzip.open(tmp_path / "a.nii.gz", "wt") as file:
        file.write("not an image " * 100)
    refused(read_image, tmp_path / "a.nii.gz", "gzip data of another kind")


def test_nifti_under_another_name(tmp_path):
    save(tmp_path / "a.nii", noise())
    (tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    refused(read_image, tmp_path / "a.nii.gz", "it is NIfTI", "Rename it to end in .nii.")
    (tmp_path / "a.nii.gz").rename(tmp_path / "a.img2")
    refused(read_image, tmp_path / "a.img2", "rename it to end in .nii.")


def test_dicom_file(tmp_path):
    (tmp_path / "slice.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\2\0\0\0" * 40)
    refused(read_image, tmp_path / "slice.dcm", "holds no DICOM image", "Give a file")


@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_truncated_file(tmp_path, ending, part):
    path = tmp_path / f"a{ending}"
    write_image(path, Image(torch.randn(1, 30, 30, 30), oblique_grid((30, 30, 30))))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    refused(read_image, path, "damaged", "Copy or export it again")


def test_flipped_bytes_in_the_middle(tmp_path):
    path = save(tmp_path / "a.nii.gz", noise((40, 40, 40)))
    content = bytearray(path.read_bytes())
    content[5000:9000] = bytes(4000)
    path.write_bytes(content)
    refused(read_image, path, "damaged")


def test_shape_that_the_file_cannot_hold(tmp_path):
    path = save(tmp_path / "a.nii", noise())
    content = bytearray(path.read_bytes())
    content[42:44] = (30000).to_bytes(2, "little")
    path.write_bytes(content)
    refused(read_header, path, "damaged", "expected")


# -- the voxels ---------------------------------------------------------------------------------------------------------
def test_two_dimensions(tmp_path):
    refused(read_image, save(tmp_path / "a.nii.gz", noise((20, 18))), "is 2-D (20 x 18 voxels)", "Give a 3-D volume")
    sitk.WriteImage(sitk.GetImageFromArray(noise((20, 18))), str(tmp_path / "a.mha"))
    refused(read_image, tmp_path / "a.mha", "is 2-D")


@pytest.mark.parametrize("read", [read_image, read_labels])
def test_four_dimensions(tmp_path, read):
    refused(read, save(tmp_path / "a.nii.gz", noise((20, 18, 12, 5))), "is 4-D (20 x 18 x 12 x 5 voxels)", "Give one 3-D")


@pytest.mark.parametrize("shape", [(20, 18, 1), (3, 20, 18)])
def test_thin_axis(tmp_path, shape):
    refused(
        read_image,
        save(tmp_path / "a.nii.gz", noise(shape)),
        f"is {min(shape)} voxel",
        f"axis {np.argmin(shape)}",
        "at least 4",
    )


def test_colour(tmp_path):
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(read_image, save(tmp_path / "a.nii.gz", rgb), "colour", "one value per voxel")
    sitk.WriteImage(sitk.GetImageFromArray(noise((*SHAPE, 3)), isVector=True), str(tmp_path / "a.nrrd"))
    refused(read_image, tmp_path / "a.nrrd", "several values per voxel")


def test_complex_numbers(tmp_path):
    refused(read_image, save(tmp_path / "a.nii.gz", noise().astype(np.complex64)), "complex", "magnitude")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("read", [read_image, read_labels, lambda path: read_mask(path, GRIDS["RAS"])])
def test_not_finite(tmp_path, value, read):
    data = noise()
    data[0, 0, :3] = value
    refused(read, save(tmp_path / "a.nii.gz", data), "NaN or infinity in 3 voxels", "Replace them")


@pytest.mark.parametrize(("value", "words"), [(0, "0 everywhere"), (-1024, "-1024 everywhere")])
def test_constant_image(tmp_path, value, words):
    refused(read_image, save(tmp_path / "a.nii.gz", np.full(SHAPE, value, np.int16)), words, "nothing to register")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_labels_as_image(tmp_path, dtype):
    refused(read_image, save(tmp_path / "a.nii.gz", blocks().astype(dtype)), "looks like a label map", "as labels")


def test_coarse_image_with_a_background_of_zero_is_no_label_map(tmp_path):
    data = np.zeros(SHAPE, np.uint8)
    data[4:16, 4:15, 4:10] = RNG.integers(0, 60, (12, 11, 6))
    assert read_image(save(tmp_path / "a.nii.gz", data)).data.max() == 59


# -- the geometry -------------------------------------------------------------------------------------------------------
def raw_header(path, offset, values):
    content = bytearray(path.read_bytes())
    content[offset : offset + 4 * len(values)] = np.asarray(values, "<f4").tobytes()
    path.write_bytes(content)
    return path


SROW = 280
PIXDIM = 80


@pytest.mark.parametrize("read", [read_header, read_image])
def test_spacing_of_zero(tmp_path, read):
    path = save(tmp_path / "a.nii", noise())
    raw_header(path, SROW, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])
    refused(read, path, "spacing of 0 mm along array axis 1", "real spacing")
    image = nib.Nifti1Image(noise(), None)
    nib.save(image, tmp_path / "b.nii")
    refused(read, raw_header(tmp_path / "b.nii", PIXDIM, [0]), "spacing of 0 mm along array axis 0")


def test_geometry_of_nan(tmp_path):
    path = save(tmp_path / "a.nii", noise())
    refused(read_image, raw_header(path, SROW, [np.nan]), "geometry holds NaN", "Write it again")


def test_axes_too_far_from_orthogonal(tmp_path):
    sheared = np.eye(4)
    sheared[0, 2] = 1.0
    refused(read_image, save(tmp_path / "a.nii.gz", noise(), sheared), "not orthogonal", "mm", "Resample it")


def test_two_axes_along_one_direction(tmp_path):
    flat = np.eye(4)
    flat[:3, 1] = flat[:3, 0]
    path = save(tmp_path / "a.nii", noise())
    refused(read_image, raw_header(path, SROW, flat[:3].ravel()), "not orthogonal")


# -- labels and masks ---------------------------------------------------------------------------------------------------
def test_fractions_as_labels(tmp_path):
    refused(read_labels, save(tmp_path / "a.nii.gz", noise()), "holds fractions", "whole numbers")


def test_negative_values_as_labels(tmp_path):
    refused(read_labels, save(tmp_path / "a.nii.gz", blocks(-1)), "negative values (down to -1)", "0 for background")


@pytest.mark.parametrize("top", [250, 30000])
def test_whole_image_as_labels(tmp_path, top):
    data = RNG.integers(0, top, (30, 30, 30)).astype(np.int32)
    refused(read_labels, save(tmp_path / "a.nii.gz", data), "different values and looks like an image")


def test_empty_labels(tmp_path):
    refused(read_labels, save(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.uint8)), "background (0) alone", "Check")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (oblique_grid(SHAPE, spacing=(3.0, 3.0, 3.0)), "3.00 x 3.00 x 3.00 mm"),
        (oblique_grid(SHAPE, origin=(0, 0, 0)), "centre"),
        (oblique_grid((20, 18, 13)), "20 x 18 x 13 voxels"),
    ],
    ids=["spacing", "place", "shape"],
)
def test_labels_on_another_grid(tmp_path, other, words):
    path = save(tmp_path / "a.nii.gz", blocks(), oblique_grid(SHAPE).affine)
    message = refused(lambda p: read_labels(p, like=other), path, "labels are on another grid (0.70 x 1.10 x 3.00 mm", words)
    assert "Resample them" in message


def test_mask_on_another_grid(tmp_path):
    path = save(tmp_path / "a.nii.gz", (blocks() > 0).astype(np.uint8))
    refused(lambda p: read_mask(p, GRIDS["oblique"]), path, "mask is on another grid", "Resample it")


@pytest.mark.parametrize(("factor", "words"), [(255, "from 0 to 255"), (-1, "from -1 to 0"), (0, "0 everywhere")])
def test_mask_beyond_weights(tmp_path, factor, words):
    path = save(tmp_path / "a.nii.gz", ((blocks() > 0) * factor).astype(np.int16))
    refused(lambda p: read_mask(p, GRIDS["RAS"]), path, words)


def test_absent_label_id():
    labels = Labels(torch.from_numpy(blocks())[None], oblique_grid(SHAPE), {4: "L4"})
    check_ids(labels, [4, 5])
    with pytest.raises(InputError, match=r"No voxel of moving\.nii has label 20, 21\. It holds 4 \(L4\), 5; name some"):
        check_ids(labels, [4, 20, 21], "moving.nii")


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"one": "L5"}', "plain text"])
def test_names_that_are_none(tmp_path, content):
    (tmp_path / "names.json").write_text(content)
    refused(read_names, tmp_path / "names.json")


# -- writing ------------------------------------------------------------------------------------------------------------
def test_ending_that_is_not_written(tmp_path):
    image = Image(torch.randn(1, *SHAPE), oblique_grid(SHAPE))
    refused(lambda p: write_image(p, image), tmp_path / "a.png", ".nii.gz")
    assert not (tmp_path / "a.png").exists()


def test_folder_to_write_into_is_missing(tmp_path):
    image = Image(torch.randn(1, *SHAPE), oblique_grid(SHAPE))
    refused(lambda p: write_image(p, image), tmp_path / "none" / "a.nii.gz", "does not exist. Make it first")


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(stream, data):
        stream._file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("osteomorph.io.nifti._Deflating.write", full)
    image = Image(torch.randn(1, *SHAPE), oblique_grid(SHAPE))
    refused(lambda p: write_image(p, image), tmp_path / "a.nii.gz", "No space left on device")
    assert not list(tmp_path.iterdir())


def test_channels_are_not_dropped(tmp_path):
    with pytest.raises(ValueError, match="one channel"):
        write_image(tmp_path / "a.nii.gz", Image(torch.randn(2, *SHAPE), oblique_grid(SHAPE)))
