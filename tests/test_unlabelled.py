"""Registration without labels: which image bones are taken from, what is said when there are none, and bones found for real."""

import json
import threading
from functools import partial

import numpy as np
import pytest
import torch
from test_exact_bones import MOTIONS, PLAN, scene  # noqa: F401

from osteomorph import found_bones, registration, start_bones, unlabelled
from osteomorph.bone_network import BoneNetwork, save_bone_network
from osteomorph.case import Case
from osteomorph.errors import InputError
from osteomorph.found_bones import FoundBones
from osteomorph.image import Image, Labels
from osteomorph.initialise import Start
from osteomorph.plan import DiscretePlan, PreparePlan, RefinePlan
from osteomorph.prepare import canonical_grid, prepare
from osteomorph.recipes import default, not_optimised, one_shot
from osteomorph.registration import register
from osteomorph.threads import threads
from osteomorph.transforms import Rigid
from osteomorph.unlabelled import bones_found, in_view, looked_ahead, with_found_bones


def as_ct(image: Image) -> Image:
    return Image(2000 * image.data - 500, image.grid, np.dtype(np.int16))


def detector(confidence, labels, asked=None):
    """Finds what it is told to, by the image's grid."""

    def find(image, network=None):
        if asked is not None:
            asked.append(image)
        for known in labels:
            if known is not None and known.grid.isclose(image.grid):
                return FoundBones(known, dict.fromkeys(known.ids(), confidence))
        return FoundBones(Labels(torch.zeros(1, *image.grid.shape, dtype=torch.int16), image.grid))

    return find


@pytest.fixture
def unlabelled_pair(scene):  # noqa: F811
    case, poses, truth = scene
    return Case(case.fixed, as_ct(case.moving)), case.moving_labels, poses, truth


def test_bones_are_taken_from_the_ct_alone(unlabelled_pair, monkeypatch):
    case, labels, *_ = unlabelled_pair
    asked = []
    monkeypatch.setattr(unlabelled, "find_bones", detector(0.9, [labels], asked))
    found = bones_found(case, Rigid.identity())
    assert found.side == "moving"
    assert asked == [case.moving]
    assert with_found_bones(case, found).moving_labels.ids() == labels.ids()
    swapped = bones_found(Case(case.moving, case.fixed), Rigid.identity())
    assert swapped.side == "fixed"
    assert with_found_bones(Case(case.moving, case.fixed), swapped).fixed_labels.ids() == labels.ids()


def test_the_only_ct_is_looked_at_ahead_of_the_start_unless_that_should_say_where(unlabelled_pair, monkeypatch):
    case, labels, *_ = unlabelled_pair
    asked = []
    monkeypatch.setattr(unlabelled, "find_bones", detector(0.9, [labels], asked))
    with threads(2):
        assert looked_ahead(case) is None  # three times the fixed image's field of view
        monkeypatch.setattr(unlabelled, "MUCH_LARGER", 4.0)
        ahead = looked_ahead(case)
        assert ahead is not None
        found = bones_found(case, Rigid.identity(), ahead=ahead)
        assert (found.side, found.confidence) == ("moving", dict.fromkeys(labels.ids(), 0.9))
        assert asked == [case.moving]  # once
        assert looked_ahead(Case(case.fixed, Image(case.moving.data.abs(), case.moving.grid))) is None
        assert looked_ahead(Case(case.moving, case.moving)) is None
    with threads(1):
        assert looked_ahead(case) is None


def test_the_other_image_is_asked_where_the_ct_shows_none(unlabelled_pair, monkeypatch):
    case, *_ = unlabelled_pair
    fixed_labels = Labels(torch.zeros(1, *case.fixed.grid.shape, dtype=torch.int16), case.fixed.grid)
    fixed_labels.data[0, 10:20, 10:20, 10:20] = 4
    monkeypatch.setattr(unlabelled, "find_bones", detector(0.9, [fixed_labels]))
    found = bones_found(case, Rigid.identity())
    assert (found.side, found.confidence) == ("fixed", {4: 0.9})


def test_of_two_images_of_one_modality_that_with_more_bone_is_taken(unlabelled_pair, monkeypatch):
    case, labels, *_ = unlabelled_pair
    few = Labels(torch.zeros(1, *case.fixed.grid.shape, dtype=torch.int16), case.fixed.grid)
    few.data[0, 5, 5, 5] = 1
    monkeypatch.setattr(unlabelled, "find_bones", detector(0.9, [labels, few]))
    both = Case(case.fixed, Image(case.moving.data + 600, case.moving.grid))
    assert bones_found(both, Rigid.identity()).side == "moving"


def test_whether_a_ct_said_where_bones_end_is_told_of_their_own_image(unlabelled_pair):
    case, labels, *_ = unlabelled_pair
    bones = FoundBones(labels, dict.fromkeys(labels.ids(), 0.9))
    case = Case(case.fixed.with_data(case.fixed.data.abs()), case.moving.with_data(case.moving.data - 1000.0))
    assert unlabelled.FoundIn("moving", bones).in_ct(case)
    assert not unlabelled.FoundIn("fixed", bones).in_ct(case)


def test_bones_that_the_other_image_does_not_show_are_left_out(unlabelled_pair):
    case, labels, poses, _ = unlabelled_pair
    found = unlabelled.FoundIn("moving", FoundBones(labels, dict.fromkeys(labels.ids(), 0.9)))
    assert in_view(found, case, poses[9]) == (1, 2, 9)  # 9 is just beyond the border and may come in
    away = np.eye(4)
    away[:3, 3] = (0.0, 0.0, -40.0)
    assert in_view(found, case, Rigid(away)) == (2,)  # 40 mm higher in the fixed image
    same = unlabelled.FoundIn("fixed", FoundBones(labels, dict.fromkeys(labels.ids(), 0.9)))
    assert in_view(same, Case(case.moving, case.fixed), Rigid(away).inverse()) == (2,)


def test_what_is_not_sure_stays_soft_and_is_said(unlabelled_pair):
    case, labels, *_ = unlabelled_pair
    found = unlabelled.FoundIn("moving", FoundBones(labels, {1: 0.9, 2: 0.3, 9: 0.8}))
    assert found.sure.ids() == [1, 9]
    assert found.warnings == ("1 possible bones of the moving image stay soft: confidence below 0.5.",)
    none = unlabelled.FoundIn("moving", FoundBones(labels, {1: 0.1, 2: 0.3, 9: 0.2}))
    assert with_found_bones(case, none) is case
    assert none.warnings == (
        "No bone was found (3 below a confidence of 0.5): nothing is held rigid. Give --moving-labels or --fixed-labels.",
    )


def test_found_bones_are_exact_and_said_to_be_found(unlabelled_pair, monkeypatch, tmp_path):
    case, labels, poses, _ = unlabelled_pair
    monkeypatch.setattr(unlabelled, "find_bones", detector(0.9, [labels]))
    result = register(case.fixed, case.moving, plan=PLAN)
    assert result.exact is not None
    for label in (1, 2):
        bone = next(bone for bone in result.bones if bone.label == label)
        assert bone.residual_mm < 1e-3
        points = labels.grid.world((labels.data[0] == label).nonzero().T.double())
        start = poses[label].inverse()(points)
        assert float((bone.pose(start) - points).norm(dim=0).mean()) < 0.8, MOTIONS[label]
    out = result.write(tmp_path / "out")
    told = json.loads((out / "bones.json").read_text())
    assert (told["exact"], told["from"]) == (True, "network, moving image")
    assert {bone["confidence"] for bone in told["bones"]} == {0.9}
    assert {bone["rim_voxels"] for bone in told["bones"]} == {0}
    given = json.loads((out / "result.json").read_text())["certificate"]["given_away_mm3"]
    assert {str(bone["label"]): bone["given_away_mm3"] for bone in told["bones"]} == given
    assert json.loads((out / "result.json").read_text())["bones_from"] == "network, moving image"
    assert (out / "moved_labels.nii.gz").is_file()


def test_a_large_field_of_view_is_registered_at_longer_voxels_and_says_so(unlabelled_pair, monkeypatch, tmp_path):
    case, labels, *_ = unlabelled_pair
    monkeypatch.setattr(unlabelled, "find_bones", detector(0.9, [labels]))
    voxels = canonical_grid(case.fixed.grid, PreparePlan(spacing_mm=2.2)).voxels
    quick = PLAN.model_copy(update={"soft": PLAN.soft.model_copy(update={"levels": ()})})
    result = register(case.fixed, case.moving, plan=quick.model_copy(update={"prepare": PreparePlan(most_voxels=voxels)}))
    assert result.carried.fixed.grid.voxels <= voxels
    assert result.plan.prepare.spacing_mm == pytest.approx(2.2)
    assert {float(body.bone.grid.spacing_mm.max().round(6)) for body in result.exact.base.bodies} == {2.2}
    assert all(bone.residual_mm < 1e-3 for bone in result.bones)  # at every voxel of the labels as they were found
    (note,) = result.notes
    assert note.startswith("Registered at 2.2 mm")
    assert result.passed == (not result.warnings)
    out = result.write(tmp_path / "out")
    told = json.loads((out / "result.json").read_text())
    assert (told["notes"], told["plan"]["prepare"]["spacing_mm"]) == ([note], 2.2)
    assert "Registered at 2.2 mm" in (out / "report.html").read_text()


def test_a_spacing_of_the_users_own_wins(unlabelled_pair, monkeypatch):
    case, labels, *_ = unlabelled_pair
    monkeypatch.setattr(unlabelled, "find_bones", detector(0.9, [labels]))
    quick = PLAN.model_copy(update={"soft": PLAN.soft.model_copy(update={"levels": ()})})
    result = register(case.fixed, case.moving, plan=quick)
    assert (result.plan.prepare.spacing_mm, result.notes) == (1.5, ())
    assert default().prepare.most_voxels is not None


def test_bones_end_by_their_own_voxels_unless_those_are_much_smaller(unlabelled_pair):
    case, labels, *_ = unlabelled_pair
    case = Case(case.fixed, case.moving, moving_labels=labels)
    found = unlabelled.FoundIn("moving", FoundBones(labels, dict.fromkeys(labels.ids(), 0.9)))
    fine, coarse = (prepare(case, PreparePlan(spacing_mm=h)) for h in (1.5, 2.2))
    assert found.outlined(case, fine) is case
    assert found.outlined(case, coarse) is coarse


def test_found_bones_out_of_view_leave_a_soft_result(unlabelled_pair, monkeypatch):
    case, labels, *_ = unlabelled_pair
    monkeypatch.setattr(unlabelled, "find_bones", detector(0.9, [labels]))
    monkeypatch.setattr(unlabelled, "in_view", lambda *_: ())
    quick = PLAN.model_copy(update={"refine": RefinePlan(), "discrete": DiscretePlan()})
    result = register(case.fixed, case.moving, plan=quick)
    assert (result.exact, result.rigid_labels, result.moved_labels) == (None, (), None)


def test_bones_are_looked_for_while_the_guess_is_made(unlabelled_pair, monkeypatch):
    case, labels, *_ = unlabelled_pair
    looking, asked = threading.Event(), []
    find, guess = detector(0.9, [labels], asked), registration.dense_guess
    quick = PLAN.model_copy(update={"soft": PLAN.soft.model_copy(update={"levels": ()})})

    def watched(image, network=None):
        looking.set()
        return find(image, network)

    def meanwhile(*given):
        assert looking.wait(20)
        return guess(*given)

    monkeypatch.setattr(unlabelled, "find_bones", watched)
    monkeypatch.setattr(registration, "dense_guess", meanwhile)
    result = register(case.fixed, case.moving, plan=quick, threads=2)
    assert result.found_in is not None
    assert len(asked) == 1
    monkeypatch.setattr(registration, "dense_guess", guess)
    again = register(case.fixed, case.moving, plan=quick, threads=1)
    assert again.rigid_labels == result.rigid_labels
    assert len(asked) == 2


def test_labels_that_are_given_win_and_none_is_none(unlabelled_pair, monkeypatch):
    case, labels, *_ = unlabelled_pair
    asked = []
    monkeypatch.setattr(unlabelled, "find_bones", detector(0.9, [labels], asked))
    quick = PLAN.model_copy(update={"soft": PLAN.soft.model_copy(update={"levels": ()})})
    given = register(case.fixed, case.moving, moving_labels=labels, plan=quick)
    assert given.found_in is None
    assert {bone.given_mm3 for bone in given.bones} == {None}
    soft = register(case.fixed, case.moving, plan=quick, bones="none")
    assert (soft.exact, soft.found_in, soft.rigid_labels) == (None, None, ())
    assert asked == []


def test_a_network_of_ones_own_finds_bones_features_and_starts(unlabelled_pair, monkeypatch, tmp_path):
    case, labels, *_ = unlabelled_pair
    own, asked = tmp_path / "own.safetensors", {"bones": set(), "features": set(), "start": set()}
    digest = save_bone_network(own, BoneNetwork((8, 8, 8)), {})
    find, features = detector(0.9, [labels]), found_bones.features_of

    def bones(who, image, network=None):
        asked[who].add(network.widths)
        return find(image)

    def described(image, network=None):
        asked["features"].add(network.widths)
        return features(image, network)

    monkeypatch.setattr(unlabelled, "find_bones", partial(bones, "bones"))
    monkeypatch.setattr(start_bones, "find_bones", partial(bones, "start"))
    monkeypatch.setattr(found_bones, "features_of", described)
    monkeypatch.setattr(unlabelled, "MUCH_LARGER", 4.0)  # so that the CT is looked at ahead of the start
    weak = Start(Rigid.identity(), "images", 0.0, ("A doubt.",))
    monkeypatch.setattr(start_bones, "initialise", lambda *_: weak)
    result = register(case.fixed, case.moving, plan=not_optimised(default()), network=own, threads=2)
    assert asked == {"bones": {(8, 8, 8)}, "features": {(8, 8, 8)}, "start": {(8, 8, 8)}}
    assert result.exact is not None
    result.write(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["inputs"]["network"] == digest
    with pytest.raises(InputError, match="keeps none exactly rigid"):
        register(case.fixed, case.moving, plan="penalty", network=own)


def test_without_a_bone_the_result_is_soft_and_flagged(unlabelled_pair, monkeypatch):
    case, *_ = unlabelled_pair
    monkeypatch.setattr(unlabelled, "find_bones", detector(0.9, []))
    result = register(case.fixed, case.moving, plan=PLAN, refine=False)
    assert result.exact is None
    assert any(text.startswith("No bone was found") for text in result.warnings)
    assert not result.passed
    assert float(result.stored.displacement(case.fixed.grid).norm(dim=0).max()) > 0.5  # the search's field, not the start alone


def test_one_shot_takes_one_step_per_bone_and_none_besides():
    plan = one_shot()
    assert plan == not_optimised(default()).model_copy(update={"name": "one-shot"})
    assert (plan.guess.levels, plan.soft.levels, plan.refine.levels, plan.pose.iterations, plan.pose.search_mm) == (
        (),
        (),
        (),
        1,
        0,
    )
    assert (plan.bones, plan.discrete.levels[0].features, plan.soft.begin) == ("exact", "network", "guess")


def test_the_shipped_network_registers_the_phantom_in_one_shot(pair):
    """Bones found, exactly rigid, far nearer to the truth than the files lie."""
    result = register(pair.case.fixed, pair.case.moving, plan="one-shot")
    assert result.exact is not None
    assert result.found_in is not None
    assert result.found_in.side == "moving"
    assert result.plan.soft.around == "bone"  # a CT said where they end
    assert len(result.found_in.confidence) >= 3
    assert all(bone.residual_mm < 1e-3 for bone in result.bones)
    labels = pair.case.fixed_labels
    points = labels.grid.world((labels.data[0] > 0).nonzero().T.double())
    truth = pair.truth(points)
    before, after = (float((there - truth).norm(dim=0).mean()) for there in (points, result.transform(points)))
    assert after < 0.4 * before, (before, after)
