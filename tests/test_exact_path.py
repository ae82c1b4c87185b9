"""The path with exact bones: what is given is not searched for, and a replaced step is the one that is run."""

from dataclasses import replace

import torch
from test_exact_bones import PLAN, scene  # noqa: F401

from osteomorph.clock import Clock
from osteomorph.exact_bones import dense_guess, relative_field
from osteomorph.exact_path import Options, exact_path
from osteomorph.plan import NewtonLevel
from osteomorph.pose import BonePose
from osteomorph.prepare import prepare
from osteomorph.registration import register
from osteomorph.transforms import Displacement, Rigid

START = Rigid.identity()
STILL = PLAN.model_copy(update={"soft": PLAN.soft.model_copy(update={"levels": ()})})
"""Without the soft stage's steps."""


def true_poses(poses: dict[int, Rigid]) -> dict[int, BonePose]:
    return {label: BonePose(label, poses[label], poses[label], torch.eye(6).numpy() * 1e-6, True, 1.0) for label in (1, 2)}


def path(scene, options: Options | None = None, plan=STILL, dense=None):  # noqa: F811
    case = scene[0]
    prepared = prepare(case, plan.prepare)
    guess = dense_guess(case, prepared, START, plan, plan.seed, None) if dense is None else dense
    return exact_path(case, prepared, START, guess, plan, (1, 2, 9), "moving", Clock(None), options)


def test_register_is_this_path(scene):  # noqa: F811
    case = scene[0]
    found = register(case.fixed, case.moving, moving_labels=case.moving_labels, plan=PLAN, bones="moving", threads=1)
    torch.testing.assert_close(found.warp.vectors, path(scene, plan=PLAN).warp.vectors, rtol=0, atol=0)


def test_samples_for_files_are_made_when_asked_for(scene, monkeypatch):  # noqa: F811
    asked = []

    def counted(base, start, grid):
        asked.append(grid.shape)
        return relative_field(base, start, grid)

    monkeypatch.setattr("osteomorph.exact_path.relative_field", counted)
    _, poses, truth = scene
    given = Options(poses=true_poses(poses), between=counted)
    soft = PLAN.soft.model_copy(update={"levels": (), "newton": (NewtonLevel(spacing_mm=4.0),)})
    coarse = PLAN.model_copy(update={"soft": soft})
    one_shot = path(scene, given, coarse, truth)
    whole = one_shot.onto.shape
    assert whole not in asked
    before = len(asked)
    _ = one_shot.warp, one_shot.warp
    assert asked[before:] == [whole]


def test_what_is_given_is_taken(scene, monkeypatch):  # noqa: F811
    _, poses, truth = scene

    def never(*_):
        raise AssertionError("searched for")

    for name in ("first_poses", "refined_poses"):
        monkeypatch.setattr(f"osteomorph.exact_path.{name}", never)
    found = path(scene, Options(poses=true_poses(poses)), dense=truth)
    labels = scene[0].moving_labels
    for label in (1, 2):
        there = labels.grid.world((labels.data[0] == label).nonzero().T.double())
        here = poses[label].inverse()(there)
        here = here[:, found.warp.grid.contains(here)]
        assert float((found.warp(here) - poses[label](here)).norm(dim=0).max()) < 1e-3


def test_a_replaced_motion_between_bones_and_a_margin_are_used(scene):  # noqa: F811
    _, poses, truth = scene
    asked = []

    def doubled(base, start, grid):
        asked.append(base.bodies[0].region)
        field = relative_field(base, start, grid)
        return Displacement(2 * field.vectors, field.grid)

    given = Options(poses=true_poses(poses))
    plain = path(scene, given, dense=truth)
    other = path(scene, replace(given, between=doubled), dense=truth)
    assert asked
    torch.testing.assert_close(other.warp.vectors, 2 * plain.warp.vectors, rtol=0, atol=1e-4)
    thick = path(scene, replace(given, margin_voxels=4.0), dense=truth)
    centre = poses[1].inverse()(torch.tensor([[0.0], [0.0], [14.0]], dtype=torch.float64))
    away = centre + torch.tensor([[22.0], [0.0], [0.0]], dtype=torch.float64)
    here, there = (found.exact.base.bodies[0].region(away) for found in (plain, thick))
    assert 2.5 < float(here - there) < 3.6  # two voxels of 1.53 mm
