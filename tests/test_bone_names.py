"""Kinds of found bones, and the names that follow from them."""

import numpy as np
import pytest
import torch

from osteomorph.bone_kinds import Kind, described, kinds_of
from osteomorph.bone_names import bone_names
from osteomorph.bone_network import KINDS, MEASURES, BoneNetwork
from osteomorph.train_kinds import fitted, kind_of

VERTEBRA, SACRUM, HIP, RIB = Kind("vertebra", 0.99), Kind("sacrum", 0.99), Kind("hip", 0.99), Kind("rib", 0.99)


def trunk(vertebrae: int = 7) -> tuple[np.ndarray, dict[int, Kind]]:
    """On a lattice of 2 mm: bone 1 the sacrum, 2 and 3 the left and right hip, from 4 on vertebrae upwards, 6 mm apart."""
    numbers = np.zeros((80, 40, 30 + 15 * vertebrae), np.int32)
    numbers[34:46, 15:25, 2:27] = 1
    numbers[10:30, 15:25, 2:30] = 2
    numbers[50:70, 15:25, 2:30] = 3
    for n in range(vertebrae):
        numbers[34:46, 15:25, 30 + 15 * n : 42 + 15 * n] = 4 + n
    return numbers, {1: SACRUM, 2: HIP, 3: HIP, **{4 + n: VERTEBRA for n in range(vertebrae)}}


def test_levels_are_counted_from_the_sacrum_and_sides_told_by_it() -> None:
    names = bone_names(*trunk(), 2.0)
    levels = ["L5", "L4", "L3", "L2", "L1", "T12", "T11"]
    assert names == {1: "sacrum", 2: "hip_left", 3: "hip_right", **dict(enumerate(levels, 4))}


def test_without_a_sure_sacrum_there_are_no_levels() -> None:
    numbers, kinds = trunk()
    names = bone_names(numbers, {**kinds, 1: Kind("sacrum", 0.5)}, 2.0)
    assert 1 not in names
    assert names[4] == "vertebra 4"
    assert (names[2], names[3]) == ("hip_left", "hip_right")  # of each other
    names = bone_names(numbers, {**kinds, 2: SACRUM}, 2.0)  # two
    assert names[4] == "vertebra 4"
    names = bone_names(numbers, {**kinds, 2: Kind("sacrum", 0.8)}, 2.0)  # a sure one and a likely one
    assert (names[1], names[4]) == ("sacrum", "L5")


def test_a_piece_that_came_off_a_hip_does_not_hide_its_side() -> None:
    numbers, kinds = trunk()
    numbers[52:58, 15:25, 32:36] = 20
    names = bone_names(numbers, {**kinds, 20: HIP}, 2.0)
    assert (names[3], names[20]) == ("hip_right", "hip 20")
    numbers[52:68, 15:25, 32:60] = 20
    names = bone_names(numbers, {**kinds, 20: HIP}, 2.0)
    assert (names[2], names[3], names[20]) == ("hip_left", "hip 3", "hip 20")


def test_levels_end_where_a_vertebra_is_missing_or_unsure() -> None:
    numbers, kinds = trunk()
    missing = np.where(numbers == 6, 0, numbers)
    names = bone_names(missing, {k: kind for k, kind in kinds.items() if k != 6}, 2.0)
    assert (names[5], names[7]) == ("L4", "vertebra 7")
    names = bone_names(numbers, {**kinds, 6: Kind("vertebra", 0.6)}, 2.0)
    assert (names[5], names.get(6), names[7]) == ("L4", None, "vertebra 7")


def test_a_spinous_process_that_reaches_the_sacrum_does_not_skip_a_level() -> None:
    numbers, kinds = trunk()
    numbers[38:42, 5:15, 28:55] = 5  # of the second vertebra, down to the sacrum's height
    numbers[38:42, 5:15, 26:28] = 1
    names = bone_names(numbers, kinds, 2.0)
    assert (names[4], names[5], names[6]) == ("L5", "L4", "L3")


@pytest.mark.parametrize(("vertebra", "believed"), [(5, False), (8, False), (9, True)])
def test_a_rib_at_a_vertebra_that_would_be_lumbar_contradicts_the_count(vertebra, believed) -> None:
    numbers, kinds = trunk()
    at = 30 + 15 * (vertebra - 4)
    numbers[47:70, 15:18, at + 4 : at + 8] = 20
    names = bone_names(numbers, {**kinds, 20: RIB}, 2.0)
    assert (names[4] == "L5") == believed
    assert names[20] == "rib 20"


def test_bones_are_described_by_their_surroundings_and_their_size() -> None:
    numbers = np.zeros((19, 16, 16), np.int32)
    numbers[8:19, 2:6, 3:10] = 2
    context = torch.zeros(3, 3, 2, 2)
    context[0] = torch.arange(3.0)[:, None, None]
    context[1, :, 0, 0] = 1.0
    (vector,) = described(context, numbers, 8).values()
    assert vector[0] == pytest.approx((8 * 1 + 3 * 2) / 11)
    assert vector[1] == pytest.approx(5 / 7)  # of its voxels along the last axis, those before the eighth
    assert torch.allclose(vector[3:].exp(), torch.tensor([8.0 * 11 * 4 * 7, 22.0, 8.0, 14.0]))


def test_an_untaught_head_tells_no_kind() -> None:
    network = BoneNetwork((4, 8, 8)).eval()
    numbers = np.zeros((16, 16, 16), np.int32)
    numbers[2:9, 2:9, 2:9] = 5
    told = kinds_of(network, torch.rand(16, 4, 4, 4), numbers)
    assert told[5].chance == pytest.approx(1 / len(KINDS))
    assert kinds_of(network, torch.rand(16, 4, 4, 4), np.zeros_like(numbers)) == {}


def test_the_head_is_fitted_to_values_of_any_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(len(KINDS), (600,), generator=generator)
    centres = 2 * torch.randn(len(KINDS), 5 + MEASURES, generator=generator)
    values = centres[kinds] + 0.5 * torch.randn(600, 5 + MEASURES, generator=generator)
    values = values * torch.logspace(-2, 3, 5 + MEASURES) + 40
    weight, bias = fitted(values[:400], kinds[:400])
    assert float(((values[400:] @ weight.T + bias).argmax(1) == kinds[400:]).float().mean()) > 0.95


def test_ids_of_bones_have_a_kind() -> None:
    told = {
        20: "vertebra",
        1: "vertebra",
        28: "vertebra",
        26: "sacrum",
        31: "hip",
        34: "femur",
        45: "rib",
        82: "other",
        120: "other",
    }
    assert {label: KINDS[kind_of(label)] for label in told} == told
