"""The path from files or arrays to a folder, on a small pair with a known answer."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import axis_grid, oblique_grid, sagittal_grid
from scipy.spatial.transform import Rotation
from test_refine import blobs

from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.io import write_image
from osteomorph.plan import InitialisePlan, Level, Plan, PreparePlan, RefinePlan, Weights
from osteomorph.registration import register
from osteomorph.resampling import resample
from osteomorph.transforms import Displacement, Rigid

PLAN = Plan(
    prepare=PreparePlan(spacing_mm=2.0),
    initialise=InitialisePlan(method="none"),
    refine=RefinePlan(
        levels=(Level(control_mm=14, iterations=20, step_mm=0.6, samples=5_000),),
        weights=Weights(mutual_information=1.0, bending=5.0, rigidity=1.0),
    ),
    seed=1,
)

FIXED_GRIDS = {
    "RAS": axis_grid((1, 1, 1), (44, 36, 30), (1.0, 1.2, 1.5), (-20.0, -20.0, -20.0)),
    "LAS": axis_grid((-1, 1, 1), (44, 36, 30), (1.0, 1.2, 1.5), (22.0, -20.0, -20.0)),
    "LPS": axis_grid((-1, -1, 1), (44, 36, 30), (1.0, 1.2, 1.5), (22.0, 22.0, -20.0)),
    "oblique": oblique_grid((60, 40, 14), origin=(-10.0, -38.0, -20.0)),
}


def scene(fixed_grid: Grid):
    """Blobs on a big grid, seen by a fixed and a moving scanner of other orientation, contrast and place."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (2, -1, 3), degrees=True).as_matrix()
    matrix[:3, 3] = (1.5, -1.0, 0.8)
    rigid = Rigid(matrix)
    world = oblique_grid((70, 70, 70), (1.2, 1.2, 1.2), (0, 0, 0), (-42.0, -42.0, -42.0))
    x, y, z = (world.points() + 40) / 12
    warp = Displacement(1.2 * torch.stack([torch.sin(y), torch.cos(z), torch.sin(x)]), world)
    anatomy = blobs(world)
    bone = ((world.points() - torch.tensor([2.0, 1, -3])[:, None, None, None]).norm(dim=0) < 9).to(torch.int16)[None] * 5
    moving_grid = sagittal_grid((46, 44, 40), (1.3, 1.1, 1.4))
    shift = np.eye(4)
    shift[:3, 3] = fixed_grid.centre_mm - moving_grid.centre_mm
    moving_grid = moving_grid.moved(rigid.matrix @ shift)
    back = rigid.inverse()
    moving = resample(anatomy, back, moving_grid)
    labels = resample(Labels(bone, world), back, moving_grid)
    fixed = resample(anatomy, warp, fixed_grid)
    moving = Image((1000 * moving.data).round(), moving_grid, np.dtype(np.int16))
    return Image(1 - 0.6 * fixed.data, fixed_grid), moving, labels, rigid


@pytest.fixture(scope="module", params=list(FIXED_GRIDS))
def result(request, tmp_path_factory):
    torch.set_num_threads(2)
    fixed, moving, labels, _ = scene(FIXED_GRIDS[request.param])
    folder = tmp_path_factory.mktemp("case")
    write_image(folder / "fixed.nii.gz", fixed)
    write_image(folder / "moving.nii.gz", moving)
    write_image(folder / "labels.nii.gz", labels)
    registration = register(
        folder / "fixed.nii.gz",
        folder / "moving.nii.gz",
        moving_labels=folder / "labels.nii.gz",
        bone_labels={5: "ball"},
        plan=PLAN,
    )
    registration.write(folder / "out")
    return registration, folder


def itk_transform(path) -> sitk.Transform:
    if path.suffix == ".h5":
        return sitk.ReadTransform(str(path))
    return sitk.DisplacementFieldTransform(sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkVectorFloat64))


@pytest.mark.parametrize("name", ["transform.h5", "displacement.nii.gz"])
def test_itk_makes_the_same_moved_image(result, name):
    _, folder = result
    out = folder / "out"
    record = json.loads((out / "result.json").read_text())
    moving, fixed = (sitk.ReadImage(str(folder / f"{side}.nii.gz")) for side in ("moving", "fixed"))
    itk = {"bspline": sitk.sitkBSpline, "linear": sitk.sitkLinear}[record["moved"]["interpolation"]]
    expected = sitk.Resample(moving, fixed, itk_transform(out / name), itk, record["moved"]["outside"], sitk.sitkFloat32)
    ours = sitk.ReadImage(str(out / "moved.nii.gz"))
    assert ours.GetPixelID() == moving.GetPixelID()
    difference = np.abs(sitk.GetArrayFromImage(expected) - sitk.GetArrayFromImage(ours))
    extent = np.ptp(sitk.GetArrayFromImage(moving))
    assert difference.max() <= 1e-3 * extent + 0.5  # half a grey value from rounding to integers


def test_itk_makes_the_same_moved_labels(result):
    _, folder = result
    labels, fixed = sitk.ReadImage(str(folder / "labels.nii.gz")), sitk.ReadImage(str(folder / "fixed.nii.gz"))
    expected = sitk.GetArrayFromImage(
        sitk.Resample(labels, fixed, itk_transform(folder / "out" / "transform.h5"), sitk.sitkNearestNeighbor)
    )
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "out" / "moved_labels.nii.gz")))
    assert set(np.unique(ours)) == {0, 5}
    assert (ours != expected).mean() < 1e-4


def test_inverse_after_transform_brings_points_back_in_itk(result):
    registration, folder = result
    forward, backward = (itk_transform(folder / "out" / name) for name in ("transform.h5", "inverse.h5"))
    grid = registration.case.fixed.grid
    points = grid.strided(5).points(torch.float64).flatten(1)
    inside = registration.case.moving.grid.contains(registration.transform(points))
    flip = np.array([-1, -1, 1.0])
    there = [flip * p for p in points[:, inside].T.numpy()]
    error = [np.linalg.norm(np.array(backward.TransformPoint(forward.TransformPoint(p.tolist()))) - p) for p in there]
    assert len(error) > 50
    assert np.mean(error) <= 0.05


def test_the_folder_holds_the_contract(result):
    _, folder = result
    names = {p.name for p in (folder / "out").iterdir()}
    assert names >= {
        "moved.nii.gz",
        "moved_labels.nii.gz",
        "displacement.nii.gz",
        "transform.h5",
        "inverse.h5",
        "bones.json",
        "result.json",
    }
    bone = json.loads((folder / "out" / "bones.json").read_text())["bones"][0]
    assert (bone["label"], bone["name"]) == (5, "ball")
    assert bone["rigidity_residual_mm"] < 1.0
    record = json.loads((folder / "out" / "result.json").read_text())
    assert record["seed"] == 1
    assert set(record["inputs"]) == {"fixed", "moving", "moving_labels"}
    assert Plan.model_validate(record["plan"]).digest() == record["plan_sha256"]
    assert record["metrics"]["mutual_information"] > record["metrics"]["mutual_information_start"]


def test_two_registrations_in_either_order_give_the_same_arrays():
    plan = PLAN.model_copy(
        update={"refine": PLAN.refine.model_copy(update={"levels": (Level(control_mm=14, iterations=4, step_mm=0.6),)})}
    )
    a, b = scene(FIXED_GRIDS["RAS"]), scene(FIXED_GRIDS["oblique"])
    first = [register(s[0], s[1], moving_labels=s[2], plan=plan).moved.data for s in (a, b)]
    second = [register(s[0], s[1], moving_labels=s[2], plan=plan).moved.data for s in (b, a)]
    assert torch.equal(first[0], second[1])
    assert torch.equal(first[1], second[0])


def test_the_roles_may_be_swapped():
    fixed, moving, labels, _ = scene(FIXED_GRIDS["LPS"])
    swapped = register(moving, fixed, fixed_labels=labels, plan=PLAN)
    assert swapped.metrics["mutual_information"] > swapped.metrics["mutual_information_start"]
    assert swapped.moved.grid == moving.grid
    assert [bone.label for bone in swapped.bones] == [5]


def test_no_refine_is_the_rigid_start_alone():
    fixed, moving, labels, rigid = scene(FIXED_GRIDS["RAS"])
    result = register(fixed, moving, moving_labels=labels, plan=PLAN, initial=rigid, refine=False)
    points = fixed.grid.points(torch.float64).flatten(1)
    assert torch.allclose(result.transform(points), rigid(points), atol=1e-6)
    assert result.bones[0].residual_mm < 1e-4
    assert result.bones[0].rotation_deg == pytest.approx(rigid.angle_deg, abs=1e-4)
    assert result.bones[0].rotation_after_start_deg == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bones": "fixed"}, "needs --fixed-labels"),
        ({"bone_labels": [99]}, "99 does not occur"),
        ({"device": "abacus"}, "no device"),
        ({"threads": 0}, "--threads"),
        ({"plan": "nope"}, "no recipe"),
    ],
)
def test_bad_options_say_what_to_do(options, says):
    fixed, moving, labels, _ = scene(FIXED_GRIDS["RAS"])
    with pytest.raises(InputError, match=says):
        register(fixed, moving, **{"moving_labels": labels, "plan": PLAN, **options})


def test_bone_labels_without_labels_are_refused():
    fixed, moving, _, _ = scene(FIXED_GRIDS["RAS"])
    with pytest.raises(InputError, match="needs --fixed-labels or --moving-labels"):
        register(fixed, moving, bone_labels=[5], plan=PLAN)


def test_disjoint_views_are_refused():
    fixed, moving, _, _ = scene(FIXED_GRIDS["RAS"])
    away = np.eye(4)
    away[0, 3] = 4000
    far = Image(moving.data, moving.grid.moved(away))
    for initial in (None, "none"):
        with pytest.raises(InputError, match="overlap"):
            register(fixed, far, plan=PLAN.model_copy(update={"initialise": InitialisePlan()}), initial=initial)
