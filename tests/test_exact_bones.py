"""Bones exactly rigid in a registration: the parts, then the path from files to files."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GRIDS, axis_grid, oblique_grid, sagittal_grid
from scipy.spatial.transform import Rotation
from test_refine import blobs

from osteomorph.apply import apply_transform
from osteomorph.case import Case
from osteomorph.certificate import Certificate
from osteomorph.distances import distance_maps
from osteomorph.exact_bones import ExactBones, first_poses, robust_fit, sides_of, still_parts, warnings_of
from osteomorph.geometry import Grid
from osteomorph.image import Labels
from osteomorph.io import read_labels, read_transform, write_image
from osteomorph.plan import InitialisePlan, Level, Plan, PosePlan, PreparePlan, RefinePlan, SoftPlan, Weights
from osteomorph.polyrigid import from_labels
from osteomorph.pose import BonePose
from osteomorph.registration import register
from osteomorph.resampling import resample
from osteomorph.soft_field import STILL, ramp, soft_field, still_mm, without_folds
from osteomorph.stored_fields import stored_grid
from osteomorph.transforms import Displacement, Rigid, Velocity

SOFT = SoftPlan(
    ramp_mm=6.0,
    lattice_mm=4.0,
    levels=(Level(control_mm=12, iterations=12, step_mm=0.6),),
    weights=Weights(mutual_information=1.0, mind=10.0, bending=5.0),
)

PLAN = Plan(
    bones="exact",
    prepare=PreparePlan(spacing_mm=1.5),
    initialise=InitialisePlan(method="none"),
    guess_mm=2.0,
    guess=RefinePlan(
        field_spacing_mm=4.0,
        levels=(Level(control_mm=16, iterations=25, step_mm=1.0, smooth_mm=1.5, samples=5_000),),
        weights=Weights(mind=30.0, mutual_information=1.0, bending=20.0),
    ),
    pose=PosePlan(spacings_mm=(1.5,), search_mm=0.0, search_deg=0.0, points=4_000),
    soft=SOFT,
)


def turned(degrees: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> Rigid:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift_mm
    return Rigid(matrix)


MOTIONS = {1: ((3, -2, 2), (1.0, -0.5, 0.8)), 2: ((-2, 3, 1), (-0.8, 1.0, 0.5)), 9: ((0, 0, 0), (0, 0, 0))}


@pytest.fixture(scope="module")
def scene():
    """A case with two bones that move against each other in soft tissue, a third out of the fixed view; true poses."""
    moving_grid = sagittal_grid((52, 46, 40), (1.5, 1.5, 1.6))
    affine = moving_grid.affine.copy()
    affine[:3, 3] -= moving_grid.centre_mm
    moving_grid = Grid(moving_grid.shape, affine)
    places = {1: (0, 0, 14), 2: (0, 0, -14), 9: (0, 0, 37)}
    points = moving_grid.points()
    labels = torch.zeros(1, *moving_grid.shape, dtype=torch.int16)
    for label, place in places.items():
        away = points - torch.tensor(place, dtype=torch.float32)[:, None, None, None]
        labels[0][((away / torch.tensor([13.0, 11.0, 8.0])[:, None, None, None]).norm(dim=0) < 1)] = label
    moving, bones = blobs(moving_grid, 3), Labels(labels, moving_grid, {1: "upper", 2: "lower", 9: "lost"})
    poses = {label: turned(*MOTIONS[label]) for label in places}
    base = from_labels(poses, moving=bones)
    fixed_grid = oblique_grid((34, 32, 36), (1.3, 1.4, 1.5), (3, -4, 5), (0, 0, 0))
    affine = fixed_grid.affine.copy()
    affine[:3, 3] -= fixed_grid.centre_mm
    fixed_grid = Grid(fixed_grid.shape, affine)
    x, y, z = fixed_grid.points() / 8
    still = ramp([body.region for body in base.bodies], fixed_grid, 5.0)
    wave = Displacement(1.2 * torch.stack([torch.sin(y), torch.cos(z), torch.sin(x)]) * still, fixed_grid)
    fixed = resample(moving, base.after(wave), fixed_grid)
    return Case(fixed.with_data(1 - 0.7 * fixed.data), moving, None, bones), poses, base.after(wave)


def ball(grid: Grid, radius_mm: float) -> Labels:
    away = grid.points() - torch.as_tensor(grid.centre_mm, dtype=torch.float32)[:, None, None, None]
    return Labels((away.norm(dim=0) < radius_mm).to(torch.int16)[None] * 3, grid)


# -- soft tissue around bones ---------------------------------------------------------------------------------------------
def test_the_ramp_is_0_around_a_region_and_1_beyond_its_reach(grid):
    (region,) = distance_maps(ball(grid, 5.0)).values()
    hold = ramp([region], grid, 4.0)
    still = still_mm(grid)
    away = region(grid.points().flatten(1)).unflatten(0, grid.shape)
    assert (hold[away <= STILL * float(np.linalg.norm(grid.spacing_mm))] == 0).all()
    assert (hold[away >= still + 4.0] == 1).all()
    between = (away > still + 0.5) & (away < still + 3.5)
    assert ((hold[between] > 0) & (hold[between] < 1)).all()


@pytest.mark.parametrize("around", ["bone", "margin"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.1, 2.0)])
def test_what_holds_the_soft_field_keeps_every_point_of_a_bone_still(around, spacing):
    bone = ball(oblique_grid((20, 20, 20), (0.9, 1.0, 1.1), (25, 5, -40), (0, 0, 0)), 6.0)
    base = from_labels({3: turned([0, 0, 8], [2, 1, 0])}, moving=bone)
    (body,) = base.bodies
    grid = oblique_grid((30, 26, 16), spacing, (-10, 30, 15))
    affine = grid.affine.copy()
    affine[:3, 3] += body.bone.grid.centre_mm - grid.centre_mm
    grid = Grid(grid.shape, affine)
    hold = ramp(still_parts(base, grid, around), grid, 3.0)
    generator = torch.Generator().manual_seed(0)
    psi = Displacement(torch.randn(3, *grid.shape, generator=generator) * hold, grid)
    share = torch.rand(3, 60_000, generator=generator, dtype=torch.float64)
    points = body.bone.grid.world(share * torch.tensor(body.bone.grid.shape)[:, None])
    inside = points[:, (body.bone(points) <= 0) & grid.contains(points)]
    assert inside.shape[1] > 500
    assert torch.equal(psi(inside), inside)
    margin = body.region(grid.points().flatten(1)).unflatten(0, grid.shape) <= 0
    assert (hold[margin] == 0).all()
    assert (hold > 0.5).any()


@pytest.mark.parametrize("field", ["displacement", "velocity"])
def test_soft_tissue_moves_and_bone_does_not(field):
    grid = oblique_grid((40, 36, 30), spacing=(1.2, 1.2, 1.2))
    x, y, z = (grid.points() - torch.as_tensor(grid.centre_mm, dtype=torch.float32)[:, None, None, None]) / 10
    (region,) = distance_maps(ball(grid, 8.0)).values()
    truth = 1.5 * torch.stack([torch.sin(y), torch.cos(z), torch.sin(x)]) * ramp([region], grid, 6.0)
    moving = blobs(grid)
    fixed = resample(moving, Displacement(truth, grid), grid)
    plan = SOFT.model_copy(update={"field": field, "levels": (Level(control_mm=10, iterations=40, step_mm=0.5),)})
    psi, history = soft_field(
        Case(fixed.with_data(1 - 0.7 * fixed.data), moving), ramp([region], fixed.grid, plan.ramp_mm), plan
    )
    assert isinstance(psi, Velocity if field == "velocity" else Displacement)
    assert history[-1]["loss"] < history[0]["loss"]
    error = (psi.displacement(grid) - truth).norm(dim=0)[6:-6, 6:-6, 6:-6].mean()
    assert float(error) < 0.6 * float(truth.norm(dim=0)[6:-6, 6:-6, 6:-6].mean())
    generator = torch.Generator().manual_seed(0)
    points = torch.as_tensor(grid.centre_mm)[:, None] + 16 * (
        torch.rand(3, 20_000, dtype=torch.float64, generator=generator) - 0.5
    )
    held = points[:, region(points) <= 0]
    assert held.shape[1] > 5_000
    assert float((psi(held) - held).abs().max()) < 1e-4
    assert float((psi.inverse()(held) - held).abs().max()) < 1e-4


def test_a_displacement_near_folding_becomes_a_flow():
    grid = axis_grid((1, 1, 1), (20, 20, 20), (1.0, 1.0, 1.0))
    x = grid.points()[0]
    wave = torch.stack([torch.sin(x), torch.zeros_like(x), torch.zeros_like(x)])
    assert isinstance(without_folds(0.3 * wave, grid), Displacement)
    assert isinstance(without_folds(1.5 * wave, grid), Velocity)


# -- first poses ----------------------------------------------------------------------------------------------------------
def test_a_pose_is_read_from_a_field_with_outliers():
    truth = turned((4, -6, 3), (2, 1, -3))
    points = 20 * torch.randn(3, 400, dtype=torch.float64)
    moved = truth(points)
    moved[:, :100] += 8 + torch.randn(3, 100, dtype=torch.float64)
    assert np.allclose(robust_fit(points, moved).matrix, truth.matrix, atol=1e-9)


def test_a_bone_cut_by_the_view_is_rigid_all_the_same(scene):
    """The fixed image ends within the lower bone, whose labels are those of the fixed image."""
    case, poses, truth = scene
    grid = case.fixed.grid.padded((0, 0, -9), (0, 0, 0))
    fixed = case.fixed.data[..., 9:].contiguous()
    labels = resample(case.moving_labels, truth, grid)
    assert 0 < int((labels.data == 2).sum()) < 0.8 * int((resample(case.moving_labels, truth, case.fixed.grid).data == 2).sum())
    found = register(replace(case.fixed, data=fixed, grid=grid), case.moving, fixed_labels=labels, plan=PLAN, bones="fixed")
    here = grid.world((labels.data[0] == 2).nonzero().T.double())
    here = here[:, ~found.exact.rim(2, here)]
    assert float((found.stored(here) - found.exact.poses[2].pose(here)).norm(dim=0).max()) <= 1e-3
    assert float((found.stored(here) - poses[2](here)).norm(dim=0).mean()) < 0.5


@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize("name", ["oblique", "LPS"])
def test_first_poses_are_fixed_to_moving_whatever_the_labels_frame(name, side):
    truth = turned((4, -6, 3), (1, 0.5, -1))
    grid = GRIDS[name]
    there = grid.moved(truth.matrix)
    case = Case(blobs(grid), blobs(there), ball(grid, 7.0), ball(there, 7.0))
    (pose,) = first_poses(truth, Rigid.identity(), case, {3: side}, 1.0).values()
    assert np.allclose(pose.matrix, truth.matrix, atol=1e-9)


def test_a_bone_out_of_view_has_no_pose_and_a_sliver_keeps_the_start():
    grid = axis_grid((1, 1, 1), (30, 30, 30), (1.0, 1.0, 1.0))
    labels = torch.zeros(1, 30, 30, 30, dtype=torch.int16)
    labels[0, 5:15, 5:15, 5:15], labels[0, 20, 20, 20:24], labels[0, 2, 2, 29] = 1, 2, 3
    case = Case(blobs(grid), blobs(grid), None, Labels(labels, grid))
    away = turned((0, 0, 0), (0, 0, -3))  # the last planes of the moving image are seen by no fixed voxel
    found = first_poses(away, Rigid.identity(), case, {1: "moving", 2: "moving", 3: "moving"}, 1.0)
    assert list(found) == [1, 2]
    assert np.allclose(found[2].matrix, away.matrix)


@pytest.mark.parametrize(
    ("bones", "expected"),
    [
        ("auto", {1: "moving", 2: "moving", 3: "fixed"}),
        ("both", {1: "moving", 2: "moving", 3: "fixed"}),
        ("fixed", {1: "fixed", 3: "fixed"}),
    ],
)
def test_bones_are_looked_for_where_their_labels_are(bones, expected):
    grid = GRIDS["RAS"]
    one, other = torch.zeros(1, *grid.shape, dtype=torch.int16), torch.zeros(1, *grid.shape, dtype=torch.int16)
    one[0, 0, 0, :2], other[0, 0, 0, :2] = torch.tensor([1, 3], dtype=torch.int16), torch.tensor([1, 2], dtype=torch.int16)
    case = Case(blobs(grid), blobs(grid), Labels(one, grid), Labels(other, grid))
    assert sides_of((1, 2, 3), bones, case) == expected


# -- what files hold ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spacing", [(0.3, 0.5, 3.0), (0.7, 1.1, 3.0), (1.0, 1.0, 1.0)])
def test_stored_nodes_lie_on_voxel_centres_and_hold_the_field_of_view(spacing):
    grid = oblique_grid((11, 20, 12), spacing=spacing)
    nodes = stored_grid(grid, 1.0)
    assert nodes.spacing_mm.max() <= 1.5
    assert nodes.spacing_mm.min() > 0.55
    ends = nodes.index(grid.world(torch.tensor([[0.0, 10], [0, 19], [0, 11]], dtype=torch.float64)))
    assert torch.allclose(ends[:, 0], torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert (ends[:, 1] <= torch.tensor(nodes.shape).double() - 1 + 1e-9).all()
    steps = grid.spacing_mm / nodes.spacing_mm
    assert np.allclose(np.where(steps > 1, steps, 1 / steps) % 1, 0, atol=1e-9)


@pytest.fixture(scope="module")
def result(scene, tmp_path_factory):
    case, folder = scene[0], tmp_path_factory.mktemp("exact")
    write_image(folder / "fixed.nii.gz", case.fixed)
    write_image(folder / "moving.nii.gz", case.moving)
    write_image(folder / "labels.nii.gz", case.moving_labels)
    files = (folder / f"{name}.nii.gz" for name in ("fixed", "moving"))
    found = register(*files, moving_labels=folder / "labels.nii.gz", plan=PLAN, threads=1)
    found.write(folder / "out")
    return found, folder


def test_every_bone_is_rigid_at_its_voxels_in_the_file(result):
    found, folder = result
    assert found.exact is not None
    stored = read_transform(folder / "out" / "transform.h5")
    field = read_transform(folder / "out" / "displacement.nii.gz")
    points = found.case.fixed.grid.points(torch.float64)
    for label, bone in found.exact.poses.items():
        here = points[:, found.moved_labels.data[0] == label]
        here = here[:, ~found.exact.rim(label, here)]
        for transform in (stored, field, found.transform):
            assert float((transform(here) - bone.pose(here)).norm(dim=0).max()) <= 1e-3
        back = read_transform(folder / "out" / "inverse.h5")
        seen = found.case.moving.grid.world((found.case.moving_labels.data[0] == label).nonzero().T.double())
        seen = seen[:, ~found.exact.rim(label, bone.pose.inverse()(seen))]
        seen = seen[:, found.case.fixed.grid.contains(bone.pose.inverse()(seen))]
        assert float((back(seen) - bone.pose.inverse()(seen)).norm(dim=0).max()) <= 1e-3


def test_the_files_are_the_function(result):
    found, _ = result
    points = found.case.fixed.grid.strided(2).points(torch.float64).flatten(1)
    assert float((found.stored(points) - found.transform(points)).norm(dim=0).mean()) < 0.02
    there = found.transform(points)
    inside = found.case.moving.grid.contains(there)
    assert float((found.inverse(there) - points).norm(dim=0)[inside].mean()) < 0.05
    assert float((found.stored_inverse(found.stored(points)) - points).norm(dim=0)[inside].mean()) < 0.05


def test_bones_are_found_and_nothing_folds(result, scene):
    found, _ = result
    _, poses, truth = scene
    points = found.case.fixed.grid.points(torch.float64)
    for label, bone in found.exact.poses.items():
        here = points[:, found.moved_labels.data[0] == label]
        assert float((bone.pose(here) - poses[label](here)).norm(dim=0).mean()) < 0.15
    inner = points[:, 4:-4, 4:-4, 4:-4].flatten(1)
    before, base, after = (
        float((t(inner) - truth(inner)).norm(dim=0).mean()) for t in (Rigid.identity(), found.exact.base, found.stored)
    )
    assert after < base < before
    assert found.metrics["folding_percent"] == 0


def test_a_bone_out_of_view_is_left_out_and_said(result):
    found, _ = result
    assert sorted(found.exact.poses) == [1, 2]
    assert "No voxel of bone 9 lies in the fixed field of view." in found.warnings


def test_the_certificate_and_uncertainty_are_recorded(result):
    found, folder = result
    record = json.loads((folder / "out" / "result.json").read_text())
    assert record["exact"] is True
    certificate = record["certificate"]
    assert max(certificate["residual_mm"].values()) <= 1e-3
    assert certificate["least_determinant"] == record["metrics"]["jacobian_min"] > 0
    assert certificate["folding_percent"] == 0
    assert certificate["inverse_mean_mm"] <= 0.05
    assert len(certificate["narrowest_pair"]) == 2
    assert certificate["narrowest_gap_mm"] == pytest.approx(found.exact.certificate.narrowest_gap_mm)
    bones = json.loads((folder / "out" / "bones.json").read_text())
    assert bones["exact"] is True
    assert [bone["label"] for bone in bones["bones"]] == sorted(found.exact.poses)
    for bone in bones["bones"]:
        assert set(bone["uncertainty"]) == {"rotation_sd_deg", "shift_sd_mm", "determined"}
        assert np.allclose(bone["matrix"], found.exact.poses[bone["label"]].pose.matrix)


def test_apply_makes_the_labels_that_register_wrote(result, tmp_path):
    _, folder = result
    apply_transform(folder / "out", [folder / "labels.nii.gz"], tmp_path, labels=True)
    carried, written = read_labels(tmp_path / "labels.nii.gz"), read_labels(folder / "out" / "moved_labels.nii.gz")
    assert (carried.data != written.data).float().mean() < 1e-4


def test_without_bones_the_field_is_soft(scene):
    case = scene[0]
    quick = PLAN.model_copy(update={"refine": PLAN.guess})
    for options in ({"moving_labels": case.moving_labels, "bones": "none"}, {"bones": "none"}):
        found = register(case.fixed, case.moving, plan=quick, **options)
        assert found.exact is None
        assert found.certificate is None
        assert found.history


# -- in words -------------------------------------------------------------------------------------------------------------
def test_doubts_about_bones_are_said_in_words():
    covariance = np.diag([0.04**2] * 3 + [1.5**2] * 3)
    bones = {
        1: BonePose(1, Rigid.identity(), Rigid.identity(), covariance, False, 0.1),
        2: BonePose(2, Rigid.identity(), Rigid.identity(), 1e-6 * np.eye(6), True, 0.1),
    }
    certificate = Certificate(
        {1: 0.0, 2: 0.0}, {1: 0.2, 2: 0.0}, {1: 9, 2: 0}, {1: 9.0, 2: 0.0}, 0.4, 0.0, 0.0, 0.0, -0.7, (1, 2), 9, 4, "tree"
    )
    exact = ExactBones.__new__(ExactBones)
    bodies = (SimpleNamespace(label=1, given_share=0.02), SimpleNamespace(label=2, given_share=0.12))
    exact.__dict__.update(poses=bones, certificate=certificate, base=SimpleNamespace(bodies=bodies), gaps={})
    said = warnings_of(exact, {1: "L1", 2: "L2"})
    assert len(said) == 4
    assert "bone L1 (2.3 degrees, 1.5 mm): in brackets one standard deviation. Look at it before" in said[0]
    assert "9 mm3 is not rigid: L1." in said[1]
    assert said[2].startswith("12 % of what was found of bone L2 lies too near to other bones")
    assert "L1 and L2 run into each other by 0.7 mm" in said[3]
    sure = replace(certificate, rim_voxels={2: 0}, narrowest_gap_mm=1.0)
    exact.__dict__.update(poses={2: bones[2]}, certificate=sure, base=SimpleNamespace(bodies=bodies[:1]), gaps={})
    assert warnings_of(exact, {}) == []
    wild = BonePose(1, Rigid.identity(), Rigid.identity(), np.diag([9.0] * 3 + [300.0**2] * 3), False, 0.1)
    exact.__dict__.update(poses={1: wild})
    assert "bone 1 (> 10 degrees, > 10 mm)" in warnings_of(exact, {})[0]
    exact.__dict__.update(poses={1: wild, 2: replace(bones[1], label=2)})
    (both,) = warnings_of(exact, {2: "L2"})
    assert "bones 1 (> 10 degrees, > 10 mm), L2 (2.3 degrees, 1.5 mm): " in both


def test_bones_that_follow_their_surroundings_are_named_in_one_line():
    lost = BonePose(3, Rigid.identity(), Rigid.identity(), np.diag([np.inf] * 6), False, np.inf)
    exact = ExactBones.__new__(ExactBones)
    certificate = SimpleNamespace(rim_voxels={}, narrowest_gap_mm=None)
    exact.__dict__.update(poses={3: lost, 4: lost}, certificate=certificate, base=SimpleNamespace(bodies=()), gaps={})
    assert warnings_of(exact, {3: "L3"}) == [
        "The images do not tell the pose of bones L3, 4: they follow their surroundings. Look before you use it."
    ]
    exact.__dict__.update(poses={3: lost})
    assert "pose of bone L3: it follows its surroundings" in warnings_of(exact, {3: "L3"})[0]
