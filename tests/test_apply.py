import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import axis_grid, oblique_grid
from scipy.spatial.transform import Rotation

from osteomorph.apply import apply_transform
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.io import read_image, read_labels, read_transform, write_image, write_transform
from osteomorph.points import PointTable
from osteomorph.resampling import resample
from osteomorph.transforms import Chain, Displacement, Rigid


def centred(grid: Grid, at: Grid) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] += at.centre_mm - grid.centre_mm
    return Grid(grid.shape, affine)


FIXED = oblique_grid()
MOVING = centred(axis_grid((-1, -1, 1), shape=(30, 28, 32)), FIXED)


def wavy(grid: Grid, amplitude_mm: float = 1.5) -> Displacement:
    points = grid.points(torch.float64)
    vectors = torch.stack([amplitude_mm * torch.sin(points[(d + 1) % 3] / 9.0 + d) for d in range(3)])
    return Displacement(vectors.float(), grid)


def a_transform() -> Chain:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (4, -3, 6), degrees=True).as_matrix()
    matrix[:3, 3] = (2.0, -3.0, 1.0)
    return Chain((wavy(FIXED.resampled(2.0).padded((4, 4, 4))), Rigid(matrix)))


def textured(grid: Grid, seed: int = 0) -> Image:
    generator = torch.Generator().manual_seed(seed)
    smooth = (grid.points() / 6.0).sin().sum(0, keepdim=True) * 300
    return Image((smooth + 20 * torch.randn(1, *grid.shape, generator=generator)).round(), grid, np.dtype(np.int16))


def blocks(grid: Grid, ids=(3, 20, 300)) -> Labels:
    data = torch.zeros(1, *grid.shape, dtype=torch.int16)
    for number, label in enumerate(ids):
        start = 7 + number * 6
        data[:, 6:-6, 6:-6, start : start + 5] = label
    return Labels(data, grid, stored=np.dtype(np.int16))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A result's folder as far as apply reads it, with a moving image and labels beside it."""
    folder = tmp_path_factory.mktemp("pair")
    out = folder / "result"
    out.mkdir()
    write_transform(out / "transform.h5", a_transform())
    write_transform(out / "inverse.h5", a_transform().inverse())
    grids = {n: {"shape": list(g.shape), "affine": g.affine.tolist()} for n, g in (("fixed", FIXED), ("moving", MOVING))}
    (out / "result.json").write_text(json.dumps({"grids": grids, "moved": {"interpolation": "bspline"}}))
    write_image(folder / "ct.nii.gz", textured(MOVING))
    write_image(folder / "mr.nii.gz", textured(FIXED, 1))
    write_image(folder / "bones.nii.gz", blocks(MOVING))
    return out


def csv(path, points, header="x,y,z"):
    rows = "\n".join(",".join(f"{v:.6f}" for v in p) for p in np.asarray(points).T)
    path.write_text((header + "\n" if header else "") + rows + "\n")
    return path


def inner_points(grid: Grid, n: int = 40) -> torch.Tensor:
    size = torch.tensor(grid.shape, dtype=torch.float64)[:, None]
    return grid.world(size * (0.25 + 0.5 * torch.rand(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(3))))


def test_an_image_is_pulled_back_onto_the_fixed_grid_as_moved_was(result, tmp_path):
    (done,) = apply_transform(result / "transform.h5", [result.parent / "ct.nii.gz"], tmp_path / "out")
    got = read_image(tmp_path / "out" / "ct.nii.gz")
    want = resample(read_image(result.parent / "ct.nii.gz"), a_transform(), FIXED, "bspline")
    assert got.grid.isclose(FIXED)
    assert got.stored == np.int16
    assert float((got.data - want.data).abs().max()) <= 1
    assert (done.kind, done.target) == ("image", tmp_path / "out" / "ct.nii.gz")
    assert "moving -> fixed" in done.words
    assert "bspline" in done.words


def test_simpleitk_resamples_alike(result, tmp_path):
    apply_transform(result, [result.parent / "ct.nii.gz"], tmp_path, interpolation="linear")
    moving, reference = sitk.ReadImage(str(result.parent / "ct.nii.gz")), sitk.ReadImage(str(result.parent / "mr.nii.gz"))
    low = float(sitk.GetArrayViewFromImage(moving).min())
    want = sitk.Resample(moving, reference, sitk.ReadTransform(str(result / "transform.h5")), sitk.sitkLinear, low)
    got = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "ct.nii.gz"))).astype(float)
    difference = np.abs(got - sitk.GetArrayFromImage(want))
    assert (difference > 1).mean() < 1e-3  # rounding at the border of the field of view
    assert difference.mean() < 0.5


def test_labels_are_detected_and_keep_their_ids(result, tmp_path):
    (done,) = apply_transform(result, [result.parent / "bones.nii.gz"], tmp_path)
    got = read_labels(tmp_path / "bones.nii.gz")
    assert done.kind == "labels"
    assert "nearest" in done.words
    assert got.ids() == [3, 20, 300]
    assert torch.equal(got.data, resample(blocks(MOVING), a_transform(), FIXED).data)
    assert "no voxel" not in done.words


def test_labels_that_fall_outside_are_named(result, tmp_path):
    labels = blocks(MOVING)
    labels.data[:, :3, :3, :3] = 7
    write_image(tmp_path / "bones.nii.gz", labels)
    (done,) = apply_transform(result, [tmp_path / "bones.nii.gz"], tmp_path / "out")
    assert "no voxel of label 7 falls there" in done.words


def test_points_go_against_the_images(result, tmp_path):
    """A moving point lands where the moved image shows what lay under it."""
    at = inner_points(FIXED)
    csv(tmp_path / "moving.csv", a_transform()(at))
    (done,) = apply_transform(result, [tmp_path / "moving.csv"], tmp_path / "out")
    got = PointTable.read(tmp_path / "out" / "moving.csv").points_mm()
    assert float((got - at).norm(dim=0).max()) < 1e-4
    assert "inverse.h5" in done.words


def test_the_inverse_carries_fixed_things_into_moving_space(result, tmp_path):
    at = inner_points(FIXED)
    csv(tmp_path / "fixed.csv", at)
    points, image = apply_transform(
        result, [tmp_path / "fixed.csv", result.parent / "mr.nii.gz"], tmp_path / "out", inverse=True
    )
    got = PointTable.read(tmp_path / "out" / "fixed.csv").points_mm()
    assert float((got - a_transform()(at)).norm(dim=0).max()) < 1e-3
    assert "through transform.h5" in points.words
    assert "through inverse.h5" in image.words
    assert read_image(tmp_path / "out" / "mr.nii.gz").grid.isclose(MOVING)


def test_without_inverse_h5_the_transform_is_inverted(result, tmp_path):
    write_transform(tmp_path / "transform.h5", read_transform(result / "transform.h5"))
    at = inner_points(FIXED)
    csv(tmp_path / "moving.csv", a_transform()(at))
    (done,) = apply_transform(tmp_path / "transform.h5", [tmp_path / "moving.csv"], tmp_path / "out")
    assert "numerical inverse" in done.words
    assert float((PointTable.read(tmp_path / "out" / "moving.csv").points_mm() - at).norm(dim=0).max()) < 1e-4


def test_a_reference_gives_the_grid(result, tmp_path, grid):
    grid = centred(grid, FIXED)
    name = tmp_path / "reference.nii.gz"
    write_image(name, textured(grid))
    apply_transform(result, [result.parent / "ct.nii.gz"], tmp_path / "out", reference=name, interpolation="linear")
    got = read_image(tmp_path / "out" / "ct.nii.gz")
    want = resample(read_image(result.parent / "ct.nii.gz"), a_transform(), grid)
    assert got.grid.isclose(grid)
    assert float((got.data - want.data).abs().max()) <= 1


def test_without_a_record_a_reference_is_asked_for(result, tmp_path):
    write_transform(tmp_path / "transform.h5", a_transform())
    with pytest.raises(InputError, match="--reference"):
        apply_transform(tmp_path / "transform.h5", [result.parent / "ct.nii.gz"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nearest_makes_no_new_values(result, tmp_path):
    apply_transform(result, [result.parent / "ct.nii.gz"], tmp_path, interpolation="nearest")
    got, source = read_image(tmp_path / "ct.nii.gz"), read_image(result.parent / "ct.nii.gz")
    assert bool(torch.isin(got.data, source.data).all())


@pytest.mark.parametrize("header", ["x,y,z", "X,Y,Z", "", "r,a,s"])
def test_headers_of_points_in_ras(tmp_path, header):
    table = PointTable.read(csv(tmp_path / "p.csv", [[1.0], [2.0], [3.0]], header))
    assert table.points_mm().flatten().tolist() == [1, 2, 3]


def test_points_in_lps_go_in_and_come_out_in_lps(result, tmp_path):
    at = inner_points(FIXED)
    there = a_transform()(at)
    flip = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)[:, None]
    csv(tmp_path / "ras.csv", at)
    csv(tmp_path / "lps.csv", at * flip)
    csv(tmp_path / "named.csv", at * flip, "l,p,s")
    apply_transform(result, [tmp_path / "lps.csv"], tmp_path / "out", inverse=True, frame="LPS")
    apply_transform(result, [tmp_path / "named.csv"], tmp_path / "out", inverse=True)
    for name in ("lps.csv", "named.csv"):
        table = PointTable.read(tmp_path / "out" / name, None if name == "named.csv" else "LPS")
        assert float((table.points_mm() - there).norm(dim=0).max()) < 1e-3
    (wrong,) = apply_transform(result, [tmp_path / "lps.csv"], tmp_path / "wrong", inverse=True)
    assert "outside the fixed image" in wrong.words


def test_other_columns_and_their_order_stay(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('name;z;x;y;note\n"L4; left";3;1;2;a\nL5;6;4;5;b\n')
    table = PointTable.read(path)
    assert table.points_mm().T.tolist() == [[1, 2, 3], [4, 5, 6]]
    table.with_points(table.points_mm() + 1).write(path)
    assert path.read_text() == 'name;z;x;y;note\n"L4; left";4.000000;2.000000;3.000000;a\nL5;7.000000;5.000000;6.000000;b\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("x,y,z\n", "no points"),
        ("a,b,c\n1,2,3\n", "no columns x,y,z"),
        ("x,y,z\n1,2\n", "row 2"),
        ("x,y,z\n1,2,3\n1,nan,3\n", "row 3"),
        ("1,2,3,4\n", "header"),
    ],
)
def test_bad_points_are_refused(tmp_path, text, says):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        PointTable.read(tmp_path / "p.csv")


def test_all_inputs_are_carried_or_none(result, tmp_path):
    (tmp_path / "bad.csv").write_text("x,y,z\n1,2,three\n")
    with pytest.raises(InputError, match="row 2"):
        apply_transform(result, [result.parent / "bones.nii.gz", tmp_path / "bad.csv"], tmp_path / "deep" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv"]


def test_nothing_is_replaced_unasked_and_inputs_never(result, tmp_path):
    ct = result.parent / "ct.nii.gz"
    before = ct.read_bytes()
    apply_transform(result, [ct], tmp_path)
    with pytest.raises(InputError, match="--overwrite"):
        apply_transform(result, [ct], tmp_path)
    apply_transform(result, [ct], tmp_path, overwrite=True)
    with pytest.raises(InputError, match="is read"):
        apply_transform(result, [ct], ct.parent, overwrite=True)
    assert ct.read_bytes() == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "ct.nii.gz").write_bytes(before)
    with pytest.raises(InputError, match="keep their names"):
        apply_transform(result, [ct, tmp_path / "b" / "ct.nii.gz"], tmp_path / "twice")


def test_the_way_back_is_asked_for_by_inverse(result, tmp_path):
    with pytest.raises(InputError, match="--inverse"):
        apply_transform(result / "inverse.h5", [result.parent / "ct.nii.gz"], tmp_path)


def test_a_split_format_becomes_one_file(result, tmp_path):
    write_image(tmp_path / "ct.mhd", textured(MOVING))
    (done,) = apply_transform(result, [tmp_path / "ct.mhd"], tmp_path / "out", interpolation="linear")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["ct.mha"]
    assert read_image(done.target).grid.isclose(FIXED)


def test_every_awkward_grid_is_carried_to_itself_by_the_identity(grid, tmp_path):
    write_image(tmp_path / "a.nii.gz", textured(grid))
    write_transform(tmp_path / "t.h5", Rigid.identity())
    apply_transform(tmp_path / "t.h5", [tmp_path / "a.nii.gz"], tmp_path / "out", reference=tmp_path / "a.nii.gz")
    assert torch.equal(read_image(tmp_path / "out" / "a.nii.gz").data, textured(grid).data)
