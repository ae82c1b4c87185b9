"""The phantom keeps what it promises: exact rigid bones, no folds, an inverse, the same pair from the same seed."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from osteomorph import io
from osteomorph.geometry import sample
from osteomorph.measure import fit_rigid
from osteomorph.resampling import resample
from osteomorph.simulate import phantom
from osteomorph.simulate.anatomy import BONES, NAMES
from osteomorph.simulate.motion import MARGIN_MM
from osteomorph.transforms import Displacement, Rigid


@pytest.fixture(scope="module")
def pair():
    return phantom.tiny(0)


def bone_points(pair, label, within_mm=0.0):
    """Random points in a bone (or within a distance of it) where it lies in the fixed image."""
    grid = pair.case.fixed.grid
    points = grid.world(torch.rand(3, 60_000, dtype=torch.float64) * (torch.tensor(grid.shape)[:, None] - 1))
    return points[:, pair.truth.distance(label, points) <= within_mm]


@pytest.mark.parametrize("label", BONES)
def test_truth_is_rigid_in_bone_and_a_margin(pair, label):
    points = bone_points(pair, label, MARGIN_MM)
    assert points.shape[1] > 150
    assert float((pair.truth(points) - Rigid(pair.poses[label])(points)).norm(dim=0).max()) < 1e-6
    matrix, largest, _ = fit_rigid(points, pair.truth(points))
    assert largest < 1e-6
    np.testing.assert_allclose(matrix, pair.poses[label], atol=1e-6)


def test_truth_keeps_the_type_of_points(pair):
    points = bone_points(pair, 23)[:, :5]
    assert pair.truth(points.float()).dtype == torch.float32
    torch.testing.assert_close(pair.truth(points.float()).double(), pair.truth(points), atol=1e-4, rtol=0)


def test_bones_move_against_each_other(pair):
    for lower, upper in pairwise(BONES):
        relative = Rigid(np.linalg.inv(pair.poses[lower]) @ pair.poses[upper])
        assert 0.3 < relative.angle_deg < 6


def test_scanners_lie_apart_as_asked(pair):
    together = phantom.phantom(0, spacing_mm=6.0, offset_deg=0.0, offset_mm=0.0)
    for label in BONES:
        offset = Rigid(pair.poses[label] @ np.linalg.inv(together.poses[label]))
        assert offset.angle_deg == pytest.approx(4.0, abs=1e-6)
        centre = torch.as_tensor(phantom.CENTRE_MM)[:, None]
        assert float((offset(centre) - centre).norm()) == pytest.approx(6.0, abs=1e-6)


def test_soft_tissue_deforms_beyond_what_bones_do(pair):
    points = pair.case.fixed.grid.points(torch.float64).flatten(1)
    _, largest, _ = fit_rigid(points, pair.truth(points))
    assert largest > 3


def test_truth_does_not_fold(pair):
    points = pair.case.fixed.grid.points(torch.float64).flatten(1)
    step, columns = 0.05, []
    for shift in torch.eye(3, dtype=torch.float64) * step:
        columns.append((pair.truth(points + shift[:, None]) - pair.truth(points - shift[:, None])) / (2 * step))
    determinant = torch.linalg.det(torch.stack(columns).permute(2, 1, 0))
    assert float(determinant.min()) > 0
    assert float((determinant - 1).abs().max()) > 0.1


def test_inverse_undoes_the_truth(pair):
    grid = pair.case.fixed.grid
    points = grid.world(torch.rand(3, 4000, dtype=torch.float64) * (torch.tensor(grid.shape)[:, None] - 1))
    points = torch.cat([points, bone_points(pair, 23, 3.0)[:, :1000]], 1)
    assert float((pair.truth.inverse()(pair.truth(points)) - points).norm(dim=0).max()) < 0.01
    assert pair.truth.inverse().inverse() is pair.truth


def test_same_seed_same_arrays_other_seed_others(pair):
    again, other = phantom.tiny(0), phantom.tiny(1)
    assert torch.equal(again.case.fixed.data, pair.case.fixed.data)
    assert torch.equal(again.case.moving.data, pair.case.moving.data)
    assert torch.equal(again.case.fixed_labels.data, pair.case.fixed_labels.data)
    assert again.parameters == pair.parameters
    assert not np.allclose(other.poses[23], pair.poses[23])


def test_truth_does_not_depend_on_the_voxel_size(pair):
    coarse = phantom.phantom(0, spacing_mm=5.0)
    points = bone_points(pair, 23, 8.0)[:, :500]
    torch.testing.assert_close(coarse.truth(points), pair.truth(points))


def test_labels_are_the_bones(pair):
    assert pair.case.fixed_labels.ids() == pair.case.moving_labels.ids() == sorted(NAMES)
    assert pair.case.fixed_labels.name(24) == "L5"
    voxel = [float(np.prod(labels.grid.spacing_mm)) for labels in (pair.case.fixed_labels, pair.case.moving_labels)]
    for label in NAMES:
        fixed, moving = (int((m.data == label).sum()) for m in (pair.case.fixed_labels, pair.case.moving_labels))
        assert fixed * voxel[0] == pytest.approx(moving * voxel[1], rel=0.06)  # rigid, so of one volume
        assert 30_000 < fixed * voxel[0] < 90_000
    moved = resample(pair.case.moving_labels, pair.truth, pair.case.fixed.grid)
    same = (moved.data == pair.case.fixed_labels.data)[pair.case.fixed_labels.mask()]
    assert float(same.float().mean()) > 0.85  # two roundings to 3 mm voxels


def test_bones_do_not_touch(pair):
    grid = pair.case.fixed.grid
    points = grid.resampled(2.0).points(torch.float64).flatten(1)
    two = torch.stack([pair.truth.distance(k, points) for k in BONES]).sort(dim=0).values[:2]
    assert float(two.sum(0).min()) > 1.2
    rest = torch.stack([pair.truth.anatomy.bone(k, points, 3.0) for k in BONES]).sort(dim=0).values[:2]
    assert float(rest.sum(0).min()) > 1.5


def test_contrast_is_that_of_ct_and_mr(pair):
    """Means of whole tissues, read at voxels deep inside them."""
    case, truth = pair.case, pair.truth
    points = case.fixed.grid.points(torch.float64).flatten(1)
    tissues = truth.anatomy.tissues(truth.to_anatomy(points))
    there = truth(points)
    top = torch.full(points.shape[1:], -1)
    for n, (_, distance) in enumerate(tissues):
        top[distance < 0] = n
    body = pair.fixed_body.data.flatten() > 0
    values = {}
    for name in ("fat", "muscle", "marrow", "csf"):
        chosen = torch.isin(top, torch.tensor([n for n, (t, _) in enumerate(tissues) if t == name]))
        near = [d.abs() for t, d in tissues if t != "fat"] if name == "fat" else [d for t, d in tissues if t == name]
        deep = torch.stack(near).min(0).values
        chosen &= (deep > 3) if name == "fat" else (deep < -2)
        ct = sample(case.moving.data, case.moving.grid, there[:, chosen].float(), "nearest")
        values[name] = (float(ct.mean()), float(case.fixed.data[0].flatten()[chosen].mean()))
    assert values["fat"][0] < -50 < 0 < values["muscle"][0] < 100 < values["marrow"][0] < 400
    assert values["muscle"][1] < values["marrow"][1] < values["fat"][1]
    assert values["csf"][1] > 1.5 * values["muscle"][1]
    assert float(case.moving.data.min()) >= -1024
    assert float(case.fixed.data[0].flatten()[~body].mean()) < 60


def test_mr_is_no_function_of_ct(pair):
    """Within marrow and within muscle, HU tell little of the MR intensity."""
    anatomy, case = pair.truth.anatomy, pair.case
    points = case.fixed.grid.points(torch.float64).flatten(1)
    inside = torch.stack([pair.truth.distance(k, points) for k in NAMES]).min(0).values < -4
    assert int(inside.sum()) > 500
    ct = sample(case.moving.data, case.moving.grid, pair.truth(points[:, inside]).float())[0]
    mr = case.fixed.data[0].flatten()[inside]
    assert abs(float(torch.corrcoef(torch.stack([ct, mr]))[0, 1])) < 0.7
    assert float(mr.std()) > 30
    assert anatomy.bones[23].label == 23


def mutual_information(a, b, bins=32):
    """Of a plain joint histogram, in nats."""
    joint = np.histogram2d(a, b, bins)[0]
    joint /= joint.sum()
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])).sum())


def test_images_agree_best_at_the_truth(pair):
    case = pair.case
    points = case.fixed.grid.points(torch.float64).flatten(1)
    near = torch.stack([pair.truth.distance(k, points) for k in NAMES]).min(0).values < 6
    there, mr = pair.truth(points[:, near]), case.fixed.data[0].flatten()[near].clamp(0, 900).numpy()

    def score(shift):
        at = there + torch.as_tensor(shift, dtype=torch.float64)[:, None]
        return mutual_information(mr, sample(case.moving.data, case.moving.grid, at.float())[0].clamp(-200, 900).numpy())

    best = score((0, 0, 0))
    for shift in (*np.eye(3), *-np.eye(3)):
        assert score(shift) < best


def test_grids_differ_in_orientation_and_spacing(pair):
    fixed, moving = pair.case.fixed.grid, pair.case.moving.grid
    assert fixed.axcodes == "IPL"
    assert moving.axcodes == "LPS"
    assert np.abs(fixed.direction).max() < 0.9999  # oblique
    assert not np.allclose(sorted(fixed.spacing_mm), sorted(moving.spacing_mm))


def test_too_much_motion_is_refused(monkeypatch):
    monkeypatch.setattr(phantom, "DRAWS", 2)
    with pytest.raises(ValueError, match="less motion"):
        phantom.phantom(0, spacing_mm=6.0, shift_mm=25.0)


def test_saved_pair_reads_back(pair, tmp_path):
    phantom.save(pair, tmp_path / "pair000")
    folder = tmp_path / "pair000"
    names = {"fixed", "moving", "fixed_labels", "moving_labels", "fixed_body", "displacement"}
    assert {f.name for f in folder.iterdir()} == {f"{n}.nii.gz" for n in names} | {"pair.json"}
    assert torch.equal(io.read_image(folder / "moving.nii.gz").data, pair.case.moving.data)
    assert torch.equal(io.read_labels(folder / "fixed_labels.nii.gz").data.int(), pair.case.fixed_labels.data.int())
    field = io.read_transform(folder / "displacement.nii.gz")
    assert isinstance(field, Displacement)
    points = pair.case.fixed.grid.points(torch.float64).flatten(1)
    assert float((field(points) - pair.truth(points)).norm(dim=0).max()) < 1e-3
    content = json.loads((folder / "pair.json").read_text())
    assert content["parameters"]["seed"] == 0
    assert {b["name"] for b in content["bones"] if b["labelled"]} == {"L3", "L4", "L5"}
    (l4,) = [b for b in content["bones"] if b["label"] == 23]
    np.testing.assert_array_equal(l4["matrix"], pair.poses[23])
