"""Bones found by the shipped network: on a simulated pair, in any orientation, and none where there are none."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from osteomorph import found_bones
from osteomorph.bone_instances import instances
from osteomorph.bone_network import BoneNetwork
from osteomorph.found_bones import features_of, find_bones, in_blocks
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image


def reoriented(image: Image, order: tuple[int, int, int], flips: tuple[int, ...]) -> Image:
    """The same voxels at the same places with other array axes."""
    data = image.data.permute(0, *(1 + a for a in order)).flip([1 + d for d in flips]).contiguous()
    affine = image.grid.affine[:, [*order, 3]].copy()
    for d in flips:
        affine[:3, 3] += affine[:3, d] * (data.shape[1 + d] - 1)
        affine[:3, d] *= -1
    return Image(data, Grid(tuple(data.shape[1:]), affine), image.stored)


ORIENTATIONS = {"LAS": ((0, 1, 2), (0,)), "LPS": ((0, 1, 2), (0, 1)), "sagittal": ((2, 1, 0), (0, 1, 2))}


@pytest.fixture(scope="module")
def found(pair):
    return {name: find_bones(image) for name, image in (("ct", pair.case.moving), ("mr", pair.case.fixed))}


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_vertebrae_of_a_simulated_pair_are_found_one_by_one(pair, found, modality) -> None:
    truth = pair.case.moving_labels if modality == "ct" else pair.case.fixed_labels
    said = found[modality].labels.data
    matched = []
    for label in truth.ids():
        here = truth.data == label
        counts = torch.bincount(said[here].flatten().long())
        counts[0] = 0
        best = int(counts.argmax())
        dice = 2 * int((here & (said == best)).sum()) / int(here.sum() + (said == best).sum())
        assert dice > 0.75, (label, dice)
        assert found[modality].confidence[best] > 0.5
        matched.append(best)
    assert len(set(matched)) == len(matched)  # none merged
    heights = [float(np.mean(np.nonzero(truth.data[0].numpy() == k)[truth.grid.axis("IS")])) for k in truth.ids()]
    assert len(heights) == len(matched)


@pytest.mark.parametrize("name", list(ORIENTATIONS))
def test_array_axes_do_not_matter(pair, found, name) -> None:
    order, flips = ORIENTATIONS[name]
    turned = find_bones(reoriented(pair.case.moving, order, flips))
    again = reoriented(Image(found["ct"].labels.data.float(), pair.case.moving.grid), order, flips)
    same = (again.data == turned.labels.data).float().mean()
    assert same > 0.9995
    assert turned.confidence.keys() == found["ct"].confidence.keys()
    assert dict(turned.labels.names) == dict(found["ct"].labels.names)  # left is left however voxels are stored
    assert {"L5", "sacrum"} < set(turned.labels.names.values())


def test_an_oblique_world_is_no_other_image(pair, found) -> None:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (9, -12, 14), degrees=True).as_matrix()
    turn[:3, 3] = (12.0, -7.0, 30.0)
    moved = find_bones(Image(pair.case.moving.data, pair.case.moving.grid.moved(turn)))
    assert torch.equal(moved.labels.data, found["ct"].labels.data)


def test_ids_run_from_the_head_down(found) -> None:
    for result in found.values():
        data, grid = result.labels.data[0], result.labels.grid
        heights = [float(grid.points()[2][data == k].mean()) for k in result.confidence]
        assert heights == sorted(heights, reverse=True) or max(np.diff(heights)) < 4.0


@pytest.mark.parametrize("kind", ["noise", "air", "nothing"])
def test_rubbish_holds_no_bone(kind) -> None:
    grid = Grid((40, 36, 44), np.diag([2.0, 2.0, 2.0, 1.0]))
    data = {
        "noise": torch.rand(1, *grid.shape) * 900,
        "air": torch.full((1, *grid.shape), -1000.0),
        "nothing": torch.zeros(1, *grid.shape),
    }
    result = find_bones(Image(data[kind], grid))
    assert all(value < 0.5 for value in result.confidence.values())


def test_features_lie_where_the_image_does(pair) -> None:
    upright, turned = features_of(pair.case.moving), features_of(reoriented(pair.case.moving, *ORIENTATIONS["LPS"]))
    points = torch.as_tensor(pair.case.moving.grid.centre_mm[:, None]).float() + 20 * torch.randn(3, 50)
    assert torch.allclose(sample(upright.data, upright.grid, points), sample(turned.data, turned.grid, points), atol=0.02)
    assert np.allclose(upright.grid.spacing_mm, 4.0)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_blocks_answer_as_the_whole(monkeypatch, stride) -> None:
    torch.manual_seed(0)
    network, images = BoneNetwork((4, 8, 8)).eval(), torch.rand(1, 1, 101, 60, 76)
    ct = torch.tensor([True])
    ask = {1: lambda part: network.bones(part, ct), 2: network.features, 4: lambda part: network.bones_in_context(part, ct)[1]}

    def answer() -> torch.Tensor:
        return in_blocks(lambda part: (ask[stride](part),), images, (stride,))[0]

    whole = answer()
    monkeypatch.setattr(found_bones, "TILE_VOXELS", 300_000)
    assert len(found_bones._blocks(images.shape[2:])) > 1
    parts = answer()
    assert parts.shape == whole.shape
    # bfloat16 rounds alike; the features see a little farther than blocks overlap
    assert (parts - whole).abs().median() < 1e-4
    assert torch.quantile((parts - whole).abs(), 0.999) < 0.05


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_confidence_is_calibrated_in_an_mr_and_left_alone_in_a_ct(pair, monkeypatch, modality) -> None:
    given = {}

    def noted(*parts):
        numbers, sure = instances(*parts)
        given.update(sure)
        return numbers, sure

    monkeypatch.setattr(found_bones, "instances", noted)
    said = sorted(find_bones(pair.case.moving if modality == "ct" else pair.case.fixed).confidence.values())
    raw = np.array(sorted(given.values()))
    assert len(said) == len(raw) > 0
    assert np.allclose(said, raw if modality == "ct" else 1 / (1 + np.exp((0.85 - raw) / 0.02)))
