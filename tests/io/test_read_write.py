"""Volumes keep their voxels, data type and place through a file."""

import os
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import GRIDS, axis_grid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.io import HeaderWarning, read_header, read_image, read_labels, read_mask, read_names, write_image

ENDINGS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")


def noise(grid, scale=400.0, stored=np.float32):
    return Image(torch.randn(1, *grid.shape) * scale, grid, np.dtype(stored))


def block_labels(grid, ids=(3, 7)):
    data = torch.zeros(1, *grid.shape, dtype=torch.int16)
    for n, label in enumerate(ids):
        data[:, 2:8, 2:8, 2 + 4 * n : 6 + 4 * n] = label
    return Labels(data, grid)


def same_place(a, b, tolerance_mm=1e-5):
    """Equal but for the float32 of a NIfTI header, whose last digit at 300 mm is 3e-5 mm."""
    assert a.shape == b.shape
    np.testing.assert_allclose(a.affine, b.affine, rtol=2e-7, atol=tolerance_mm)


@pytest.mark.parametrize("ending", ENDINGS)
def test_image_comes_back(tmp_path, grid, ending):
    image = noise(grid)
    write_image(tmp_path / f"image{ending}", image)
    back = read_image(tmp_path / f"image{ending}")
    same_place(back.grid, grid)
    assert torch.equal(back.data, image.data)
    assert back.stored == np.float32


@pytest.mark.parametrize("ending", ENDINGS)
def test_labels_come_back(tmp_path, grid, ending):
    labels = block_labels(grid)
    write_image(tmp_path / f"labels{ending}", labels)
    back = read_labels(tmp_path / f"labels{ending}", like=grid)
    assert back.grid == grid
    assert back.stored == np.uint8
    assert torch.equal(back.data, labels.data)


angle = st.floats(-180, 180, allow_nan=False)
length = st.floats(0.3, 4.0)
place = st.floats(-400, 400)


@given(
    st.tuples(*[st.integers(4, 7)] * 3),
    st.tuples(angle, angle, angle),
    st.tuples(length, length, length),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.tuples(place, place, place),
    st.sampled_from([".nii", ".nrrd", ".mha"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_grid_comes_back(tmp_path, shape, angles, spacing, signs, origin, ending):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.multiply(spacing, signs)
    affine[:3, 3] = origin
    grid = Grid(shape, affine)
    path = tmp_path / f"image{ending}"
    write_image(path, noise(grid))
    with warnings.catch_warnings():
        warnings.simplefilter("error", HeaderWarning)
        same_place(read_image(path).grid, grid)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_simpleitk_sees_the_same_place(tmp_path, grid, ending):
    image = noise(grid)
    write_image(tmp_path / f"image{ending}", image)
    theirs = sitk.ReadImage(str(tmp_path / f"image{ending}"))
    index = (3, 5, 1)
    lps = theirs.TransformIndexToPhysicalPoint(index)
    np.testing.assert_allclose(np.multiply(lps, (-1, -1, 1)), (grid.affine @ (*index, 1))[:3], atol=1e-4)
    assert theirs[index] == float(image.data[(0, *index)])


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii.gz"])
def test_simpleitk_images_are_read_in_place(tmp_path, grid, ending):
    theirs = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=grid.shape[::-1]).astype(np.float32))
    flip = np.diag([-1, -1, 1])
    theirs.SetSpacing(grid.spacing_mm.tolist())
    theirs.SetDirection((flip @ grid.direction).ravel().tolist())
    theirs.SetOrigin((flip @ grid.affine[:3, 3]).tolist())
    sitk.WriteImage(theirs, str(tmp_path / f"image{ending}"))
    ours = read_image(tmp_path / f"image{ending}")
    same_place(ours.grid, grid, 1e-4)
    assert float(ours.data[0, 4, 2, 6]) == theirs[4, 2, 6]


@pytest.mark.parametrize("stored", [np.uint8, np.int16, np.uint16, np.int32, np.float64])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_data_type_is_kept(tmp_path, stored, ending):
    image = noise(GRIDS["oblique"], 30.0, stored)
    write_image(tmp_path / f"image{ending}", image)
    assert read_header(tmp_path / f"image{ending}").dtype == stored
    back = read_image(tmp_path / f"image{ending}")
    assert back.stored == stored
    expected = image.data if stored is np.float64 else image.data.round().clip(np.iinfo(stored).min, np.iinfo(stored).max)
    assert torch.equal(back.data, expected)


def test_values_are_rounded_and_clipped_to_the_stored_type(tmp_path):
    data = torch.zeros(1, 4, 4, 4)
    data[0, 0, 0] = torch.tensor([0.6, -3.0, 254.5, 900.0])
    write_image(tmp_path / "a.nii", Image(data, axis_grid((1, 1, 1), (4, 4, 4)), np.dtype(np.uint8)))
    assert np.asarray(nib.load(tmp_path / "a.nii").dataobj)[0, 0].tolist() == [1, 0, 254, 255]


def test_label_ids_are_never_clipped(tmp_path):
    labels = block_labels(GRIDS["RAS"], (3, 300))
    write_image(tmp_path / "labels.nii.gz", labels)
    assert read_labels(tmp_path / "labels.nii.gz").ids() == [3, 300]


def test_scaled_integers_are_read_scaled_and_kept_as_float(tmp_path):
    grid = GRIDS["LPS"]
    theirs = nib.Nifti1Image(np.random.default_rng(0).normal(size=grid.shape) * 300, grid.affine)
    theirs.set_data_dtype(np.int16)
    nib.save(theirs, tmp_path / "ct.nii.gz")
    stored = nib.load(tmp_path / "ct.nii.gz")
    assert read_header(tmp_path / "ct.nii.gz").scaled
    image = read_image(tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(image.data[0].numpy(), stored.get_fdata(), atol=1e-3)
    assert image.stored == np.float32


def test_whole_numbers_stored_as_float_are_labels(tmp_path):
    labels = block_labels(GRIDS["RAS"])
    nib.save(nib.Nifti1Image(labels.data[0].numpy().astype(np.float32), labels.grid.affine), tmp_path / "labels.nii")
    back = read_labels(tmp_path / "labels.nii")
    assert torch.equal(back.data, labels.data)
    assert back.stored == np.uint8


def test_written_nifti_says_scanner_and_mm_and_is_the_same_twice(tmp_path):
    image = noise(GRIDS["oblique"])
    write_image(tmp_path / "a.nii.gz", image)
    head = nib.load(tmp_path / "a.nii.gz").header
    assert (int(head["sform_code"]), int(head["qform_code"])) == (1, 1)
    assert head.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(head.get_qform(), image.grid.affine, atol=1e-4)
    first = (tmp_path / "a.nii.gz").read_bytes()
    write_image(tmp_path / "a.nii.gz", image)
    assert (tmp_path / "a.nii.gz").read_bytes() == first


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_header_needs_no_voxels(tmp_path, ending):
    grid = GRIDS["sagittal"]
    path = tmp_path / f"image{ending}"
    write_image(path, noise(grid, stored=np.int16))
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) // 2, 1000)])
    header = read_header(path)
    assert header.shape == grid.shape
    assert header.grid.isclose(grid)
    assert (header.voxels, header.bytes) == (grid.voxels, 2 * grid.voxels)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_four_dimensions_with_one_volume_are_squeezed(tmp_path, ending):
    grid = GRIDS["LAS"]
    data = np.random.default_rng(0).normal(size=(*grid.shape, 1)).astype(np.float32)
    path = tmp_path / f"image{ending}"
    if ending == ".mha":
        theirs = sitk.GetImageFromArray(data.T, isVector=False)
        sitk.WriteImage(theirs, str(path))
    else:
        nib.save(nib.Nifti1Image(data, grid.affine), path)
    image = read_image(path)
    np.testing.assert_array_equal(image.data[0].numpy(), data[..., 0])


def nifti(path, affine, sform=1, qform=1, unit="mm", seed=0):
    image = nib.Nifti1Image(np.random.default_rng(seed).normal(size=(20, 18, 16)).astype(np.float32), None)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def test_qform_counts_where_there_is_no_sform(tmp_path):
    affine = GRIDS["oblique"].affine
    image = nib.load(nifti(tmp_path / "a.nii", affine))
    image.set_sform(np.eye(4), 0)
    nib.save(image, tmp_path / "b.nii")
    np.testing.assert_allclose(read_header(tmp_path / "b.nii").grid.affine, affine, atol=1e-4)


def test_assumed_geometry_warns(tmp_path):
    nifti(tmp_path / "a.nii", np.eye(4), 0, 0)
    with pytest.warns(HeaderWarning, match=r"no orientation or position.*assumed"):
        read_image(tmp_path / "a.nii")


def test_sform_and_qform_that_disagree_warn(tmp_path):
    image = nib.load(nifti(tmp_path / "a.nii", np.eye(4)))
    apart = np.eye(4)
    apart[0, 3] = 5
    image.set_sform(apart, 1)
    nib.save(image, tmp_path / "b.nii")
    with pytest.warns(HeaderWarning, match=r"disagree by up to 5\.0 mm"):
        assert read_header(tmp_path / "b.nii").grid.affine[0, 3] == 5


def test_turns_that_a_qform_cannot_hold_are_written_in_the_sform_alone(tmp_path):
    affine = np.array(  # of a sagittal scan; float32 quaternions put its corners 0.3 mm away
        [[0.1407, 0.1354, -2.4088, 59.2], [0.138, -1.8076, -0.1663, 46.6], [-1.8064, -0.1275, -0.2003, 81.0], [0, 0, 0, 1.0]]
    )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    affine[:3, :3] = polar(affine[:3, :3] / spacing)[0] * spacing
    grid = Grid((60, 70, 40), affine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_image(tmp_path / "a.nii.gz", Image(torch.rand(1, *grid.shape), grid))
        assert np.abs(read_header(tmp_path / "a.nii.gz").grid.affine - affine).max() < 1e-4
    header = nib.load(tmp_path / "a.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    seen = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    for index in ((0, 0, 0), (59, 69, 39)):
        there = np.array(seen.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        assert np.abs(there - (affine @ [*index, 1])[:3]).max() < 2e-3


def test_metres_become_mm(tmp_path):
    path = nifti(tmp_path / "a.nii", np.diag([0.001, 0.002, 0.003, 1]), unit="meter")
    with pytest.warns(HeaderWarning, match="meters"):
        np.testing.assert_allclose(read_header(path).grid.spacing_mm, (1, 2, 3), rtol=1e-6)


def test_sheared_axes_are_repaired_with_the_displacement_said(tmp_path):
    sheared = np.eye(4)
    sheared[0, 2] = 0.05
    path = nifti(tmp_path / "a.nii", sheared, qform=0)
    with pytest.warns(HeaderWarning, match=r"not orthogonal were made so.*up to 0\.\d\d mm"):
        grid = read_header(path).grid
    np.testing.assert_allclose(grid.direction, polar(sheared[:3, :3] / np.linalg.norm(sheared[:3, :3], axis=0))[0], atol=1e-6)
    np.testing.assert_allclose(grid.spacing_mm, np.linalg.norm(sheared[:3, :3], axis=0), rtol=1e-6)
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in grid.shape], [1], indexing="ij")).reshape(4, -1)
    moved = np.linalg.norm(((grid.affine - sheared) @ corners)[:3], axis=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_header(path)
    assert f"up to {moved.max():.2f} mm" in str(caught[0].message)
    assert moved.max() < 0.03 * 20
    np.testing.assert_allclose(grid.centre_mm, sheared[:3, :3] @ (np.array(grid.shape) - 1) / 2, atol=1e-6)


def test_rounding_of_a_header_is_not_repaired(tmp_path):
    nearly = np.eye(4)
    nearly[0, 1] = 4e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error", HeaderWarning)
        assert read_header(nifti(tmp_path / "a.nii", nearly, qform=0)).grid.affine[0, 1] == pytest.approx(4e-6)


def test_nrrd_without_a_space_warns(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(5, 5, 5)).astype("<f4")
    text = "NRRD0004\ntype: float\ndimension: 3\nsizes: 5 5 5\nspacings: 1 1 2\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_bytes(text.encode() + voxels.tobytes())
    with pytest.warns(HeaderWarning, match="no anatomical space"):
        np.testing.assert_allclose(read_image(tmp_path / "a.nrrd").grid.spacing_mm, (1, 1, 2))


def test_mask_weights_stay_weights(tmp_path, grid):
    weights = torch.rand(1, *grid.shape)
    weights[0, 0, 0, 0] = 1.0005
    write_image(tmp_path / "mask.nii.gz", Image(weights, grid))
    mask = read_mask(tmp_path / "mask.nii.gz", grid)
    assert mask.grid == grid
    assert torch.equal(mask.data, weights.clip(0, 1))


def test_labels_take_the_grid_of_their_image_where_headers_round(tmp_path):
    grid = GRIDS["oblique"]
    nudged = grid.affine.copy()
    nudged[:3, 3] += 0.01
    write_image(tmp_path / "labels.nii.gz", block_labels(Grid(grid.shape, nudged)))
    assert read_labels(tmp_path / "labels.nii.gz", like=grid).grid == grid


def test_names_come_from_json(tmp_path):
    (tmp_path / "names.json").write_text('{"1": "vertebrae_L5", "8": "sacrum"}')
    assert read_names(tmp_path / "names.json") == {1: "vertebrae_L5", 8: "sacrum"}


DATA = os.environ.get("OSTEOMORPH_TEST_DATA")
VOLUMES = sorted(Path(DATA).glob("*/*.nii.gz")) if DATA else []


@pytest.mark.data
@pytest.mark.skipif(not VOLUMES, reason="OSTEOMORPH_TEST_DATA names no folder with volumes")
def test_real_images_are_images_and_real_labels_labels():
    for path in VOLUMES:
        kind = read_labels if "label" in path.name or "seg" in path.name else read_image
        volume = kind(path)
        assert volume.stored == nib.load(path).get_data_dtype()
        np.testing.assert_allclose(volume.grid.affine, nib.load(path).affine, atol=1e-6)
