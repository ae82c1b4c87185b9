"""An anatomy from voxels: bones that touch no other, on any grid; joints, names, tissue; and what is no good as input."""

import json
import os
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from osteomorph import io
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.simulate.anatomy import FAR_MM, TISSUES, Look
from osteomorph.simulate.atlas import atlas_from_ct, atlas_from_labels, voxelised
from osteomorph.simulate.build import draw_build
from osteomorph.simulate.naming import BONE_LABELS, names_for, structure
from osteomorph.simulate.skeleton import REACH_MM, dense_labels
from osteomorph.simulate.tree import surface_points
from osteomorph.simulate.trunk import Trunk


def a_grid(shape, columns):
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = (31.0, -17.0, 5.0)
    return Grid(shape, affine)


GRIDS = {
    "oblique": a_grid((72, 60, 36), Rotation.from_euler("xyz", (12, -25, 40), degrees=True).as_matrix() * (1.5, 2.0, 3.0)),
    "RAS": a_grid((56, 50, 48), np.diag([2.0, 2.2, 2.4])),
    "LAS": a_grid((56, 50, 48), np.diag([-2.0, 2.2, 2.4])),
    "LPS": a_grid((56, 50, 48), np.diag([-2.0, -2.2, 2.4])),
}
NAMES = {3: "femur_left", 4: "hip_left"}
HEAD = torch.tensor([4.0, -3.0, 2.0])
RADIUS = 17.0


def ball_joint(grid, gap=0.0):
    """A ball on a stick in a socket, in a round body in the middle of a grid: CT and labels."""
    points = (grid.points() - torch.as_tensor(grid.centre_mm).float()[:, None, None, None]).flatten(1)
    r = (points - HEAD[:, None]).norm(dim=0)
    x, y, z = points - HEAD[:, None]
    ball = r < RADIUS
    stick = (x.hypot(y) < 7) & (z < 0) & (z > -38)
    cup = (r >= RADIUS + gap) & (r < RADIUS + 12) & (z > 2)
    hu = torch.where(points.norm(dim=0) < 51, -100.0, -1000.0)
    hu[points.norm(dim=0) < 45] = 50.0
    labels = torch.zeros_like(r, dtype=torch.int16)
    labels[cup], labels[ball | stick] = 4, 3
    hu[labels > 0] = 200.0
    hu[(labels == 3) & (r > RADIUS - 3)] = 700.0
    hu[(labels == 4) & ((r < RADIUS + 4) | (r > RADIUS + 9))] = 700.0
    return (
        Image(hu.unflatten(0, grid.shape)[None], grid),
        Labels(labels.unflatten(0, grid.shape)[None], grid, NAMES),
    )


@pytest.fixture(scope="module", params=list(GRIDS), ids=str)
def joint(request):
    ct, labels = ball_joint(GRIDS[request.param])
    return ct, labels, atlas_from_ct(ct, labels)


def least_sum(atlas, one, other):
    """Over the voxel centres in and near one."""
    part = atlas.bones[one]
    points = part.grid.world((part.values[0] < 4).nonzero().T.double())
    return float((atlas.bone(one, points, REACH_MM) + atlas.bone(other, points, REACH_MM)).min())


def test_touching_bones_are_drawn_apart_alike(joint):
    _, _, atlas = joint
    assert atlas.names == {31: "hip_left", 33: "femur_left"}
    assert least_sum(atlas, 31, 33) >= 2.0 - 1e-4
    assert len(atlas.notes) == 1
    assert "hip_left and femur_left touch" in atlas.notes[0]
    assert "2 mm" in atlas.notes[0]


def test_no_note_where_bones_lie_apart():
    ct, labels = ball_joint(GRIDS["RAS"], gap=8.0)
    atlas = atlas_from_ct(ct, labels)
    assert atlas.notes == ()
    points = ct.grid.points(torch.float64).flatten(1)
    for label, name in NAMES.items():
        inside = atlas.bone(BONE_LABELS[name], points, 5.0) < 0
        assert torch.equal(inside.unflatten(0, ct.grid.shape), labels.data[0] == label)


def test_distance_is_negative_in_what_is_left_of_a_label(joint):
    ct, labels, atlas = joint
    points = ct.grid.points(torch.float64).flatten(1)
    hard = torch.isin(atlas.tissue, torch.tensor([TISSUES.index("cortex"), TISSUES.index("marrow")], dtype=torch.uint8))
    for label, name in NAMES.items():
        inside = (atlas.bone(BONE_LABELS[name], points, 5.0) < 0).unflatten(0, ct.grid.shape)
        assert not (inside & (labels.data[0] != label)).any()
        assert float(inside.sum()) > 0.8 * float((labels.data[0] == label).sum())
        assert hard[inside].float().mean() > 0.95


def test_distance_is_far_beyond_reach_and_right_within(joint):
    ct, _, atlas = joint
    head = HEAD.double() + torch.as_tensor(ct.grid.centre_mm)
    below = head + torch.tensor([0.0, -RADIUS - 6.0, -4.0])
    want = float((below - head).norm()) - RADIUS
    points = torch.stack([below, head - torch.tensor([0.0, 90.0, 0.0]), head], 1)
    got = atlas.bone(33, points, 12.0)
    assert got.dtype == torch.float64
    bone, spacing = atlas.bones[33], torch.as_tensor(ct.grid.spacing_mm)
    apart = bone.grid.index(below[:, None]) - bone.inside.nonzero().T
    to_boxes = float(((apart.abs() - 0.5).clamp(min=0) * spacing[:, None]).norm(dim=0).min())
    assert float(got[0]) == pytest.approx(to_boxes, abs=0.2)  # the map is linear between centres
    assert float(got[0]) == pytest.approx(want, abs=0.5 * float(spacing.norm()))  # boxes stand out of the ball
    draw = torch.Generator().manual_seed(1)
    ways = (below - head) / (below - head).norm() + 0.3 * torch.randn(200, 3, generator=draw).double()
    around = head[:, None] + (RADIUS + want) * (ways / ways.norm(dim=1, keepdim=True)).T
    assert float(atlas.bone(33, around, 12.0).mean()) == pytest.approx(want, abs=1.0)
    assert float(got[1]) == FAR_MM
    assert float(got[2]) < -5
    assert float(atlas.bone(33, points, 1.0)[0]) in (FAR_MM, float(got[0]))
    torch.testing.assert_close(atlas.bone(33, points.float(), 12.0), got.float(), atol=1e-3, rtol=0)
    assert atlas.bone(33, points[:, 1:2], 12.0).tolist() == [FAR_MM]
    assert atlas.bone(33, points[:, 1:2].float(), 12.0).tolist() == [FAR_MM]


def test_hip_turns_about_the_middle_of_the_head(joint):
    ct, _, atlas = joint
    root, hanging = atlas.joints
    assert (root.bone, root.parent) == (31 if root.bone == 31 else 33, None)
    assert hanging.parent == root.bone
    assert hanging.turn_deg == (12.0, 8.0, 10.0)
    np.testing.assert_allclose(hanging.centre_mm, HEAD.numpy() + ct.grid.centre_mm, atol=1.0)  # slices of 3 mm


def test_tissue_by_density_and_depth(joint):
    ct, labels, atlas = joint
    points = (ct.grid.points() - torch.as_tensor(ct.grid.centre_mm).float()[:, None, None, None]).norm(dim=0)
    number = {name: n for n, name in enumerate(TISSUES)}
    free = (labels.data[0] == 0) & (points < 40) & (points > 34)
    assert (atlas.tissue[free] == number["muscle"]).float().mean() > 0.8
    assert (atlas.tissue[(points > 46.5) & (points < 47)] == number["fat"]).float().mean() > 0.7
    assert (atlas.tissue[points > 56] == number["air"]).all()
    surface = ct.grid.points().flatten(1)
    skin = atlas.body(surface).unflatten(0, ct.grid.shape)
    assert float((skin - (points - 51))[(points < 60) & (points > 42)].abs().mean()) < 1.5
    stiffness = atlas.stiffness(surface)
    torch.testing.assert_close(stiffness[(atlas.tissue == number["muscle"]).flatten()].mean(), torch.tensor(1.0))
    assert float(stiffness[(atlas.tissue == number["marrow"]).flatten()].mean()) > 10


def test_views_hold_what_is_whole(joint):
    ct, _, atlas = joint
    view = atlas.views["whole"]
    assert next(iter(atlas.views)) == "whole"
    assert view.labelled == (31, 33)
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * 3).T
    box = torch.tensor(view.centre_mm).double()[:, None] + corners * torch.tensor(view.size_mm).double()[:, None]
    assert ct.grid.contains(box).all()


def test_paint_shows_the_palette_and_textures(joint):
    ct, _, atlas = joint
    points = ct.grid.points().flatten(1)
    flat = {name: Look(float(n)) for n, name in enumerate(TISSUES)}
    rough = {name: Look(100.0, 0.0, 2.0) for name in TISSUES}

    def textures(at):
        return torch.stack([at[0] * 0, at[1], at[2] * 0, at[0] * 0])

    painted = atlas.paint(points, [flat, rough], 0.5, textures)
    torch.testing.assert_close(painted[0], atlas.tissue.flatten().float(), atol=2e-3, rtol=0)
    torch.testing.assert_close(painted[1], 100 + 2 * points[1], atol=2e-3, rtol=0)
    wide = atlas.paint(points, [flat], 12.0, textures)[0]
    assert float(wide.diff().abs().max()) < 0.7 * float(painted[0].diff().abs().max())
    some = torch.randperm(points.shape[1])[:500]
    torch.testing.assert_close(atlas.paint(points[:, some], [flat], 12.0, textures)[0], wide[some], atol=1e-3, rtol=0)


# -- a spine -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trunk():
    return Trunk(draw_build(np.random.default_rng(0)))


@pytest.fixture(scope="module")
def drawn(trunk):
    return voxelised(trunk, 2.5, next(iter(trunk.views.values())))


def test_voxelised_is_the_anatomy(trunk, drawn):
    assert drawn.joints == trunk.joints
    assert drawn.scan is None
    view = next(iter(trunk.views.values()))
    assert next(iter(drawn.views.values())) == view
    box = torch.tensor(view.size_mm)[:, None] * (torch.rand(3, 20_000) - 0.5) + torch.tensor(view.centre_mm)[:, None]
    for label in view.labelled:
        want, got = trunk.bone(label, box, 10.0), drawn.bone(label, box, 10.0)
        near = want < 8
        assert near.sum() > 100
        assert float((got - want)[near].abs().mean()) < 0.2
    palette = {name: Look(float(n)) for n, name in enumerate(TISSUES)}
    at = drawn.grid.points().flatten(1)
    painted = trunk.paint(at, [palette], 1e-3, lambda p: p.new_zeros(4, p.shape[1]))[0]
    assert (painted.round() == drawn.tissue.flatten()).float().mean() > 0.999


def test_spine_from_labels_alone_gets_discs_canal_and_a_chain(trunk, drawn):
    points = drawn.grid.points().flatten(1)
    data = torch.zeros(drawn.grid.voxels, dtype=torch.int16)
    for label in trunk.names:
        data[trunk.bone(label, points, 3.0) < 0] = label
    labels = Labels(data.unflatten(0, drawn.grid.shape)[None], drawn.grid, dict(trunk.names))
    atlas = atlas_from_labels(labels)
    parents = {atlas.names[j.bone]: atlas.names.get(j.parent) for j in atlas.joints}
    assert parents["L5"] == "sacrum"
    assert parents["L4"] == "L5"
    assert parents["L3"] == "L4"
    assert parents["sacrum"] is None
    true = {j.bone: np.array(j.centre_mm) for j in trunk.joints}
    for found in atlas.joints:
        if found.bone in (22, 23, 24):
            assert np.linalg.norm(true[found.bone] - found.centre_mm) < 5
    for names, least in ((("annulus", "nucleus", "dry nucleus"), 0.7), (("csf", "cord"), 0.6)):
        numbers = torch.tensor([TISSUES.index(name) for name in names], dtype=torch.uint8)
        found, real = torch.isin(atlas.tissue, numbers), torch.isin(drawn.tissue, numbers)
        middle = (drawn.grid.points()[2] - np.mean([true[22][2], true[24][2]])).abs() < 20
        dice = 2 * (found & real & middle).sum() / (found & middle).sum().add((real & middle).sum())
        assert float(dice) > least, names
    assert "spine" in atlas.views


def test_labels_alone_need_names():
    _, labels = ball_joint(GRIDS["RAS"])
    with pytest.raises(InputError, match=r"bones are told by name.*labels\.json"):
        atlas_from_labels(Labels(labels.data, labels.grid))


# -- names -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("written", "name", "kind"),
    [
        ("vertebrae_L5", "L5", "bone"),
        ("L5", "L5", "bone"),
        ("L5 vertebra", "L5", "bone"),
        ("Vertebra L 5", "L5", "bone"),
        ("vertebrae_L2 (upper edge unreliable)", "L2", "bone"),
        ("vertebrae_Th12", "T12", "bone"),
        ("vertebrae_S1", "sacrum", "bone"),
        ("SACRUM", "sacrum", "bone"),
        ("hip_left", "hip_left", "bone"),
        ("pelvis_left", "hip_left", "bone"),
        ("Right ilium", "hip_right", "bone"),
        ("femur_right", "femur_right", "bone"),
        ("femoral head left", "femur_left", "bone"),
        ("rib_left_7", "rib_left_7", "bone"),
        ("left 7th rib", "rib_left_7", "bone"),
        ("Patella", "patella", "bone"),
        ("humerus_left", "humerus_left", "bone"),
        ("disc_L4_L5", "disc_l4_l5", "annulus"),
        ("iliac_artery_left", "iliac_artery_left", "vessel"),
        ("femoral artery right", "femoral_artery_right", "vessel"),
        ("autochthon_left", "autochthon_left", "muscle"),
        ("iliopsoas_right", "iliopsoas_right", "muscle"),
        ("inferior_vena_cava", "inferior_vena_cava", "vein"),
        ("urinary_bladder", "urinary_bladder", "urine"),
        ("gallbladder", "gallbladder", "fluid"),
        ("spinal_cord", "spinal_cord", "cord"),
        ("lung_lower_lobe_left", "lung_lower_lobe_left", "lung"),
        ("L5 nerve root", "l5_nerve_root", "cord"),
        ("hip implant", "hip_implant", "metal"),
        ("costal_cartilages", "costal_cartilages", "cartilage"),
        ("body", "body", None),
        ("pancreas", "pancreas", "organ"),
    ],
)
def test_names_as_they_are_written(written, name, kind):
    found = structure(written)
    assert found.name == name
    assert (found.kind == "bone") == (kind == "bone")
    assert kind == "bone" or found.tissue == kind


def write_labels(path, ids=(22, 23, 24), table=None):
    """Slabs from above down."""
    data = np.zeros((10, 10, 30), dtype=np.uint8)
    for n, label in enumerate(ids):
        data[2:8, 2:8, 26 - 5 * n : 29 - 5 * n] = label
    image = nib.Nifti1Image(data, np.eye(4))
    if table is not None:
        rows = "".join(f'<Label Key="{k}" Red="1"><![CDATA[{v}]]></Label>' for k, v in table.items())
        content = f'<?xml version="1.0" encoding="UTF-8"?><CaretExtension><LabelTable>{rows}</LabelTable></CaretExtension>'
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, content.encode()))
    nib.save(image, path)
    return path


def test_names_come_from_files_header_or_ids(tmp_path):
    path = write_labels(tmp_path / "seg.nii.gz", table={1: "aorta", 2: "hip_left"})
    assert names_for(path) == {1: "aorta", 2: "hip_left"}
    (tmp_path / "labels.json").write_text(json.dumps({"22": "vertebrae_L3"}))
    assert names_for(path) == {22: "vertebrae_L3"}
    (tmp_path / "seg.json").write_text(json.dumps({"22": "vertebrae_L4"}))
    assert names_for(path) == {22: "vertebrae_L4"}
    (tmp_path / "seg.json").write_text(json.dumps({"Modality": "CT"}))
    assert names_for(path) == {22: "vertebrae_L3"}


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        ((19, 20, 21), {19: "T12", 20: "L1", 21: "L2"}),
        ((23, 24, 26), {23: "L4", 24: "L5", 26: "sacrum"}),
        ((24, 23, 22), {}),  # upside down
        ((1, 2, 3), {}),  # a mere count
        ((20, 22, 23), {}),  # one is missing
        ((20, 21, 40), {}),
    ],
)
def test_ids_name_vertebrae_only_where_they_can_be_nothing_else(tmp_path, ids, names):
    assert names_for(write_labels(tmp_path / "seg.nii", ids)) == names


# -- bad input ---------------------------------------------------------------------------------------------------------
def test_bones_without_names_are_told_by_density(joint):
    ct, labels, _ = joint
    bare = Labels(labels.data.clone(), labels.grid)
    points = (ct.grid.points() - torch.as_tensor(ct.grid.centre_mm).float()[:, None, None, None]).norm(dim=0)
    bare.data[0][(points > 38) & (points < 43) & (bare.data[0] == 0)] = 9  # muscle
    assert dense_labels(ct, bare) == [3, 4]
    assert atlas_from_ct(ct, bare).names == {3: "bone_3", 4: "bone_4"}


def test_no_bone_or_one_alone_is_refused():
    ct, labels = ball_joint(GRIDS["RAS"])
    with pytest.raises(InputError, match=r"holds no label that is a bone \(it holds 3 femur_left, 4 hip_left\); name them"):
        atlas_from_ct(ct, labels, {3: "liver", 4: "spleen"})
    with pytest.raises(InputError, match="one bone alone cannot move against another; give labels of at least two"):
        atlas_from_ct(ct, labels, {3: "femur_left", 4: "spleen"})
    with pytest.raises(InputError, match="holds no label that is a bone"):
        atlas_from_ct(ct, Labels(torch.zeros_like(labels.data), labels.grid))


def test_what_is_no_ct_or_too_small_or_elsewhere_is_refused():
    ct, labels = ball_joint(GRIDS["RAS"])
    with pytest.raises(InputError, match="does not look like CT in Hounsfield units"):
        atlas_from_ct(ct.with_data(ct.data + 1000), labels)
    with pytest.raises(InputError, match="another grid than the CT"):
        atlas_from_ct(ct, Labels(labels.data, GRIDS["LAS"]))
    small = ct.grid.about_centre((20, 50, 48))
    with pytest.raises(InputError, match=r"field of view is too small \(40 x 110 x 115 mm"):
        atlas_from_ct(Image(ct.data[:, 18:38], small), Labels(labels.data[:, 18:38], small, NAMES))


# -- real volumes ------------------------------------------------------------------------------------------------------
DATA = os.environ.get("OSTEOMORPH_TEST_DATA")
real = pytest.mark.skipif(not DATA, reason="OSTEOMORPH_TEST_DATA is not set")


def read(folder, file="labels.nii.gz"):
    where = Path(DATA) / folder
    ct = io.read_image(where / "ct.nii.gz")
    return ct, io.read_labels(where / file, like=ct.grid), names_for(where / file)


def check(atlas, levels):
    for one, other in combinations(atlas.names, 2):
        assert least_sum(atlas, one, other) >= 1.5 - 1e-3, (one, other)
    by_name = {name: label for label, name in atlas.names.items()}
    parents = {atlas.names[j.bone]: atlas.names.get(j.parent) for j in atlas.joints}
    for level in levels:
        joint = next(j for j in atlas.joints if j.bone == by_name[level])
        assert parents[level] is None or len(parents[level]) == 2 or parents[level] == "sacrum"
        assert np.isfinite(joint.centre_mm).all()
    seen = set()
    for joint in atlas.joints:
        assert joint.parent is None or joint.parent in seen
        seen.add(joint.bone)
    assert seen == set(atlas.names)


def hu_of(ct, atlas, *names):
    numbers = torch.tensor([TISSUES.index(name) for name in names], dtype=torch.uint8)
    return ct.data[0][torch.isin(atlas.tissue, numbers)]


@real
@pytest.mark.data
def test_lumbar_crop():
    ct, labels, names = read("ct-lumbar-crop", "seg-vert.nii.gz")
    assert names == {21: "L2", 22: "L3", 23: "L4"}
    atlas = atlas_from_ct(ct, labels, names)
    check(atlas, ("L2", "L3", "L4"))
    assert atlas.notes[0].startswith("L2 and L3 touch: ")
    assert 50 < float(hu_of(ct, atlas, "annulus", "nucleus").median()) < 130
    assert -20 < float(hu_of(ct, atlas, "csf", "cord").median()) < 60
    assert float(hu_of(ct, atlas, "cortex").median()) > 300
    assert float((hu_of(ct, atlas, "fat") + 100).abs().median()) < 80


@real
@pytest.mark.data
def test_abdomen_with_all_its_names():
    ct, labels, names = read("ct-abdomen-pelvis-3mm")
    atlas = atlas_from_ct(ct, labels, names)
    check(atlas, ("L1", "L2", "L3", "L4", "L5"))
    parents = {atlas.names[j.bone]: atlas.names.get(j.parent) for j in atlas.joints}
    assert parents["L5"] == parents["hip_left"] == parents["hip_right"] == "sacrum"
    assert parents["femur_left"] == "hip_left"
    assert parents["rib_right_12"] == "T12"
    number = {name: n for n, name in enumerate(TISSUES)}
    for name, tissue in (("liver", "liver"), ("kidney_left", "kidney"), ("urinary_bladder", "urine"), ("aorta", "vessel")):
        label = next(k for k, v in names.items() if v == name)
        assert (atlas.tissue[labels.data[0] == label] == number[tissue]).float().mean() > 0.9
    bony = {k for k, v in names.items() if structure(v).kind == "bone"}
    dense = set(dense_labels(ct, labels))
    assert dense <= bony
    assert {1, 2, 3, 4, 5, 9, 10, 11, 12} <= dense


@real
@pytest.mark.data
@pytest.mark.slow
def test_lumbopelvic():
    ct, labels, names = read("ct-lumbopelvic")
    atlas = atlas_from_ct(ct, labels, names)
    check(atlas, ("L2", "L3", "L4", "L5"))
    assert atlas.views["whole"].labelled == (21, 22, 23, 24, 26, 31, 32, 33, 34)
    for femur, hip in ((33, 31), (34, 32)):
        centre = next(torch.tensor(j.centre_mm).double()[:, None] for j in atlas.joints if j.bone == femur)
        points = torch.as_tensor(surface_points(atlas.bones[femur], 40_000).T.copy())
        radius = (points[:, atlas.bones[hip](points) < 4] - centre).norm(dim=0)
        assert 19 < float(radius.median()) < 25
        assert float((radius - radius.median()).abs().quantile(0.8)) < 2
