"""Bones are boxes and balls drawn by formula on each grid."""

import numpy as np
import pytest
import torch
from conftest import oblique_grid
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from osteomorph.certificate import certify, point_jacobian
from osteomorph.distances import distance_maps
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Labels
from osteomorph.joints import Joints, pair_gaps
from osteomorph.lattice import lattice
from osteomorph.polyrigid import Polyrigid, from_labels
from osteomorph.resampling import resample
from osteomorph.rigid_paths import PATH_KINDS, exp, log, rigid_path
from osteomorph.transforms import Rigid


def about(centre_mm, turn_deg, shift_mm=(0.0, 0.0, 0.0)) -> Rigid:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(turn_deg)).as_matrix()
    matrix[:3, 3] = np.asarray(centre_mm) - matrix[:3, :3] @ np.asarray(centre_mm) + shift_mm
    return Rigid(matrix)


def draw(grid: Grid, *inside) -> Labels:
    """Label k + 1 where the k-th function of world points (3, n) is below 0."""
    points = grid.points(torch.float64).flatten(1)
    data = torch.zeros(points.shape[1], dtype=torch.int16)
    for label, function in enumerate(inside, 1):
        data[function(points) < 0] = label
    return Labels(data.unflatten(0, grid.shape)[None], grid)


def box(centre_mm, half_mm, frame=None):
    """Edges along the columns of ``frame``, the world's axes by default."""
    centre, half = (torch.as_tensor(np.array(v, dtype=np.float64))[:, None] for v in (centre_mm, half_mm))
    axes = torch.as_tensor(np.array(np.eye(3) if frame is None else frame).T.copy())
    return lambda points: ((axes @ (points - centre)).abs() - half).amax(0)


def cube_grid(n: int = 48, spacing: float = 1.0, signs=(1, 1, 1)) -> Grid:
    """About the world's origin."""
    affine = np.diag([*(np.array(signs) * spacing), 1.0])
    affine[:3, 3] = -np.array(signs) * spacing * (n - 1) / 2
    return Grid((n, n, n), affine)


LOWER, UPPER = (0.0, 0.0, -11.0), (0.0, 0.0, 11.0)
BLOCKS = (box(LOWER, (9.0, 7.0, 7.0)), box(UPPER, (9.0, 7.0, 7.0)))
BENT = {1: about(LOWER, (4, 0, 3), (1.0, 0.5, 0.0)), 2: about(UPPER, (-6, 5, 12), (-2.0, 3.0, 1.5))}
ROOM = 2.0 * 11 - 14


def bent(grid: Grid | None = None, **options) -> Polyrigid:
    return from_labels(BENT, draw(grid or cube_grid(), *BLOCKS), **options)


def bone_points(transform: Polyrigid, label: int) -> torch.Tensor:
    body = next(b for b in transform.bodies if b.label == label)
    return body.bone.grid.world((body.bone.inside & ~body.rim).nonzero().T.double())


def around(n: int = 3000, size_mm: float = 22.0) -> torch.Tensor:
    return (torch.rand(3, n, dtype=torch.float64) * 2 - 1) * size_mm


# -- what is promised for any bones, poses and grids -------------------------------------------------------------------------
def angles(most: float):
    return st.tuples(*[st.floats(-most, most) for _ in range(3)])


BLOCK = st.fixed_dictionaries(
    {
        "half": st.tuples(*[st.floats(4, 9)] * 3),
        "turn": angles(11),
        "slide": st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.floats(-2, 2)),
    }
)


def scene(spacing, frame_deg, origin_mm, turn_deg, shift_mm, blocks) -> tuple[Labels, dict[int, Rigid]]:
    """Three blocks along a line, on a grid of any orientation, each turned and shifted against the others."""
    frame = Rotation.from_euler("xyz", frame_deg, degrees=True).as_matrix()
    shape = tuple(int(np.ceil(e / s)) for e, s in zip((34, 34, 70), spacing, strict=True))
    affine = np.eye(4)
    affine[:3, :3] = frame * np.array(spacing)
    affine[:3, 3] = np.array(origin_mm) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    grid = Grid(shape, affine)
    whole, poses, shapes = about(grid.centre_mm, turn_deg, shift_mm), {}, []
    for label, (along, block) in enumerate(zip((-23.0, 0.0, 23.0), blocks, strict=True), 1):
        centre = grid.centre_mm + frame @ [0, 0, along]
        shapes.append(box(centre, block["half"], frame))
        poses[label] = whole.after(about(centre, block["turn"], frame @ block["slide"]))
    return draw(grid, *shapes), poses


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    spacing=st.sampled_from([(1.2, 1.2, 1.2), (0.9, 1.4, 2.4), (1.8, 1.3, 1.3)]),
    frame=angles(180),
    origin=angles(300),
    turn=angles(15),
    shift=angles(15),
    blocks=st.tuples(BLOCK, BLOCK, BLOCK),
)
def test_any_bones_stay_rigid_without_a_fold_and_come_back(spacing, frame, origin, turn, shift, blocks):
    labels, poses = scene(spacing, frame, origin, turn, shift, blocks)
    transform = from_labels(poses, labels)
    for body in transform.bodies:
        here = bone_points(transform, body.label)
        assert here.shape[1] > 20
        assert (transform(here) - body.pose(here)).norm(dim=0).max() < 1e-9
        single = (transform(here.float()).double() - body.pose(here.float().double())).norm(dim=0)
        assert single.max() < 1e-4
    found = certify(transform, labels.grid, 2000)
    assert max(found.residual_mm.values()) < 1e-9
    assert found.inverse_max_mm < 0.01
    assert found.least_determinant > 0


@settings(max_examples=8, deadline=None, derandomize=True)
@given(turn=angles(11.5), slide=st.tuples(st.floats(-14, 14), st.floats(-14, 14)))
def test_large_motion_that_keeps_the_gap_open_leaves_no_rim_and_no_fold(turn, slide):
    """Up to 20 degrees and 20 mm of one block against the other."""
    lift = (0.0, 0.0, 4.0)
    poses = {1: Rigid.identity(), 2: about(UPPER, turn, np.array([*slide, 0.0]) + lift)}
    transform = from_labels(poses, draw(cube_grid(), *BLOCKS), path="centroid")
    found = certify(transform, cube_grid(), 2000)
    assume(found.narrowest_gap_mm > 1.5)
    assert sum(found.rim_voxels.values()) == 0
    assert found.least_determinant > 0.005
    assert max(found.residual_mm.values()) < 1e-9


# -- what plain ways of blending do with the same bones ---------------------------------------------------------------------
def start_weights(transform: Polyrigid, points: torch.Tensor) -> torch.Tensor:
    distance = torch.stack([body.region(points).clamp(min=1e-12) for body in transform.bodies])
    share = (distance.amin(0) / distance) ** 1.5
    return share / share.sum(0)


def test_blended_displacements_fold_where_the_flow_does_not():
    poses = {1: Rigid.identity(), 2: about(UPPER, (20, 0, 0), (0.0, 15.0, 2.0))}
    transform = from_labels(poses, draw(cube_grid(), *BLOCKS))

    def blend(points):
        weights = start_weights(transform, points)
        return sum(w * body.pose(points) for w, body in zip(weights, transform.bodies, strict=True))

    points = around(6000) * torch.tensor([[1.0], [1.0], [0.25]])
    assert torch.linalg.det(point_jacobian(blend, points)).min() < -0.3
    assert torch.linalg.det(point_jacobian(transform, points)).min() > 0.2
    assert sum(int(body.rim.sum()) for body in transform.bodies) == 0


def test_stationary_weights_bend_the_bones_that_weights_moving_along_keep():
    turned = {1: Rigid.identity(), 2: about(UPPER, (0, 0, 50), (14.0, 0.0, 0.0))}
    transform = from_labels(turned, draw(cube_grid(), *BLOCKS))
    twists = torch.as_tensor(np.stack([log(transform.background.inverse().matrix @ b.pose.matrix) for b in transform.bodies]))

    def stationary(points, steps=64):
        for _ in range(steps):
            twist = twists.T @ start_weights(transform, points) / steps
            points = points + torch.linalg.cross(twist[:3], points, dim=0) + twist[3:]
        return transform.background(points)

    here = bone_points(transform, 2)
    pose = transform.bodies[1].pose
    assert (stationary(here) - pose(here)).norm(dim=0).max() > 0.1
    assert (transform(here) - pose(here)).norm(dim=0).max() < 1e-9


# -- rigid regions ----------------------------------------------------------------------------------------------------------
def test_a_margin_around_each_bone_moves_with_it():
    transform = bent(margin_mm=1.5)
    edge = torch.tensor([[9.0 + 1.3, 0.0, -11.0], [0.0, 7.0 + 1.3, 11.0]], dtype=torch.float64).T
    expected = torch.cat([BENT[1](edge[:, :1]), BENT[2](edge[:, 1:])], 1)
    assert (transform(edge) - expected).norm(dim=0).max() < 1e-9
    further = edge + torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64).T
    expected = torch.cat([BENT[1](further[:, :1]), BENT[2](further[:, 1:])], 1)
    assert (transform(further) - expected).norm(dim=0).min() > 0.01


def test_rigid_to_the_voxel_on_the_grid_itself():
    """Central differences on the image grid see no strain in any bone voxel."""
    from osteomorph import fields

    grid = cube_grid()
    vectors = bent().displacement(grid, torch.float64)
    determinant = fields.jacobian_determinant(vectors, grid)[draw(grid, *BLOCKS).data[0] > 0]
    assert determinant.std() < 1e-6
    assert (determinant - 1).abs().max() < 1e-6


def test_bones_far_apart_at_first_are_seen_to_come_near():
    maps = distance_maps(draw(cube_grid(64), box((-24, 0, 0), (5, 8, 8)), box((16, 0, 0), (5, 8, 8))))
    path = np.tile(np.eye(4), (6, 2, 1, 1))
    path[:, 1, 0, 3] = (0, -7, -14, -21, -28, -14)  # 30 mm of room at first
    gaps = pair_gaps([maps[1], maps[2]], path)
    assert np.isinf(np.diagonal(gaps, axis1=1, axis2=2)).all()
    assert np.array_equal(gaps[:, 0, 1], gaps[:, 1, 0])
    assert gaps[4, 0, 1] == pytest.approx(2.0, abs=0.1)
    assert gaps[3, 0, 1] == pytest.approx(9.0, abs=0.1)
    assert (gaps[:, 0, 1] <= 30.0 + path[:, 1, 0, 3] + 0.1).all()  # never more than there is


def test_one_bone_makes_everything_rigid():
    pose = about((3.0, 4, 5), (10, 20, -5), (7.0, -3.0, 2.0))
    transform = from_labels({1: pose}, draw(cube_grid(), BLOCKS[0]))
    points = around()
    assert (transform(points) - pose(points)).norm(dim=0).max() < 1e-9


def test_equal_poses_make_everything_rigid():
    pose = about((3.0, 4, 5), (10, 20, -5), (7.0, -3.0, 2.0))
    transform = from_labels({1: pose, 2: pose}, draw(cube_grid(), *BLOCKS))
    points = around()
    assert (transform(points) - pose(points)).norm(dim=0).max() < 1e-9
    assert transform.bodies[0].rim.sum() == 0


def test_equal_poses_of_touching_bones_leave_no_rim():
    pose = about((0.0, 0, 0), (0, 0, 10), (1.0, 2.0, 3.0))
    touching = draw(cube_grid(), box((0, 0, -6), (8.0, 8, 6)), box((0, 0, 6), (8.0, 8, 6)))
    assert [int(body.rim.sum()) for body in from_labels({1: pose, 2: pose}, touching).bodies] == [0, 0]


def test_beyond_its_reach_the_background_is_left():
    background = about((0.0, 0, 0), (0, 5, 0), (2.0, 0.0, 0.0))
    pose = about(LOWER, (4, 0, 10), (5.0, 0.0, 0.0))
    transform = from_labels({1: pose}, draw(cube_grid(), BLOCKS[0]), background=background, reach_mm=10.0)
    far = torch.tensor([[0.0, 0.0, 16.0], [0.0, 21.0, 0.0], [-29.0, 0.0, -11.0]], dtype=torch.float64).T
    assert (transform(far) - background(far)).norm(dim=0).max() < 1e-9
    here = bone_points(transform, 1)
    assert (transform(here) - pose(here)).norm(dim=0).max() < 1e-9
    between = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    assert (transform(between) - background(between)).norm() > 0.3
    assert (transform(between) - pose(between)).norm() > 0.3
    assert torch.linalg.det(point_jacobian(transform, around())).min() > 0.05


# -- frames -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("signs", [(-1, 1, 1), (-1, -1, 1), (1, -1, -1)], ids=str)
def test_array_axes_do_not_matter(signs):
    points = around()
    assert (bent(cube_grid(signs=signs))(points) - bent()(points)).norm(dim=0).max() < 1e-4


def test_an_oblique_grid_gives_the_same_up_to_its_voxels():
    grid = oblique_grid((70, 45, 18), origin=(0.0, 0.0, 0.0))
    centred = Grid(grid.shape, grid.affine - np.pad(grid.centre_mm[:, None], ((0, 1), (3, 0))))
    points = around()
    error = (bent(centred, margin_mm=1.0, gap_mm=1.0)(points) - bent(margin_mm=1.0, gap_mm=1.0)(points)).norm(dim=0)
    assert error.mean() < 0.3  # 3 mm slices, motions of up to 8 mm
    assert error.max() < 2.0


def test_turning_the_world_turns_the_transform():
    grid, turn = cube_grid(), about((10.0, 0, 5), (40, -15, 70), (30.0, -80.0, 200.0))
    labels = draw(grid, *BLOCKS)
    poses = {label: turn.after(pose).after(turn.inverse()) for label, pose in BENT.items()}
    turned = from_labels(poses, Labels(labels.data, grid.moved(turn.matrix)))
    points = around()
    assert (turned(turn(points)) - turn(bent()(points))).norm(dim=0).max() < 1e-3


def test_a_rigid_motion_after_every_pose_follows_the_transform():
    after = about((10.0, 0, 5), (20, -15, 30), (30.0, -8.0, 2.0))
    labels = draw(cube_grid(), *BLOCKS)
    shifted = from_labels({label: after.after(pose) for label, pose in BENT.items()}, labels)
    points = around()
    assert (shifted(points) - after(bent()(points))).norm(dim=0).max() < 1e-3


def test_labels_of_the_moving_image_give_the_same_as_those_of_the_fixed():
    """Where moving labels are the fixed ones carried by whole voxels, both say the same."""
    grid = cube_grid()
    poses = {1: about((0, 0, 0), (0, 0, 0), (2.0, -1.0, 0.0)), 2: about((0, 0, 0), (0, 0, 90), (0.0, 1.0, 3.0))}
    fixed = draw(grid, *BLOCKS)
    moved = [resample(fixed.only([label]), pose.inverse(), grid).data for label, pose in poses.items()]
    moving = Labels(moved[0] + moved[1], grid)
    points = around()
    expected = from_labels(poses, fixed)(points)
    for transform in (from_labels(poses, moving=moving), from_labels(poses, fixed, moving)):
        assert (transform(points) - expected).norm(dim=0).max() < 2e-3


def test_bones_of_both_images_are_each_rigid():
    grid = cube_grid()
    moved = resample(draw(grid, *BLOCKS), BENT[2].inverse(), grid).only([2])
    transform = from_labels(BENT, draw(grid, BLOCKS[0]), moved)
    for label in BENT:
        here = bone_points(transform, label)
        assert here.shape[1] > 1000
        assert (transform(here) - BENT[label](here)).norm(dim=0).max() < 1e-9


# -- joints -----------------------------------------------------------------------------------------------------------------
SOCKET, HEAD = (0.0, 0.0, 4.0), 8.0


def hip(grid: Grid) -> Labels:
    """A ball on a shaft in a cup 2 mm away."""
    centre = torch.tensor(SOCKET, dtype=torch.float64)[:, None]

    def femur(points):
        radius, shaft = (points - centre).norm(dim=0), box((0, 0, -8.0), (3.0, 3, 12))(points)
        return torch.minimum(radius - HEAD, shaft)

    def cup(points):
        radius = (points - centre).norm(dim=0)
        return torch.maximum((radius - HEAD - 5.0).abs() - 3.0, SOCKET[2] + 1.0 - points[2])

    return draw(grid, cup, femur)


def test_a_head_turns_by_30_degrees_in_its_socket():
    grid = cube_grid()
    pelvis = about((0, 0, 40.0), (6, -4, 10), (3.0, 4.0, -2.0))
    poses = {1: pelvis, 2: pelvis.after(about(SOCKET, np.array([0.6, 0.0, 0.8]) * 30))}
    transform = from_labels(poses, hip(grid))
    found = certify(transform, grid, 4000)
    assert transform.path_kind == "tree"
    assert max(found.residual_mm.values()) < 1e-9
    assert found.least_determinant > 0.02
    assert found.inverse_max_mm < 0.01
    assert sum(found.rim_voxels.values()) <= 0.01 * int((hip(grid).data > 0).sum())


def test_the_tree_keeps_a_joint_centred_that_screws_close():
    grid = cube_grid()
    bones = list(distance_maps(hip(grid)).values())
    pelvis = about((0, 30.0, 20.0), (0, 0, -40))
    ends = np.stack([pelvis.matrix, pelvis.after(about(SOCKET, (0, 0, 80))).matrix])
    joints = Joints.of(bones, ends)
    narrowest = {kind: pair_gaps(bones, joints.path(kind, 9)).min() for kind in ("tree", "screw")}
    assert narrowest["tree"] > narrowest["screw"] + 0.5
    assert joints.widest_path() == "tree"


def test_other_ways_to_go_are_looked_at_only_where_a_joint_closes(monkeypatch):
    grid, looked = cube_grid(), []
    bones = list(distance_maps(hip(grid)).values())

    def gaps(bones, path):
        looked.append(path)
        return pair_gaps(bones, path)

    monkeypatch.setattr("osteomorph.joints.pair_gaps", gaps)
    pelvis = about((0, 30.0, 20.0), (0, 0, -4))
    gentle = Joints.of(bones, np.stack([pelvis.matrix, pelvis.matrix]))
    looked.clear()
    assert gentle.widest_path() == PATH_KINDS[0]
    assert len(looked) == 1
    closing = [np.full((3, 2, 2), gap) for gap in (4.0, 3.0, 6.0)]  # at either end
    for gap, middle in zip(closing, (3.0, 2.9, 5.5), strict=True):
        gap[1] = middle
    given = iter(closing)
    monkeypatch.setattr("osteomorph.joints.pair_gaps", lambda *_: next(given))
    assert gentle.widest_path() == PATH_KINDS[1]  # closes by .1 mm, the others by 1 and .5
    assert next(given, None) is None


@pytest.mark.parametrize(("space", "margin"), [(1, 0.2), (2, 0.6), (3, 1.0)])
def test_bones_with_a_space_between_share_most_of_it(space, margin):
    """Poses or labels that are off by as much leave the true bones rigid."""
    grid = cube_grid()
    near = draw(grid, box((0, 0, -7), (8.0, 8, 7)), box((0, 0, 7 + space), (8.0, 8, 7)))
    poses = {1: Rigid.identity(), 2: about((0.0, 0, 0), (0, 0, 4), (0.6, 0.0, 0.2))}
    transform = from_labels(poses, near)
    for body, outwards in zip(transform.bodies, (1.0, -1.0), strict=True):
        surface = body.bone.grid.world((body.bone.inside & (body.bone.values[0] > -0.6)).nonzero().T.double())
        off = surface + torch.tensor([[0.0], [0.0], [(0.5 + margin) * outwards]])
        assert (transform(off) - body.pose(off)).norm(dim=0).max() < 1e-9
    found = certify(transform, grid, 4000)
    assert sum(found.rim_voxels.values()) == 0
    assert found.least_determinant > 0.1
    assert found.inverse_max_mm < 0.01


def test_touching_bones_lose_a_rim_that_is_reported_and_no_more():
    grid = cube_grid()
    touching = draw(grid, box((0, 0, -7), (8.0, 8, 7)), box((0, 0, 7), (8.0, 8, 7)))
    poses = {1: Rigid.identity(), 2: about((0.0, 0, 0), (0, 0, 10), (1.5, 0.0, 0.0))}
    transform = from_labels(poses, touching)
    found = certify(transform, grid, 4000)
    assert found.narrowest_gap_mm == pytest.approx(0.0, abs=0.2)
    assert found.narrowest_pair == (1, 2)
    face = int((touching.data == 1)[..., 23].sum())
    for label in (1, 2):
        assert 0.8 * face <= found.rim_voxels[label] <= 1.2 * face
        assert found.rim_mm3[label] == found.rim_voxels[label]
        assert found.residual_mm[label] < 1e-9
        assert 0.01 < found.rim_residual_mm[label] < 2.0
    assert found.least_determinant > 0.005


def test_bones_that_would_run_into_each_other_lose_what_overlaps():
    grid = cube_grid()
    poses = {1: Rigid.identity(), 2: about(UPPER, (0, 0, 0), (0.0, 0.0, -(ROOM + 2.0)))}
    transform = from_labels(poses, draw(grid, *BLOCKS))
    found = certify(transform, grid, 4000)
    assert found.narrowest_gap_mm < -1.0
    assert min(found.rim_voxels.values()) > 0
    assert max(found.residual_mm.values()) < 1e-9
    assert found.least_determinant > 0
    assert found.inverse_max_mm < 0.01


def test_regions_keep_their_distance_all_along_the_path():
    transform = bent(gap_mm=2.0, margin_mm=5.0)
    for matrices in transform.path:
        lower, upper = (b.region.moved(m) for b, m in zip(transform.bodies, matrices, strict=True))
        points = around(20000)
        assert not ((lower(points) <= 0) & (upper(points) <= 0)).any()
        assert (lower(points).clamp(min=0) + upper(points).clamp(min=0)).min() > 1.9


# -- inverse, speed, paths --------------------------------------------------------------------------------------------------
def test_few_steps_suffice_and_the_inverse_undoes_each_of_them():
    points = around()
    fine = bent(steps=32)(points)
    for steps in (4, 8):
        transform = bent(steps=steps)
        assert (transform.inverse()(transform(points)) - points).norm(dim=0).max() < 1e-3
        assert (transform(points) - fine).norm(dim=0).max() < 0.6 / steps
    assert transform.inverse().inverse()(points).equal(transform(points))


def test_lattice_agrees_with_the_points_and_is_exact_in_bone(grid):
    fine = grid.resampled(1.0)
    size = fine.size_mm
    centres = [fine.centre_mm + fine.direction @ (size * [0, 0, z]) for z in (-0.25, 0.25)]
    shapes = [box(centre, size / 7, fine.direction) for centre in centres]
    labels = draw(fine, *shapes)
    transform = from_labels({1: about(centres[0], (3, 4, 5)), 2: about(centres[1], (0, 0, -6), (1.0, 1.0, 0.0))}, labels)
    field = lattice(transform, fine)
    assert field.grid == fine
    error = (field.vectors - transform.displacement(fine)).norm(dim=0)
    assert error.max() < 0.1
    assert error.mean() < 0.02
    assert error[labels.data[0] > 0].max() < 1e-4


def test_certificate_sees_a_bone_that_is_not_where_its_pose_says():
    from dataclasses import replace

    transform = bent()
    first = transform.bodies[0]
    region = replace(first.region, values=first.region.values + 20.0)
    broken = replace(transform, bodies=(replace(first, region=region), transform.bodies[1]))
    object.__setattr__(broken.bodies[0], "rim", torch.zeros_like(first.rim))
    assert certify(broken, cube_grid(), 400).residual_mm[1] > 0.01
    assert certify(transform, cube_grid(), 400).as_json()["steps"] == transform.steps


def test_logarithm_undoes_the_exponential():
    twists = np.random.default_rng(0).normal(size=(40, 6)) * np.array([0.7, 0.7, 0.7, 50, 50, 50])
    twists[:5, :3] *= 1e-5
    assert np.allclose(log(exp(twists)), twists, atol=1e-8)
    from scipy.linalg import expm

    hat = np.zeros((4, 4))
    (hat[2, 1], hat[0, 2], hat[1, 0]), hat[:3, 3] = twists[9, :3], twists[9, 3:]
    hat[:3, :3] -= hat[:3, :3].T
    assert np.allclose(exp(twists[9]), expm(hat), atol=1e-9)


@pytest.mark.parametrize("kind", ["tree", "screw", "centroid"])
def test_paths_start_at_rest_end_at_the_poses_and_are_rigid_between(kind):
    ends = np.stack([BENT[1].matrix, BENT[2].matrix, about((0, 5.0, 0), (70, 20, 0), (20.0, 0, 0)).matrix])
    gaps = np.array([[np.inf, 3, 9], [3, np.inf, 2], [9, 2, np.inf]])
    centroids = np.array([LOWER, UPPER, (0, 0, 30.0)])
    path = rigid_path(kind, ends, np.linspace(0, 1, 9), centroids, gaps)
    assert np.allclose(path[0], np.eye(4))
    assert np.allclose(path[-1], ends)
    rotations = path[..., :3, :3]
    assert np.allclose(rotations @ np.swapaxes(rotations, -1, -2), np.eye(3), atol=1e-12)
    centres = np.einsum("mkab,kb->mka", rotations, centroids) + path[..., :3, 3]
    if kind == "centroid":
        assert np.allclose(centres[4], (centres[0] + centres[-1]) / 2)
    if kind == "tree":
        relative = log(np.linalg.inv(path[:, 1]) @ path[:, 2])
        assert np.allclose(relative[4] * 2, relative[-1], atol=1e-9)


def test_what_cannot_be_built_is_refused():
    labels = draw(cube_grid(), *BLOCKS)
    with pytest.raises(InputError, match="bone 3"):
        from_labels({**BENT, 3: Rigid.identity()}, labels)
    with pytest.raises(InputError, match="at least one pose"):
        from_labels({}, labels)
    with pytest.raises(InputError, match="170 degrees"):
        from_labels({1: Rigid.identity(), 2: about(UPPER, (0, 0, 178))}, labels, background=Rigid.identity())
    with pytest.raises(ValueError, match="gap"):
        from_labels(BENT, labels, gap_mm=0.0)


# -- chains and contacts, whatever the motion --------------------------------------------------------------------------------
@settings(max_examples=4, deadline=None, derandomize=True)
@given(turns=st.tuples(*[st.tuples(st.floats(-20, 20), st.floats(-20, 20), st.floats(-20, 20))] * 2), whole=angles(20))
def test_a_chain_that_turns_by_up_to_20_degrees_a_joint_is_rigid_and_comes_back(turns, whole):
    """Each bone takes along those that hang on it, as hip, thigh and shank; the last moves by more than 20 mm."""
    grid = cube_grid(56)
    joints = ((0.0, 0.0, 12.0), (0.0, 0.0, -10.0))
    labels = draw(
        grid, box((0, 0, 20.0), (9.0, 7.0, 5.0)), box((0, 0, 1.0), (5.0, 5.0, 8.0)), box((0, 0, -19.0), (5.0, 5.0, 6.0))
    )
    pelvis = about((0, 0, 40.0), whole, (3.0, -4.0, 2.0))
    limited = [np.array(turn) * min(1.0, 20.0 / max(np.linalg.norm(turn), 1e-6)) for turn in turns]
    thigh = pelvis.after(about(joints[0], limited[0]))
    poses = {1: pelvis, 2: thigh, 3: thigh.after(about(joints[1], limited[1]))}
    transform = from_labels(poses, labels)
    found = certify(transform, grid, 2000)
    assert max(found.residual_mm.values()) <= 1e-3
    assert found.inverse_max_mm < 0.05
    assert found.least_determinant > 0
    for label, pose in poses.items():
        here = bone_points(transform, label)
        assert here.shape[1] > 100
        assert (transform(here) - pose(here)).norm(dim=0).max() <= 1e-3


@settings(max_examples=4, deadline=None, derandomize=True)
@given(turn=angles(11), slide=st.tuples(st.floats(-8, 8), st.floats(-8, 8), st.floats(-3, 1)))
def test_touching_bones_report_a_rim_and_never_fold(turn, slide):
    """Whatever one of two bones that touch does, also into the other: outside of the rim both are rigid, nothing folds."""
    assume(np.linalg.norm(turn) > 2 or np.linalg.norm(slide) > 1)
    grid = cube_grid()
    touching = draw(grid, box((0, 0, -7), (8.0, 8, 7)), box((0, 0, 7), (8.0, 8, 7)))
    transform = from_labels({1: Rigid.identity(), 2: about((0.0, 0, 7), turn, slide)}, touching)
    found = certify(transform, grid, 2000)
    assert min(found.rim_voxels.values()) > 0
    assert max(found.residual_mm.values()) <= 1e-3
    assert found.least_determinant > 0
    assert found.inverse_mean_mm <= 0.05
    assert sum(found.rim_voxels.values()) < 0.5 * int((touching.data > 0).sum())
