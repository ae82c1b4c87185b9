"""A simulated pair keeps what it promises: rigid bones, no folds, an inverse, images that agree at the truth, repeatability."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from osteomorph.errors import InputError
from osteomorph.geometry import sample
from osteomorph.measure import fit_rigid
from osteomorph.resampling import resample
from osteomorph.simulate import pair as pair_module
from osteomorph.simulate import phantom
from osteomorph.simulate.build import draw_build
from osteomorph.simulate.motion import DIFFICULTIES
from osteomorph.simulate.pair import Settings, simulate
from osteomorph.simulate.soft import MARGIN_MM
from osteomorph.simulate.trunk import Trunk
from osteomorph.simulate.truth import jacobian
from osteomorph.transforms import Rigid

LABELLED = {22: "L3", 23: "L4", 24: "L5"}


def test_truth_is_rigid_in_every_bone_and_a_margin(pair, bone_points):
    assert set(LABELLED) < set(pair.poses)
    seen = 0
    for label in pair.poses:
        points = bone_points(pair, label, MARGIN_MM)
        if points.shape[1] < 30:
            continue  # hardly in the field of view
        seen += 1
        assert float((pair.truth(points) - Rigid(pair.poses[label])(points)).norm(dim=0).max()) < 1e-6
        matrix, largest, _ = fit_rigid(points, pair.truth(points))
        assert largest < 1e-6
        np.testing.assert_allclose(matrix, pair.poses[label], atol=1e-5)
    assert seen >= 5


def test_truth_keeps_the_type_of_points(pair, bone_points):
    points = bone_points(pair, 23)[:, :5]
    assert pair.truth(points.float()).dtype == torch.float32
    torch.testing.assert_close(pair.truth(points.float()).double(), pair.truth(points), atol=1e-4, rtol=0)


def test_bones_move_against_each_other(pair):
    for lower, upper in pairwise((26, 24, 23, 22, 21)):
        assert 0.05 < Rigid(np.linalg.inv(pair.poses[lower]) @ pair.poses[upper]).angle_deg < 8


def test_scanners_lie_apart_as_drawn(pair):
    offset = Rigid(pair.truth.offset)
    assert offset.angle_deg == pytest.approx(4.0, abs=1e-6)
    np.testing.assert_allclose(pair.poses[24], pair.truth.offset, atol=1e-9)  # the lowest labelled bone has not moved


def test_displacements_are_of_the_size_asked_for(pair):
    wanted = phantom.SETTINGS.motion
    back = np.linalg.inv(pair.truth.offset)
    points = pair.case.fixed.grid.points(torch.float64).flatten(1)
    moved = (Rigid(back)(pair.truth(points)) - points).norm(dim=0)
    bone = (pair.fixed_bones.data.flatten() > 0) & torch.isin(pair.fixed_bones.data.flatten(), torch.tensor(sorted(LABELLED)))
    assert 0.5 < float(moved[bone].max()) < wanted.bone_mm[1] + 0.5
    skin = pair.truth.anatomy.body(points).abs() < 6
    assert 0.6 * wanted.skin_mm[0] < float(moved[skin].quantile(0.95)) < 1.4 * wanted.skin_mm[1]


def test_truth_does_not_fold(pair):
    points = pair.case.fixed.grid.points(torch.float64).flatten(1)
    determinant = torch.linalg.det(jacobian(pair.truth.to_anatomy, points, 0.05))
    assert float(determinant.min()) > 0
    assert float((determinant - 1).abs().max()) > 0.1


def test_inverse_undoes_the_truth(pair, bone_points):
    grid = pair.case.fixed.grid
    points = grid.world(torch.rand(3, 4000, dtype=torch.float64) * (torch.tensor(grid.shape)[:, None] - 1))
    points = torch.cat([points, bone_points(pair, 23, 3.0)[:, :1000]], 1)
    assert float((pair.truth.inverse()(pair.truth(points)) - points).norm(dim=0).max()) < 0.01
    assert pair.truth.inverse().inverse() is pair.truth


def test_same_seed_same_arrays_other_seed_others(pair):
    again, other = phantom.tiny(0), phantom.tiny(1)
    for part in ("fixed", "moving", "fixed_labels", "moving_labels"):
        assert torch.equal(getattr(again.case, part).data, getattr(pair.case, part).data)
    assert torch.equal(again.fixed_observed.data, pair.fixed_observed.data)
    assert torch.equal(again.displacement.vectors, pair.displacement.vectors)
    assert again.parameters == pair.parameters
    assert again.record() == pair.record()
    assert not np.allclose(other.poses[23], pair.poses[23])


def test_truth_does_not_depend_on_the_voxel_size(pair, bone_points):
    coarse = phantom.phantom(0, spacing_mm=8.0)
    points = bone_points(pair, 23, 8.0)[:, :500]
    torch.testing.assert_close(coarse.truth(points), pair.truth(points))


def test_displacement_is_the_truth_at_voxel_centres(pair):
    points = pair.case.fixed.grid.points(torch.float64).flatten(1)[:, ::97]
    assert float((pair.displacement(points) - pair.truth(points)).norm(dim=0).max()) < 1e-4


def test_labels_are_the_bones(pair):
    assert pair.case.fixed_labels.ids() == pair.case.moving_labels.ids() == sorted(LABELLED)
    assert dict(pair.case.fixed_labels.names) == LABELLED
    voxel = [float(np.prod(labels.grid.spacing_mm)) for labels in (pair.case.fixed_labels, pair.case.moving_labels)]
    for label in LABELLED:
        fixed, moving = (int((m.data == label).sum()) for m in (pair.case.fixed_labels, pair.case.moving_labels))
        assert fixed * voxel[0] == pytest.approx(moving * voxel[1], rel=0.06)  # rigid, so of one volume
    moved = resample(pair.case.moving_labels, pair.truth, pair.case.fixed.grid)
    same = (moved.data == pair.case.fixed_labels.data)[pair.case.fixed_labels.mask()]
    assert float(same.float().mean()) > 0.85  # two roundings to 3 mm voxels
    assert set(pair.fixed_bones.ids()) > set(LABELLED)
    assert torch.equal(pair.fixed_bones.only(LABELLED).data, pair.case.fixed_labels.data)


def test_bones_do_not_touch(pair):
    grid = pair.case.fixed.grid
    points = grid.resampled(2.0).points(torch.float64).flatten(1)
    two = torch.stack([pair.truth.distance(k, points) for k in pair.poses]).sort(dim=0).values[:2]
    assert float(two.sum(0).min()) > 1.0


def test_mr_is_no_function_of_ct(pair):
    """Within marrow, HU tell little of the MR intensity."""
    case = pair.case
    points = case.fixed.grid.points(torch.float64).flatten(1)
    inside = torch.stack([pair.truth.distance(k, points) for k in LABELLED]).min(0).values < -4
    assert int(inside.sum()) > 500
    ct = sample(case.moving.data, case.moving.grid, pair.truth(points[:, inside]).float())[0]
    mr = case.fixed.data[0].flatten()[inside]
    assert abs(float(torch.corrcoef(torch.stack([ct, mr]))[0, 1])) < 0.7
    assert float(mr.std()) > 0.03 * float(mr.mean())


def mutual_information(a, b, bins=32):
    """Of a plain joint histogram, in nats."""
    joint = np.histogram2d(a, b, bins)[0]
    joint /= joint.sum()
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])).sum())


def agrees_best_at_the_truth(pair, labels):
    case = pair.case
    points = case.fixed.grid.points(torch.float64).flatten(1)
    near = torch.stack([pair.truth.distance(k, points) for k in labels]).min(0).values < 6
    there, mr = pair.truth(points[:, near]), case.fixed.data[0].flatten()[near]
    mr = mr.clamp(max=float(mr.quantile(0.98))).numpy()

    def score(shift):
        at = there + torch.as_tensor(shift, dtype=torch.float64)[:, None]
        return mutual_information(mr, sample(case.moving.data, case.moving.grid, at.float())[0].clamp(-200, 900).numpy())

    best = score((0, 0, 0))
    return all(score(shift) < best for shift in (*np.eye(3), *-np.eye(3)))


def test_images_agree_best_at_the_truth(pair):
    assert agrees_best_at_the_truth(pair, LABELLED)


def test_grids_differ_in_orientation_and_spacing(pair):
    fixed, moving = pair.case.fixed.grid, pair.case.moving.grid
    assert fixed.axcodes == "IPL"
    assert moving.axcodes == "LPS"
    assert np.abs(fixed.direction).max() < 0.9999  # oblique
    assert not np.allclose(sorted(fixed.spacing_mm), sorted(moving.spacing_mm))


@pytest.mark.parametrize(("view", "soft"), [("lumbar", "flow"), ("lumbar", "elastic"), ("pelvis", "harmonic")])
def test_every_generator_is_exact_in_bone_and_does_not_fold(soft, view, bone_points):
    size = (90.0, 110.0, 100.0) if view == "lumbar" else (210.0, 90.0, 100.0)
    settings = replace(phantom.SETTINGS, view=view, size_mm=size, soft=soft, motion=DIFFICULTIES["thesis"]).coarser(5.0)
    other = simulate(Trunk(draw_build(np.random.default_rng(4))), settings, 5)
    for label in other.case.fixed_labels.ids():
        points = bone_points(other, label, MARGIN_MM)
        assert float((other.truth(points) - Rigid(other.poses[label])(points)).norm(dim=0).max()) < 1e-6
    points = other.case.fixed.grid.points(torch.float64).flatten(1)
    assert float(torch.linalg.det(jacobian(other.truth.to_anatomy, points, 0.05)).min()) > 0
    some = points[:, ::41]
    assert float((other.truth.inverse()(other.truth(some)) - some).norm(dim=0).max()) < 0.01


def test_orientation_of_the_mr_is_a_choice():
    settings = replace(phantom.SETTINGS.coarser(8.0), orientation="coronal")
    assert simulate(Trunk(draw_build(np.random.default_rng(1))), settings, 0).case.fixed.grid.axcodes == "LIA"


def test_wrong_settings_are_named():
    patient = Trunk(draw_build(np.random.default_rng(0)))
    with pytest.raises(InputError, match=r"no view 'skull'.*lumbar"):
        simulate(patient, Settings(view="skull"))
    with pytest.raises(InputError, match=r"called 'jelly'.*harmonic"):
        simulate(patient, Settings(soft="jelly"))


def test_too_much_motion_is_refused(monkeypatch):
    monkeypatch.setattr(pair_module, "DRAWS", 2)
    motion = replace(DIFFICULTIES["hard"], bone_mm=(80.0, 80.0), turn=9.0)
    with pytest.raises(InputError, match="less motion"):
        simulate(Trunk(draw_build(np.random.default_rng(0))), replace(phantom.SETTINGS.coarser(6.0), motion=motion), 0)
