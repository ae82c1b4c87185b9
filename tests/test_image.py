"""Labels: which ids occur, and maps of some of them."""

import numpy as np
import pytest
import torch

from osteomorph.geometry import Grid
from osteomorph.image import Labels

GRID = Grid((4, 5, 6), np.eye(4))


def labels(ids, dtype=torch.int16):
    data = torch.zeros(1, *GRID.shape, dtype=dtype)
    data.view(-1)[: 2 * len(ids)] = torch.tensor([i for i in ids for _ in "ab"], dtype=dtype)
    return Labels(data, GRID)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_ids_are_those_that_occur_without_background(dtype):
    assert labels([7, 3, 120], dtype).ids() == [3, 7, 120]
    assert labels([], dtype).ids() == []


def test_large_and_negative_ids_are_told_too():
    assert labels([5, 2**30], torch.int32).ids() == [5, 2**30]
    assert labels([-4, 5]).ids() == [-4, 5]


def test_a_map_of_some_ids_drops_the_others_and_one_of_all_is_the_same():
    found = labels([1, 2, 9])
    assert found.only([2, 9, 40]).ids() == [2, 9]
    assert found.ids() == [1, 2, 9]
    assert found.only([1, 2, 9, 40]) is found


def test_centres_of_a_label_are_those_of_its_voxels_in_the_order_of_the_array(grid):
    data = torch.zeros(1, *grid.shape, dtype=torch.int16)
    data[0, 1:4, 2:5, 1:3] = 3
    data[0, 2, 3, 1] = 8
    found = Labels(data, grid)
    for label in (3, 8):
        assert torch.allclose(found.centres_mm(label), grid.world((data[0] == label).nonzero().T.double()), atol=1e-9)
