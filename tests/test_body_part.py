"""What of the fixed field of view is worked on where there is much air, and how fields go on beyond it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import oblique_grid
from test_exact_bones import scene  # noqa: F401
from test_exact_path import PLAN, Options, path, true_poses

from osteomorph.body_part import about, around_body_and_bones, body_corners_mm, continued
from osteomorph.case import Case
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.plan import NewtonLevel
from osteomorph.polyrigid import from_labels
from osteomorph.transforms import Displacement, Rigid, Velocity


def in_air(grid: Grid, part: tuple[slice, slice, slice]) -> Image:
    data = torch.zeros(1, *grid.shape)
    data[(0, *part)] = 0.8
    return Image(data, grid)


def test_the_box_holds_the_body_and_the_mask_in_any_orientation(grid):
    grid = Grid((60, 50, 40), grid.affine)
    body = (slice(32, 46), slice(4, 20), slice(18, 36))
    image = in_air(grid, body)
    box = grid.cropped(body).corners_mm
    part = grid.around(body_corners_mm(image), 0.01)
    assert part is not None
    for found, true, h in zip(part, body, grid.spacing_mm, strict=True):
        assert 0 <= true.start - found.start <= np.ceil(14 / h)  # the body's own margin, told at 4 mm
        assert 0 <= found.stop - true.stop <= np.ceil(14 / h)
    seen = about(image, body_corners_mm(image)).grid
    assert seen.voxels < grid.voxels
    assert seen.contains(box).all()
    mask = torch.zeros(1, *grid.shape)
    mask[0, 2, 2, 2] = 1
    wider = grid.around(body_corners_mm(image, Image(mask, grid)), 0.01)
    assert wider is not None
    assert all(side.start <= 2 for side in wider)


def test_a_body_that_fills_the_field_of_view_leaves_it_as_it_is():
    grid = oblique_grid((30, 30, 30))
    image = in_air(grid, (slice(0, 30), slice(1, 30), slice(0, 29)))
    torch.testing.assert_close(body_corners_mm(image), grid.corners_mm)
    assert about(image, body_corners_mm(image)) is image


def test_bones_outside_the_body_are_worked_on_too():
    grid = Grid((90, 80, 80), np.eye(4))
    body = (slice(10, 30), slice(28, 52), slice(28, 52))
    data = torch.zeros(1, *grid.shape, dtype=torch.int16)
    data[0, 64:70, 37:43, 37:43] = 3  # a bone of the other image, where this one shows air
    case = Case(in_air(grid, body), in_air(grid, body), fixed_labels=Labels(data, grid))
    base = from_labels({3: Rigid.identity()}, fixed=Labels(data, grid))
    found = around_body_and_bones(case, base, 5.0)
    assert found.fixed.grid.voxels < grid.voxels
    assert found.fixed.grid.contains(grid.cropped((slice(60, 74), slice(33, 47), slice(33, 47))).corners_mm).all()
    assert found.fixed_labels is not None
    assert found.fixed_labels.grid == found.fixed.grid
    assert found.moving is case.moving


@pytest.mark.parametrize("kind", [Displacement, Velocity])
def test_a_field_goes_on_with_the_values_at_its_border(grid, kind):
    inner = grid.cropped(tuple(slice(d + 1, n - 3 + d) for d, n in enumerate(grid.shape)))
    field = kind(torch.rand(3, *inner.shape), inner)
    on = continued(field, grid)
    assert (type(on), on.grid) == (kind, grid)
    points = grid.points(torch.float64).flatten(1)
    before = Displacement(field.vectors, inner)(points)
    torch.testing.assert_close(Displacement(on.vectors, grid)(points), before, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="own voxels"):
        continued(field, inner.resampled(0.7))


def test_air_around_the_body_changes_neither_bones_nor_tissue(scene):  # noqa: F811
    case, poses, truth = scene
    soft = PLAN.soft.model_copy(update={"levels": (), "newton": (NewtonLevel(spacing_mm=3.0),)})
    plan = PLAN.model_copy(update={"soft": soft})
    wide = case.fixed.grid.padded((4, 60, 0), (40, 3, 16))
    data = torch.zeros(1, *wide.shape)
    data[:, 4:-40, 60:-3, :-16] = case.fixed.data
    assert about(Image(data, wide), body_corners_mm(Image(data, wide))).grid.voxels < 0.6 * wide.voxels
    airy = replace(case, fixed=Image(data, wide))
    given = Options(poses=true_poses(poses))
    near, far = path(scene, given, plan, truth), path((airy,), given, plan, truth)
    points = case.fixed.grid.cropped(tuple(slice(4, n - 4) for n in case.fixed.grid.shape)).points(torch.float64).flatten(1)
    assert float((near.warp(points) - far.warp(points)).norm(dim=0).mean()) < 0.1
    assert far.warp.grid.contains(wide.corners_mm).all()
    ends = far.exact.psi.vectors[:, :, 0]
    torch.testing.assert_close(ends, far.exact.psi.vectors[:, :, 1])  # far from the body the field only goes on
    for label in (1, 2):
        there = case.moving_labels.grid.world((case.moving_labels.data[0] == label).nonzero().T.double())
        here = poses[label].inverse()(there)
        here = here[:, case.fixed.grid.contains(here)]
        assert float((far.warp(here) - poses[label](here)).norm(dim=0).max()) < 1e-3
