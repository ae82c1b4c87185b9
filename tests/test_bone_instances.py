"""From votes to bones: synthetic shapes with known middles."""

import numpy as np

from osteomorph.bone_instances import InstanceSettings, instances

SHAPE = (40, 36, 60)


def ball(middle: tuple[float, float, float], radius: float) -> np.ndarray:
    axes = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    return np.sqrt(sum((a - m) ** 2 for a, m in zip(axes, middle, strict=True))) < radius


def votes_for(masks: list[np.ndarray], longest: float = 48.0) -> np.ndarray:
    """(3, i, j, k) mm at 2 mm."""
    places = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")).astype(float)
    out = np.zeros((3, *SHAPE))
    for mask in masks:
        middle = places[:, mask].mean(1)
        way = 2.0 * (middle[:, None, None, None] - places)
        length = np.linalg.norm(way, axis=0)
        way *= np.minimum(1.0, longest / np.maximum(length, 1e-6))
        out[:, mask] = way[:, mask]
    return out


def test_two_bones_that_touch_are_two() -> None:
    first, second = ball((20, 18, 20), 9), ball((20, 18, 37), 9)
    second &= ~first
    bone = np.where(first | second, 0.9, 0.05)
    found, sure = instances(bone, votes_for([first, second]), 2.0)
    assert sorted(sure) == [1, 2]
    assert len(np.unique(found[first])) == 1
    assert len(np.unique(found[second])) == 1
    assert found[20, 18, 20] != found[20, 18, 37]
    assert ((found > 0) == (first | second)).all()
    assert all(0.85 < value < 0.9001 for value in sure.values())


def test_noisy_votes_change_little() -> None:
    first, second = ball((20, 18, 20), 9), ball((20, 18, 38), 9)
    generator = np.random.default_rng(0)
    offset = votes_for([first, second]) + generator.normal(0, 4.0, (3, *SHAPE))
    found, sure = instances(np.where(first | second, 0.9, 0.05), offset, 2.0)
    assert len(sure) == 2
    for mask in (first, second):
        most = np.bincount(found[mask]).argmax()
        assert (found[mask] == most).mean() > 0.99


def test_a_bone_longer_than_the_votes_reach_is_one() -> None:
    long = np.zeros(SHAPE, bool)
    long[15:25, 14:22, 2:58] = True
    found, sure = instances(np.where(long, 0.8, 0.1), votes_for([long], longest=20.0), 2.0)
    assert list(sure) == [int(found[20, 18, 30])]
    assert ((found > 0) == long).all()


def test_specks_and_empty_images_are_no_bones() -> None:
    speck = ball((20, 18, 20), 3)  # 0.9 cm^3
    for bone in (np.where(speck, 0.9, 0.1), np.full(SHAPE, 0.2)):
        found, sure = instances(bone, votes_for([speck]), 2.0)
        assert not found.any()
        assert not sure


def test_what_voted_for_nothing_goes_to_the_bone_it_hangs_on() -> None:
    body = ball((20, 18, 20), 9)
    tip = np.zeros(SHAPE, bool)
    tip[19:22, 17:20, 28:34] = True
    tip &= ~body
    offset = votes_for([body])
    offset[0, tip] = 30.0  # astray
    found, sure = instances(np.where(body | tip, 0.9, 0.1), offset, 2.0, InstanceSettings())
    assert len(sure) == 1
    assert (found[tip] == found[20, 18, 20]).mean() > 0.9


def in_two_lumps(leap_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bone, its upper end, and votes for places of two halves that move apart by so much across a seam of 3 voxels."""
    bone = np.zeros(SHAPE, bool)
    bone[12:28, 10:26, 4:56] = True
    upper = bone.copy()
    upper[:, :, :30] = False
    places = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")).astype(float)
    middle = np.broadcast_to(np.array([20.0, 18.0, 30.0])[:, None, None, None], places.shape).copy()
    middle[2] += np.clip((places[2] - 29.5) / 1.5, -1, 1) * leap_mm / 4  # in voxels, half to each side
    return bone, upper, 2.0 * (middle - places)


def test_votes_in_two_lumps_that_agree_where_they_meet_are_one_bone() -> None:
    bone, upper, offset = in_two_lumps(40.0)
    ramp = np.clip((np.arange(SHAPE[2]) - 29.5) / 14.0, -1, 1)  # the same two places, but the way from one to the other is long
    places = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")).astype(float)
    gradual = offset.copy()
    gradual[2] = 2.0 * (30.0 + 10.0 * np.sign(ramp) * np.abs(ramp) ** 0.7 - places[2])
    probability = np.where(bone, 0.9, 0.05)
    apart = instances(probability, gradual, 2.0, InstanceSettings(agreeing_mm=None))[1]
    found, sure = instances(probability, gradual, 2.0)
    assert len(apart) == 2
    assert len(sure) == 1
    assert len(np.unique(found[bone])) == 1
    assert next(iter(sure.values())) > 0.85  # its votes count for it, in whichever lump they fell
    found, sure = instances(probability, offset, 2.0)
    assert len(sure) == 2  # votes that leap are of two bones, however broad the seam
    assert len(np.unique(found[upper])) == 1


def test_agreeing_votes_across_a_narrow_bridge_do_not_make_two_bones_one() -> None:
    bone, upper, _ = in_two_lumps(40.0)
    places = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")).astype(float)
    ramp = np.clip((places[2] - 29.5) / 14.0, -1, 1)
    offset = np.stack([20.0 - places[0], 18.0 - places[1], 30.0 + 10.0 * np.sign(ramp) * np.abs(ramp) ** 0.7 - places[2]]) * 2.0
    bridge = bone.copy()
    bridge[:, :, 26:34] = False
    bridge[18:22, 16:20, 26:34] = True  # as facets that touch
    found, sure = instances(np.where(bridge, 0.9, 0.05), offset, 2.0)
    assert len(sure) == 2
    assert len(np.unique(found[bridge & upper])) == 1
