"""Pairs made on the fly are pairs: rigid in bone, without folds, repeatable, and read by torch's loader."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from osteomorph.fields import jacobian_determinant
from osteomorph.geometry import sample
from osteomorph.simulate.anatomy import View
from osteomorph.simulate.atlas import voxelised
from osteomorph.simulate.build import Build
from osteomorph.simulate.dataset import SimulatedPairs
from osteomorph.simulate.motion import DIFFICULTIES
from osteomorph.simulate.trunk import Trunk
from osteomorph.transforms import Rigid

SHAPE = (40, 44, 48)


@pytest.fixture(scope="module")
def atlas():
    patient = Trunk(Build())
    view = patient.views["lumbar"]
    return voxelised(patient, 2.5, View(view.centre_mm, (80.0, 100.0, 110.0), view.labelled))


@pytest.fixture(scope="module")
def pairs(atlas):
    return SimulatedPairs([atlas], SHAPE, 2.2, seed=3)


@pytest.fixture(scope="module")
def samples(pairs):
    return [pairs.pair(n) for n in range(4)]


def test_bones_are_rigid_and_agree_with_their_poses(samples):
    for one in samples:
        points = one.grid.points(torch.float64).flatten(1)
        there = points + one.displacement.flatten(1)
        for label, pose in one.poses.items():
            inside = (one.fixed_labels == label).flatten()
            if inside.any():
                assert float((there[:, inside] - Rigid(pose)(points[:, inside])).norm(dim=0).max()) < 1e-3


def test_no_pair_folds(samples):
    for one in samples:
        assert float(jacobian_determinant(one.displacement, one.grid).min()) > 0


def test_bones_move_and_soft_tissue_with_them(samples):
    for one in samples:
        moved = one.displacement.norm(dim=0)
        assert float(moved.max()) > 1
        assert len(one.poses) >= 2


def test_moving_labels_pulled_back_are_the_fixed_labels(samples):
    one = samples[0]
    points = one.grid.points().flatten(1) + one.displacement.flatten(1)
    pulled = sample(one.moving_labels, one.grid, points, "nearest")[0].reshape(SHAPE)
    inside = one.grid.contains(points).reshape(SHAPE)
    both = inside & ((pulled > 0) | (one.fixed_labels[0] > 0))
    assert float((pulled == one.fixed_labels[0])[both].float().mean()) > 0.75  # two roundings to 2.2 mm voxels


def test_images_are_scaled_and_of_two_contrasts(samples):
    for one in samples:
        for image in (one.fixed, one.moving):
            assert image.shape == (1, *SHAPE)
            assert float(image.min()) >= 0
            assert float(image.max()) <= 1
            assert float(image.std()) > 0.05
        assert one.body.float().mean() > 0.3
    assert not torch.allclose(samples[0].fixed, samples[1].fixed)


def test_same_seed_same_pair_other_seed_or_worker_another(atlas, pairs, samples):
    again = SimulatedPairs([atlas], SHAPE, 2.2, seed=3).pair(1)
    for part in ("fixed", "moving", "fixed_labels", "displacement"):
        assert torch.equal(getattr(again, part), getattr(samples[1], part))
    assert not torch.equal(pairs.pair(1, worker=1).displacement, samples[1].displacement)
    assert not torch.equal(SimulatedPairs([atlas], SHAPE, 2.2, seed=4).pair(1).displacement, samples[1].displacement)


def test_torch_loads_it(pairs, samples):
    loader = iter(DataLoader(pairs, batch_size=None))
    for expected in samples[:2]:
        assert torch.equal(next(loader).fixed, expected.fixed)


def test_labels_and_contrasts_can_be_chosen(atlas):
    one = SimulatedPairs([atlas], SHAPE, 2.2, motions=[DIFFICULTIES["thesis"]], contrasts=["t2"], labelled=[23]).pair(0)
    assert set(torch.unique(one.fixed_labels).tolist()) <= {0, 23}
    offset = Rigid(next(iter(one.poses.values())))
    assert offset.angle_deg < 12
    assert np.isfinite(one.displacement.numpy()).all()


def test_without_an_atlas_there_is_no_dataset():
    with pytest.raises(ValueError, match="at least one"):
        SimulatedPairs([], SHAPE)
