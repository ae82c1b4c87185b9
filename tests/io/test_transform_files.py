"""Transforms through files, and through the eyes of SimpleITK and nibabel."""

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import GRIDS, axis_grid, oblique_grid, sagittal_grid
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image
from osteomorph.io import read_transform, write_displacement, write_image, write_transform
from osteomorph.resampling import resample
from osteomorph.transforms import Chain, Displacement, Rigid, Velocity

FLIP = np.array([-1.0, -1.0, 1.0])

FIXED = {
    "oblique": oblique_grid((30, 24, 10)),
    "RAS": axis_grid((1, 1, 1)),
    "LAS": axis_grid((-1, 1, 1)),
    "LPS": axis_grid((-1, -1, 1)),
}


def rigid(angles=(4, -6, 8), shift=(2.0, -1.5, 3.0), about=(0.0, 0.0, 0.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = np.asarray(about) - matrix[:3, :3] @ about + shift
    return Rigid(matrix)


def smooth(grid, amplitude_mm=1.5, sigma=2.0):
    vectors = np.stack([gaussian_filter(torch.randn(grid.shape).numpy(), sigma, mode="nearest") for _ in range(3)])
    return torch.from_numpy(vectors / np.abs(vectors).max() * amplitude_mm).float()


def coarse(grid):
    """A grid that holds every point of ``grid``, coarser and with other axes."""
    half = np.linalg.norm(grid.size_mm) / 2 + 3
    n = int(np.ceil(2 * half / 4)) + 1
    affine = np.diag([4.0, -4.0, 4.0, 1.0])
    affine[:3, 3] = grid.centre_mm - affine[:3, :3] @ np.full(3, (n - 1) / 2)
    return Grid((n, n, n), affine)


def chain(grid):
    """rigid.after(displacement), as a registration makes it."""
    field = coarse(grid)
    return rigid(about=grid.centre_mm).after(Displacement(smooth(field), field))


def inner_points(grid, margin=2):
    """(3, n) mm of every second voxel that is not near the border."""
    inner = grid.padded((-margin,) * 3)
    return inner.points(torch.float64)[:, ::2, ::2, ::2].flatten(1)


def by_itk(transform, points):
    lps = (FLIP[:, None] * points.numpy()).T.tolist()
    return torch.from_numpy(FLIP[:, None] * np.array([transform.TransformPoint(p) for p in lps]).T)


def moving_on(grid):
    """A textured image of another orientation and spacing that holds ``grid`` and what moves into it, its corners excepted."""
    half = grid.size_mm.max() / 2
    moving = sagittal_grid((34, 32, 24), (1.3, 1.1, 2.0))
    affine = moving.affine.copy()
    affine[:3, :3] = Rotation.from_euler("xyz", (7, 3, -9), degrees=True).as_matrix() @ affine[:3, :3] * (half / 16)
    affine[:3, 3] = grid.centre_mm - affine[:3, :3] @ ((np.array(moving.shape) - 1) / 2)
    where = Grid(moving.shape, affine)
    data = gaussian_filter(torch.randn(where.shape).numpy(), 1.0)
    return Image(torch.from_numpy(data / data.std() * 300)[None].float(), where)


# -- other tools agree --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kernel", ["linear", "bspline"])
@pytest.mark.parametrize("through", ["transform.h5", "displacement.nii.gz"])
@pytest.mark.parametrize("name", list(FIXED))
def test_simpleitk_resamples_alike(tmp_path, name, through, kernel):
    fixed = Image(torch.randn(1, *FIXED[name].shape), FIXED[name])
    moving = moving_on(fixed.grid)
    assert moving.grid.axcodes != fixed.grid.axcodes
    transform = chain(fixed.grid)
    write_image(tmp_path / "fixed.nii.gz", fixed)
    write_image(tmp_path / "moving.nii.gz", moving)
    if through == "transform.h5":
        write_transform(tmp_path / through, transform)
        theirs = sitk.ReadTransform(str(tmp_path / through))
    else:
        write_displacement(tmp_path / through, transform, fixed.grid)
        theirs = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / through), sitk.sitkVectorFloat64))
    fill = float(moving.data.min())
    moved = sitk.Resample(
        sitk.ReadImage(str(tmp_path / "moving.nii.gz")),
        sitk.ReadImage(str(tmp_path / "fixed.nii.gz")),
        theirs,
        sitk.sitkLinear if kernel == "linear" else sitk.sitkBSpline,
        fill,
    )
    ours = resample(moving, transform, fixed.grid, kernel).data[0].numpy()
    apart = np.abs(sitk.GetArrayFromImage(moved).T - ours).max()
    assert apart <= 1e-3 * float(moving.data.max() - moving.data.min())
    assert np.mean(ours != np.float32(fill)) > 0.5
    untouched = resample(moving, Rigid.identity(), fixed.grid, kernel).data[0].numpy()
    assert np.abs(untouched - ours).max() > 100  # the transform does something


def test_inverse_gives_points_back(tmp_path, grid):
    transform = chain(grid)
    write_transform(tmp_path / "transform.h5", transform)
    write_transform(tmp_path / "inverse.h5", transform.inverse())
    there = sitk.ReadTransform(str(tmp_path / "transform.h5"))
    back = sitk.ReadTransform(str(tmp_path / "inverse.h5"))
    points = inner_points(grid)
    moved = by_itk(there, points)
    assert float((moved - points).norm(dim=0).mean()) > 1
    apart = (by_itk(back, moved) - points).norm(dim=0)
    assert float(apart.mean()) <= 0.05


def test_displacement_is_intent_1006_in_ras_mm(tmp_path, grid):
    transform = chain(grid)
    write_displacement(tmp_path / "displacement.nii.gz", transform, grid)
    image = nib.load(tmp_path / "displacement.nii.gz")
    assert int(image.header["intent_code"]) == 1006
    assert image.shape == (*grid.shape, 1, 3)
    assert image.get_data_dtype() == np.float32
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.affine, grid.affine, atol=1e-5)
    index = (5, 7, 3)
    point = torch.from_numpy((grid.affine @ (*index, 1))[:3, None].copy())
    np.testing.assert_allclose(np.asarray(image.dataobj)[(*index, 0)], (transform(point) - point)[:, 0].numpy(), atol=1e-4)


def test_a_displacement_written_by_planes_is_what_nibabel_writes_at_once(tmp_path, grid):
    field = smooth(grid)
    write_displacement(tmp_path / "planes.nii", Displacement(field, grid), grid)
    written = nib.load(tmp_path / "planes.nii")
    rounded = (field * 2**16).round() / 2**16
    image = nib.Nifti1Image(rounded.permute(1, 2, 3, 0)[:, :, :, None].numpy(), None, written.header)
    nib.save(image, tmp_path / "whole.nii")
    assert (tmp_path / "whole.nii").read_bytes() == (tmp_path / "planes.nii").read_bytes()


# -- round trips --------------------------------------------------------------------------------------------------------
def transforms():
    grid = GRIDS["oblique"]
    field = coarse(grid)
    return {
        "rigid": rigid(),
        "displacement": Displacement(smooth(field), field),
        "velocity": Velocity(smooth(field), field),
        "chain": chain(grid),
        "nested": Chain((rigid((0, 0, 30)), Chain((Displacement(smooth(field, 6.0), field), rigid((10, 0, 0)))))),
        "empty": Chain(()),
    }


@pytest.mark.parametrize("name", list(transforms()))
def test_h5_comes_back_and_itk_moves_points_alike(tmp_path, name):
    transform = transforms()[name]
    write_transform(tmp_path / "transform.h5", transform)
    points = inner_points(GRIDS["oblique"])
    back = read_transform(tmp_path / "transform.h5")
    torch.testing.assert_close(back(points), transform(points), atol=2e-5, rtol=0)
    theirs = sitk.ReadTransform(str(tmp_path / "transform.h5"))
    assert theirs.GetName() == "CompositeTransform"
    torch.testing.assert_close(by_itk(theirs, points), transform(points), atol=2e-5, rtol=0)


def test_h5_holds_fields_in_single_and_rigid_steps_in_double_precision(tmp_path):
    grid = Grid((11, 7, 5), np.diag([-1.0, 1.5, 2.0, 1.0]))
    field = Displacement(torch.randn(3, *grid.shape, generator=torch.Generator().manual_seed(0)), grid)
    shift = np.eye(4)
    shift[:3, 3] = 1 / 3, -100.1, 7.0
    write_transform(tmp_path / "t.h5", Rigid(shift).after(field))
    with h5py.File(tmp_path / "t.h5") as file:
        steps = [file[f"TransformGroup/{n}/TransformParameters"][()] for n in (1, 2)]
    assert [step.dtype for step in steps] == [np.float64, np.float32]
    assert np.array_equal(steps[0][9:], [-1 / 3, 100.1, 7.0])  # LPS
    assert np.array_equal(steps[1][:6], (field.vectors[:, :2, 0, 0].T * torch.tensor([-1.0, -1.0, 1.0])).flatten().numpy())


def test_rigid_goes_through_text(tmp_path):
    write_transform(tmp_path / "rigid.tfm", rigid())
    assert (tmp_path / "rigid.tfm").read_text().startswith("#Insight Transform File")
    np.testing.assert_allclose(read_transform(tmp_path / "rigid.tfm").matrix, rigid().matrix, atol=1e-12)


def test_displacement_comes_back(tmp_path, grid):
    transform = chain(grid)
    write_displacement(tmp_path / "displacement.nii.gz", transform, grid)
    back = read_transform(tmp_path / "displacement.nii.gz")
    torch.testing.assert_close(back.vectors, transform.displacement(grid))
    assert back.grid.isclose(grid)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_fields_of_itk_are_lps(tmp_path, grid, ending):
    """SimpleITK writes vectors as NIfTI with intent 1007, as ANTs does."""
    write_transform(tmp_path / "transform.h5", Displacement(smooth(grid), grid))
    theirs = sitk.ReadTransform(str(tmp_path / "transform.h5")).GetNthTransform(0).Downcast()
    sitk.WriteImage(theirs.GetDisplacementField(), str(tmp_path / f"field{ending}"))
    points = inner_points(grid)
    torch.testing.assert_close(read_transform(tmp_path / f"field{ending}")(points), by_itk(theirs, points), atol=1e-4, rtol=0)


def itk_transforms():
    euler = sitk.Euler3DTransform((3.0, 4.0, -5.0), 0.1, -0.2, 0.3, (1.0, 2.0, 3.0))
    versor = sitk.VersorRigid3DTransform((0.2, 0.5, 0.1), 0.4, (5.0, -1.0, 2.0), (9.0, 9.0, 9.0))
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(euler.GetMatrix())
    affine.SetCenter((4.0, 5.0, 6.0))
    nested = sitk.CompositeTransform([sitk.CompositeTransform([euler, versor]), sitk.TranslationTransform(3, (1.0, 2.0, 3.0))])
    flattened = sitk.CompositeTransform(nested)
    flattened.FlattenTransform()
    return {
        "euler": euler,
        "versor": versor,
        "affine": affine,
        "translation": sitk.TranslationTransform(3, (1, 2, 3)),
        "composite": flattened,
    }


@pytest.mark.parametrize("ending", [".tfm", ".txt", ".mat", ".h5"])
@pytest.mark.parametrize("name", list(itk_transforms()))
def test_transforms_of_itk_are_read(tmp_path, name, ending):
    theirs = itk_transforms()[name]
    if name == "composite" and ending == ".mat":
        theirs = itk_transforms()["euler"]  # ITK's .mat holds a single transform
    sitk.WriteTransform(theirs, str(tmp_path / f"a{ending}"))
    ours = read_transform(tmp_path / f"a{ending}")
    assert isinstance(ours, Rigid)
    points = inner_points(GRIDS["LPS"])
    torch.testing.assert_close(ours(points), by_itk(theirs, points), atol=1e-6, rtol=0)


def test_field_of_the_border_ends_outside_for_itk_and_goes_on_for_us(tmp_path):
    grid = axis_grid((1, 1, 1))
    transform = Displacement(torch.full((3, *grid.shape), 2.0), grid)
    write_transform(tmp_path / "a.h5", transform)
    theirs = sitk.ReadTransform(str(tmp_path / "a.h5"))
    face = torch.tensor([-0.45, 4.0, 4.0], dtype=torch.float64)[:, None]
    beyond = torch.tensor([-0.55, 4.0, 4.0], dtype=torch.float64)[:, None]
    at_face, outside = grid.world(face), grid.world(beyond)
    torch.testing.assert_close(by_itk(theirs, at_face), transform(at_face), atol=1e-6, rtol=0)
    torch.testing.assert_close(by_itk(theirs, outside), outside, atol=1e-9, rtol=0)
    torch.testing.assert_close(transform(outside), outside + 2)


# -- what is refused ----------------------------------------------------------------------------------------------------
def refused(read, path, *words):
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("scale", [(1.1, 1.0, 1.0), (1.0, 1.0, -1.0)])
def test_scale_and_reflection_are_refused(tmp_path, scale):
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(np.diag(scale).ravel().tolist())
    sitk.WriteTransform(affine, str(tmp_path / "a.tfm"))
    refused(read_transform, tmp_path / "a.tfm", "scale, shear or reflection", "Give a rigid one")


def test_shear_inside_a_composite_is_refused(tmp_path):
    affine = sitk.AffineTransform(3)
    affine.SetMatrix([1, 0.02, 0, 0, 1, 0, 0, 0, 1])
    sitk.WriteTransform(sitk.CompositeTransform([sitk.Euler3DTransform(), affine]), str(tmp_path / "a.h5"))
    refused(read_transform, tmp_path / "a.h5", "scale, shear or reflection")


def test_splines_and_planes_are_refused(tmp_path):
    sitk.WriteTransform(sitk.BSplineTransform(3), str(tmp_path / "spline.tfm"))
    refused(read_transform, tmp_path / "spline.tfm", "BSplineTransform", "Convert it")
    sitk.WriteTransform(sitk.Euler2DTransform(), str(tmp_path / "plane.tfm"))
    refused(read_transform, tmp_path / "plane.tfm", "2-D points")


@pytest.mark.parametrize("ending", [".h5", ".hdf5", ".tfm", ".txt", ".mat"])
def test_text_is_no_transform(tmp_path, ending):
    (tmp_path / f"a{ending}").write_text("(Transform EulerTransform)\n" * 40)
    refused(read_transform, tmp_path / f"a{ending}", "not a transform")


def test_truncated_transform(tmp_path):
    write_transform(tmp_path / "a.h5", chain(GRIDS["RAS"]))
    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(whole[: len(whole) // 2])
    refused(read_transform, tmp_path / "a.h5", "damaged")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_image_is_no_transform(tmp_path, ending):
    write_image(tmp_path / f"a{ending}", Image(torch.randn(1, 8, 8, 8), oblique_grid((8, 8, 8))))
    refused(read_transform, tmp_path / f"a{ending}", "holds an image, so it is no transform")


def test_missing_or_other_file_is_no_transform(tmp_path):
    refused(read_transform, tmp_path / "a.h5", "does not exist")
    (tmp_path / "a.csv").write_text("1,2,3")
    refused(read_transform, tmp_path / "a.csv", "is no transform", ".h5")


@pytest.mark.parametrize(
    ("shape", "intent", "name", "words"),
    [
        ((6, 6, 6, 3), 0, "", "does not say the unit and frame"),
        ((6, 6, 6, 1, 3), 0, "", "intent 0"),
        ((6, 6, 6, 1, 3), 2006, "", "intent 2006"),
        ((6, 6, 6, 1, 3), 1007, "NREG_TRANS", "of a kind that is not read"),
    ],
)
def test_vectors_of_unknown_kind(tmp_path, shape, intent, name, words):
    image = nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4))
    image.header["intent_code"] = intent
    image.header["intent_name"] = name
    nib.save(image, tmp_path / "a.nii.gz")
    refused(read_transform, tmp_path / "a.nii.gz", words)


def test_displacement_of_nan(tmp_path):
    grid = axis_grid((1, 1, 1), (6, 6, 6))
    vectors = torch.zeros(3, 6, 6, 6)
    vectors[1, 2, 3, 4] = torch.nan
    write_displacement(tmp_path / "a.nii.gz", Displacement(vectors, grid), grid)
    refused(read_transform, tmp_path / "a.nii.gz", "NaN or infinity")


def test_endings_that_cannot_hold_a_transform(tmp_path):
    refused(lambda p: write_transform(p, rigid()), tmp_path / "a.xyz", ".h5")
    refused(lambda p: write_transform(p, chain(GRIDS["RAS"])), tmp_path / "a.tfm", "rigid transform alone", ".h5")
    refused(lambda p: write_displacement(p, rigid(), GRIDS["RAS"]), tmp_path / "a.nrrd", ".nii.gz")
    refused(lambda p: write_transform(p, rigid()), tmp_path / "none" / "a.h5", "does not exist")
    assert not list(tmp_path.iterdir())
