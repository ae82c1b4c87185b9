"""A rigid start on bones that are named in both images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from osteomorph import exact_path, start_bones
from osteomorph.errors import StartError
from osteomorph.found_bones import FoundBones
from osteomorph.image import Image, Labels
from osteomorph.initialise import Start
from osteomorph.plan import InitialisePlan, PreparePlan
from osteomorph.prepare import prepare
from osteomorph.recipes import default
from osteomorph.registration import register
from osteomorph.start_bones import LOST, elsewhere, images_or_bones, start_on_bones
from osteomorph.transforms import Rigid


def taken_away(image: Image) -> tuple[Image, np.ndarray]:
    """The image in a frame of its own, and the motion that took it there."""
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec([6, -5, 8], degrees=True).as_matrix()
    motion[:3, 3] = (400.0, -300.0, 250.0)
    return replace(image, grid=image.grid.moved(motion)), motion


def off_mm(rigid: Rigid, motion: np.ndarray, pair) -> float:
    """Median distance of bones' middles under a start from where they are."""
    fixed, moving = pair.case.fixed_labels, pair.case.moving_labels
    out = []
    for label in set(fixed.ids()) & set(moving.ids()):
        here, there = (m.grid.world((m.data[0] == label).nonzero().T.double()).mean(1) for m in (fixed, moving))
        there = torch.as_tensor(motion[:3, :3]) @ there + torch.as_tensor(motion[:3, 3])
        out.append(float((rigid(here[:, None])[:, 0] - there).norm()))
    return float(np.median(out))


@pytest.mark.parametrize("labelled", [False, True], ids=["no labels", "the moving image's"])
def test_images_in_frames_of_their_own_are_registered_by_their_bones(labelled, pair) -> None:
    moving, motion = taken_away(pair.case.moving)
    labels = replace(pair.case.moving_labels, grid=moving.grid) if labelled else None
    result = register(pair.case.fixed, moving, moving_labels=labels, refine=False, threads=1)
    assert (result.found_in is None) == labelled
    assert result.start.method == "bones"
    assert off_mm(result.start.rigid, motion, pair) < 5.0
    assert "do not overlap" in next(note for note in result.notes if note.startswith("The rigid start is on bones"))


@pytest.mark.parametrize("side", [None, "fixed", "moving"], ids=str)
@pytest.mark.parametrize("in_view", [True, False], ids=["elsewhere", "no bone in view"])
def test_a_start_from_which_no_bone_is_found_is_given_up_for_one_on_bones(in_view, side, pair, monkeypatch) -> None:
    wrong = np.eye(4)
    wrong[:3, 3] = (0.0, -70.0, 60.0)
    if not in_view:
        later = exact_path.first_poses
        calls = iter([lambda *_: {}])
        monkeypatch.setattr(exact_path, "first_poses", lambda *given: next(calls, later)(*given))
    labels = {} if side is None else {f"{side}_labels": getattr(pair.case, f"{side}_labels")}
    monkeypatch.setattr(start_bones, "initialise", lambda *_: Start(Rigid(wrong), "images", 0.3))
    result = register(pair.case.fixed, pair.case.moving, **labels, refine=False, threads=1)
    assert result.start.method == "bones"
    assert (result.found_in is None) == (side is not None)
    assert off_mm(result.start.rigid, np.eye(4), pair) < 5.0
    assert LOST in result.notes


def test_another_start_has_to_lie_elsewhere(pair, monkeypatch) -> None:
    at = np.eye(4)
    at[0, 3] = 5.0
    monkeypatch.setattr(start_bones, "start_on_bones", lambda *_: Start(Rigid(at), "bones", 0.3))
    assert elsewhere(pair.case, pair.case, InitialisePlan(), 0, Rigid.identity()) is None
    at[0, 3] = 30.0
    assert elsewhere(pair.case, pair.case, InitialisePlan(), 0, Rigid.identity()).method == "bones"


def told(monkeypatch, *answers: Labels) -> None:
    given = iter(answers)
    monkeypatch.setattr(start_bones, "find_bones", lambda image, network=None: FoundBones(next(given)))


def named(labels: Labels, names: list[str]) -> Labels:
    return replace(labels, names=dict(zip(labels.ids(), names, strict=False)))


def test_names_decide_which_bones_lie_on_each_other(pair, monkeypatch) -> None:
    moving, motion = taken_away(pair.case.moving)
    case = replace(pair.case, moving=moving, moving_labels=None, fixed_labels=None)
    labels = replace(pair.case.moving_labels, grid=moving.grid)
    names = ["L1", "L2", "L3", "L4", "L5"]
    told(monkeypatch, named(pair.case.fixed_labels, names), named(labels, names))
    start = start_on_bones(case, prepare(case, PreparePlan()), InitialisePlan(), 0)
    assert start.method == "bones"
    assert off_mm(start.rigid, motion, pair) < 5.0
    told(monkeypatch, named(pair.case.fixed_labels, names), named(labels, ["C1", "C2", "C3", "C4", "C5"]))
    with pytest.raises(StartError, match="Too few bones are named"):
        start_on_bones(case, prepare(case, PreparePlan()), InitialisePlan(), 0)


def test_bones_come_in_where_images_leave_it_open(pair, monkeypatch) -> None:
    sure, weak = Start(Rigid.identity(), "images", 0.3), Start(Rigid.identity(), "images", 0.1, ("It is weak.",))
    on_bones = Start(Rigid.identity(), "bones", 0.2)
    case, plan = pair.case, default().initialise

    def answers(images: Start | None, bones: Start | None) -> None:
        def given(start: Start | None):
            def answer(*_: object) -> Start:
                if start is None:
                    raise StartError("No start.")
                return start

            return answer

        monkeypatch.setattr(start_bones, "initialise", given(images))
        monkeypatch.setattr(start_bones, "start_on_bones", given(bones))

    answers(sure, on_bones)
    assert images_or_bones(case, case, plan, 0, False) == (sure, ())
    answers(weak, on_bones)
    start, notes = images_or_bones(case, case, plan, 0, False)
    assert start is on_bones
    assert notes[0].endswith("It is weak.")
    answers(weak, None)
    assert images_or_bones(case, case, plan, 0, False) == (weak, ())
    answers(None, on_bones)
    assert images_or_bones(case, case, plan, 0, False)[0] is on_bones
    answers(None, None)
    with pytest.raises(StartError, match="No start"):
        images_or_bones(case, case, plan, 0, False)
