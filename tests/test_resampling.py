import gc
import weakref

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import GRIDS, axis_grid, oblique_grid
from scipy.spatial.transform import Rotation

from osteomorph.geometry import Grid, sample
from osteomorph.image import Image, Labels
from osteomorph.resampling import coarser, finer, regrid, regrid_labels, resample
from osteomorph.transforms import Displacement, Rigid


def turn(angles=(4, -6, 9), shift=(2.0, -1.0, 1.5)) -> Rigid:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return Rigid(matrix)


def smooth(grid: Grid) -> Image:
    x, y, z = grid.points(torch.float64) / 7
    return Image((torch.sin(x) + torch.cos(y + 0.4) * torch.sin(z)).float()[None], grid)


def as_sitk(image: Image) -> sitk.Image:
    """Independent of the package's own ITK border."""
    flip = np.diag([-1.0, -1, 1])
    out = sitk.GetImageFromArray(image.data[0].permute(2, 1, 0).numpy())
    out.SetSpacing(image.grid.spacing_mm.tolist())
    out.SetOrigin((flip @ image.grid.affine[:3, 3]).tolist())
    out.SetDirection((flip @ image.grid.direction).ravel().tolist())
    return out


def test_identity_keeps_every_voxel(grid):
    image = Image(torch.rand(1, *grid.shape), grid)
    for kernel in ("linear", "bspline"):
        assert torch.allclose(resample(image, Rigid.identity(), grid, kernel).data, image.data, atol=1e-5)
    labels = Labels(torch.randint(0, 9, (1, *grid.shape)), grid)
    assert torch.equal(resample(labels, Rigid.identity(), grid).data, labels.data)


@pytest.mark.parametrize(("kernel", "itk"), [("linear", sitk.sitkLinear), ("bspline", sitk.sitkBSpline)])
def test_itk_resamples_alike_onto_every_orientation(grid, kernel, itk):
    moving = smooth(oblique_grid((24, 18, 8), angles=(50, 10, -20), origin=(0.0, 0.0, 20.0)))
    rigid = turn(shift=moving.grid.centre_mm - turn().matrix[:3, :3] @ grid.centre_mm)
    flip = np.diag([-1.0, -1, 1])
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((flip @ rigid.matrix[:3, :3] @ flip).ravel().tolist())
    affine.SetTranslation((flip @ rigid.matrix[:3, 3]).tolist())
    reference = as_sitk(Image(torch.zeros(1, *grid.shape), grid))
    expected = sitk.GetArrayFromImage(sitk.Resample(as_sitk(moving), reference, affine, itk, -5.0, sitk.sitkFloat32))
    ours = resample(moving, rigid, grid, kernel, outside=-5.0).data[0].permute(2, 1, 0).numpy()
    assert np.isclose(ours, -5).mean() not in (0, 1)
    assert np.abs(ours - expected).max() < 1e-3


def test_labels_keep_their_ids_names_and_type():
    grid = oblique_grid()
    labels = Labels(torch.randint(0, 3, (1, *grid.shape)) * 1000, grid, {2000: "L5"}, np.dtype(np.uint16))
    moved = resample(labels, turn((0, 0, 1), (0.2, 0, 0)), grid)
    assert moved.ids() == [1000, 2000]
    assert moved.name(2000) == "L5"
    assert moved.stored == np.uint16


def test_outside_is_the_minimum_for_images_and_background_for_labels():
    grid = axis_grid((1, 1, 1))
    far = Rigid(np.block([[np.eye(3), np.full((3, 1), 500.0)], [np.zeros((1, 3)), np.ones((1, 1))]]))
    assert (resample(Image(torch.rand(1, *grid.shape) + 3, grid), far, grid).data < 3.01).all()
    assert (resample(Labels(torch.ones(1, *grid.shape, dtype=torch.int16), grid), far, grid).data == 0).all()


@pytest.mark.parametrize("name", list(GRIDS))
def test_regrid_keeps_a_smooth_image(name):
    image = smooth(GRIDS[name])
    finer = regrid(image, image.grid.resampled(0.8))
    points = finer.grid.points(torch.float64)
    index = image.grid.index(points.flatten(1))
    inside = ((index > 4) & (index < torch.tensor(image.grid.shape)[:, None] - 5)).all(0)
    x, y, z = points.flatten(1) / 7
    expected = torch.sin(x) + torch.cos(y + 0.4) * torch.sin(z)
    assert inside.any()
    assert (finer.data.flatten() - expected)[inside].abs().max() < 0.02


def test_regrid_agrees_with_the_windowed_sinc_of_itk():
    grid = axis_grid((-1, -1, 1), shape=(26, 24, 22))
    image = Image(torch.rand(1, *grid.shape), grid)
    onto = grid.resampled(0.9).padded((-9, -9, -9))
    expected = sitk.Resample(
        as_sitk(image), as_sitk(Image(torch.zeros(1, *onto.shape), onto)), sitk.Transform(), sitk.sitkLanczosWindowedSinc
    )
    ours = regrid(image, onto).data[0].permute(2, 1, 0).numpy()
    assert np.abs(ours - sitk.GetArrayFromImage(expected)).max() < 0.02  # ITK does not normalise its weights


def test_regrid_to_a_coarser_grid_does_not_alias():
    grid = axis_grid((1, 1, 1), shape=(60, 8, 8), spacing=(0.5, 1.0, 1.0))
    stripes = Image(((-1.0) ** torch.arange(60))[:, None, None].expand(60, 8, 8)[None].clone(), grid)
    coarse = regrid(stripes, grid.resampled((2.0, 1.0, 1.0)))
    assert coarse.data[:, 4:-4].abs().max() < 0.1


def test_regrid_refuses_another_orientation():
    with pytest.raises(ValueError, match="directions"):
        regrid(smooth(GRIDS["LPS"]), GRIDS["oblique"])


def test_finer_is_linear_between_the_voxels_of_any_grid(grid):
    values, onto = torch.randn(3, *grid.shape), grid.padded((2, 1, 3)).resampled(grid.spacing_mm * (0.4, 1.0, 0.3))
    found = finer(values, grid, onto)
    torch.testing.assert_close(found.flatten(1), sample(values, grid, onto.points(torch.float64).flatten(1)), atol=1e-5, rtol=0)
    part = (slice(3, 9), slice(0, 5), slice(4, 7))
    torch.testing.assert_close(finer(values, grid, onto.cropped(part)), found[:, *part])
    plane = grid.cropped((slice(0, 1), slice(0, 4), slice(1, 3)))  # one voxel along an axis
    flat = values[:, :1, :4, 1:3]
    torch.testing.assert_close(
        finer(flat, plane, onto).flatten(1), sample(flat, plane, onto.points(torch.float64).flatten(1)), atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match="directions"):
        finer(values, grid, grid.moved(Rigid(np.diag([-1.0, -1.0, 1.0, 1.0])).matrix))


def test_labels_regrid_to_the_nearest():
    labels = Labels(torch.randint(0, 5, (1, *GRIDS["LPS"].shape)), GRIDS["LPS"])
    assert regrid_labels(labels, labels.grid) is labels
    assert set(regrid_labels(labels, labels.grid.resampled(0.5)).ids()) == set(labels.ids())


def test_a_field_at_its_own_voxels_is_what_it_is_anywhere(grid):
    field = Displacement(torch.randn(3, *grid.shape), grid)
    chain = Rigid(np.diag([-1.0, -1.0, 1.0, 1.0])).after(field)
    for transform in (field, chain):
        for onto in (grid, grid.padded((-3, 0, -1)), grid.padded((2, 0, 0)), grid.resampled(2.0)):
            expected = transform(onto.points(torch.float64).flatten(1))
            assert torch.allclose(transform.carried(onto), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["RAS", "LPS", "oblique"])
def test_a_coarser_image_is_made_once_and_not_kept_alive(name):
    """At 2 mm, along an axis with longer voxels at its own spacing."""
    grid = oblique_grid() if name == "oblique" else GRIDS[name]
    image = Image(torch.rand(1, *grid.shape), grid)
    found = coarser(image, 2.0)
    wanted = grid.resampled(np.maximum(2.0, grid.spacing_mm))
    assert found.grid.isclose(wanted)
    assert torch.equal(found.data, regrid(image, wanted).data)
    assert coarser(image, 2.0) is found
    assert coarser(image, 4.0) is not found
    assert coarser(Image(image.data, grid), 2.0) is not found
    seen = weakref.ref(image)
    del image
    gc.collect()
    assert seen() is None
