"""The shipped network: shapes, gradients, intensities, files, and a training that goes on where it stopped."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from osteomorph import bone_samples, train_bones, train_kinds
from osteomorph.bone_anatomies import REAL, Patient
from osteomorph.bone_losses import losses
from osteomorph.bone_network import (
    FEATURES,
    SPACING_MM,
    BoneNetwork,
    Found,
    load_bone_network,
    save_bone_network,
    shipped_network,
    unit_intensities,
)
from osteomorph.bone_samples import LONGEST_MM, Pairs, StoredPair, _packed, _thinned, patches_of
from osteomorph.distances import DistanceMap
from osteomorph.errors import InputError
from osteomorph.geometry import Grid, sample
from osteomorph.image import Image
from osteomorph.mean_weights import mean_of
from osteomorph.simulate.atlas import Atlas
from osteomorph.train_bones import Settings, Training

SMALL = (4, 8, 8, 8)
BOTH = torch.tensor([False, True])


def stored(seed: int = 0, n: int = 72) -> StoredPair:
    """Two blocks of bone in noise; the second image is the first one, moved 4 mm to the right."""
    generator = np.random.default_rng(seed)
    image = torch.from_numpy(generator.uniform(0, 0.3, (n, n, n)).astype(np.float32))
    labels = torch.zeros(2, n, n, n, dtype=torch.int16)
    labels[0, 20:36, 25:45, 20:34] = 3
    labels[0, 20:36, 25:45, 37:52] = 7
    labels[1] = labels[0].roll(2, 0)
    image = image + 0.6 * (labels[0] > 0)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = (-70.0, -65.0, -71.0)
    grid = Grid((n, n, n), affine)
    points = grid.points(torch.float64)
    centres = [{k: points[:, labels[side] == k].mean(1).numpy() for k in (3, 7)} for side in (0, 1)]
    displacement = torch.zeros(3, n, n, n)
    displacement[0] = 4.0
    body = torch.ones(1, n, n, n, dtype=torch.bool)
    return StoredPair(torch.stack([image, image.roll(2, 0)]), labels, displacement, body, grid, centres)


@pytest.mark.parametrize("shape", [(16, 24, 8), (13, 9, 21)], ids=str)
def test_answers_have_the_shape_of_the_question(shape) -> None:
    network = BoneNetwork(SMALL)
    found = network(torch.rand(2, 1, *shape), BOTH)
    assert found.bone.shape == (2, 1, *shape)
    assert found.offset_mm.shape == (2, 3, *shape)
    assert found.features.shape == (2, FEATURES, *(-(-n // 2) for n in shape))
    assert torch.allclose(found.features.norm(dim=1), torch.ones(()), atol=1e-5)


def test_a_place_is_answered_alike_in_a_larger_field_of_view() -> None:
    torch.manual_seed(0)
    network, image = BoneNetwork(SMALL).eval(), torch.rand(1, 1, 128, 32, 32)
    with torch.no_grad():
        part, whole = network(image[:, :, :96], BOTH[:1]), network(image, BOTH[:1])
    # what differs is seen from 48 mm away at most: zeros beyond the border
    assert torch.allclose(part.bone[:, :, :40], whole.bone[:, :, :40], atol=1e-3)


def test_every_weight_has_a_gradient() -> None:
    network = BoneNetwork()
    patches = patches_of(stored(), np.random.default_rng(0), size=32)
    losses(network(patches.images, BOTH), patches).total.backward()
    without = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.abs().max() > 0]
    assert without == ["kind_head.weight", "kind_head.bias"]  # fitted afterwards


def test_patches_point_to_the_middle_of_their_bones() -> None:
    pair = stored()
    for seed in range(4):
        patches = patches_of(pair, np.random.default_rng(seed), size=40)
        for side, grid in enumerate(patches.grids):
            for label in (3, 7):
                here = patches.labels[side] == label
                if not here.any():
                    continue
                lattice = torch.as_tensor(grid.affine[:3, :3] / SPACING_MM, dtype=torch.float32)
                way = lattice @ patches.offset_mm[side][:, here]
                length = patches.offset_mm[side][:, here].norm(dim=0)
                middle = torch.as_tensor(pair.centres_mm[side][label], dtype=torch.float32)[:, None]
                end = grid.points()[:, here] + way
                assert length.max() < LONGEST_MM
                assert (end - middle).norm(dim=0).max() < 0.01
        assert torch.allclose(patches.partners - patches.points, torch.tensor([4.0, 0.0, 0.0])[:, None], atol=1e-4)
        same = [
            sample(patches.labels[s : s + 1], patches.grids[s], p, "nearest")
            for s, p in enumerate((patches.points, patches.partners))
        ]
        assert (same[0] == same[1]).float().mean() > 0.9  # the two lattices round differently at edges


def test_small_bones_count_more_where_offsets_are_balanced() -> None:
    patches = patches_of(stored(), np.random.default_rng(0), size=40, augment=False)
    sizes = {k: int((patches.labels == k).sum()) for k in (3, 7)}
    small, large = sorted(sizes, key=sizes.__getitem__)
    assert 0 < sizes[small] < 0.97 * sizes[large]
    wrong = {}
    for label in (small, large):  # all is right but the offsets of one bone
        offset = patches.offset_mm + 30.0 * (patches.labels == label)[:, None]
        found = Found(torch.zeros(2, 1, 40, 40, 40), offset, torch.ones(2, FEATURES, 20, 20, 20))
        wrong[label] = [float(losses(found, patches, balanced).offset) for balanced in (False, True)]
    plain, root = (wrong[small][n] / wrong[large][n] for n in (0, 1))
    assert plain == pytest.approx(sizes[small] / sizes[large], rel=1e-3)
    assert root == pytest.approx((sizes[small] / sizes[large]) ** 0.5, rel=1e-3)


def test_a_patch_of_noise_has_no_bone_and_still_trains() -> None:
    patches = patches_of(stored(), np.random.default_rng(0), size=24, empty=1.0)
    assert not patches.labels.any()
    assert patches.points.shape == patches.partners.shape == (3, 0)
    assert patches.images.min() >= 0
    assert patches.images.max() <= 1
    network = BoneNetwork(SMALL)
    parts = losses(network(patches.images, BOTH), patches, balanced=True)
    parts.total.backward()
    assert network.bone_head.weight.grad.abs().max() > 0
    assert float(parts.offset) == float(parts.features) == 0


def test_a_ct_may_lose_trabecular_bone() -> None:
    image, bone = torch.linspace(0, 1, 64).reshape(1, 4, 4, 4), torch.ones(4, 4, 4, dtype=torch.bool)
    bone[0] = False
    thin = _thinned(image, bone, np.random.default_rng(1))
    assert torch.equal(thin[:, 0], image[:, 0])
    lost = (image - thin)[0, 1:].flatten()
    assert lost.min() == 0
    assert 0.1 < lost.max() < 0.36
    assert thin[image < 0.3].equal(image[image < 0.3])
    assert thin[image > 0.8].equal(image[image > 0.8])
    assert (thin[0, 1:].flatten().diff() >= 0).all()  # what was denser still is


def test_training_goes_on_to_the_same_bits(tmp_path) -> None:
    settings = Settings(steps=6, pool=2, warming=2, bf16=False, patch=24, widths=SMALL)
    pairs = [stored(0), stored(1)]

    straight = Training(settings)
    for n in range(3):
        straight.advance(pairs[n % 2])
    torch.save(straight.saved(), tmp_path / "checkpoint.pt")
    straight.advance(pairs[1])
    again = Training(settings)
    again.restore(torch.load(tmp_path / "checkpoint.pt", weights_only=False))
    again.advance(pairs[1])
    assert again.step == straight.step == 4
    for one, other in zip(again.average.parameters(), straight.average.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InputError, match="another pool"):
        Training(replace(settings, pool=3)).restore(straight.saved())


def someone(name: str, scanned: bool) -> Patient:
    """Without anatomy: only who it is, and whether there is a scan."""
    grid = Grid((2, 2, 2), np.eye(4))
    scan = Image(torch.zeros(1, 2, 2, 2), grid) if scanned else None
    skin = DistanceMap(torch.ones(1, 2, 2, 2), grid)
    return Patient(name, Atlas(grid, torch.zeros(2, 2, 2, dtype=torch.uint8), {}, skin, {}, (), {}, scan), {})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of a training that was given its patients and pairs: one drawn and one real, on whom pairs fall in turn."""
    people = [someone("lumbar000", False), someone("ct-lumbopelvic", True)]
    monkeypatch.setattr(bone_samples, "patients", lambda _f, _s, data, *_: people if data else people[:1])
    (tmp_path / "shared" / "pairs").mkdir(parents=True)
    for n in range(8):
        torch.save(_packed(stored(n)), tmp_path / "shared" / "pairs" / f"pair{n:05d}.pt")
    return tmp_path


def test_the_head_that_tells_kinds_is_fitted_last_and_alone(folder) -> None:
    weights, out = folder / "rest.safetensors", folder / "whole.safetensors"
    save_bone_network(weights, BoneNetwork(SMALL), {"step": 3})
    digest = train_kinds.run(weights, out, folder / "shared", folder, ("ct-lumbopelvic",), 8, 0)
    before, _ = load_bone_network(weights)
    after, about = load_bone_network(out, digest)
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]) == (not name.startswith("kind_head"))
    assert about["rest"] == {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), "about": {"step": 3}}
    assert about["real"] == ["ct-lumbopelvic"]
    pair = stored(0)
    seen = list(train_kinds.bones_of(after, "lumbar000", pair))
    assert {row.ct for row in seen} == {False, True}
    told = after.kind_head(torch.stack([row.values for row in seen])).argmax(1).tolist()
    assert told == [row.kind for row in seen]


def test_training_begins_from_given_weights_and_says_so(folder) -> None:
    settings = Settings(steps=2, pool=8, warming=2, bf16=False, patch=24, widths=SMALL)
    first = train_bones.run(folder / "trunk", settings, None, (), shared=folder / "shared", checked=0)
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    read, about = load_bone_network(first)
    for one, other in zip(Training(settings, read).average.parameters(), read.parameters(), strict=True):
        assert torch.equal(one, other)

    names, later = ("ct-lumbopelvic",), replace(settings, learning_rate=0.0)
    second = train_bones.run(folder / "more", later, folder, names, first, folder / "shared", checked=0)
    trained, told = load_bone_network(second)
    assert told["begun_from"] == {"sha256": digest, "about": about}
    assert told["real"].keys() == {"ct-lumbopelvic"}
    assert "begun_from" not in about
    for one, other in zip(trained.parameters(), read.parameters(), strict=True):  # nothing was learned at a rate of 0
        assert torch.allclose(one, other, atol=1e-6)
    with pytest.raises(InputError, match="another begun_from"):
        train_bones.run(folder / "more", later, folder, names, second, folder / "shared", checked=0)
    with pytest.raises(InputError, match="widths"):
        Training(replace(settings, widths=(4, 8, 8, 16)), read)


def test_a_mean_of_weights_is_their_mean_and_names_them(tmp_path) -> None:
    paths, networks = [tmp_path / f"{n}.safetensors" for n in range(3)], []
    for n, path in enumerate(paths):
        torch.manual_seed(n)
        networks.append(BoneNetwork(SMALL))
        save_bone_network(path, networks[-1], {"step": n})
    digest = mean_of(paths, tmp_path / "mean.safetensors")
    mean, about = load_bone_network(tmp_path / "mean.safetensors", digest)
    for name, value in mean.state_dict().items():
        expected = torch.stack([network.state_dict()[name] for network in networks]).mean(0)
        assert torch.allclose(value, expected, atol=2e-3)
    assert [part["about"] for part in about["mean_of"]] == [{"step": n} for n in range(3)]
    assert about["mean_of"][1]["sha256"] == hashlib.sha256(paths[1].read_bytes()).hexdigest()
    save_bone_network(paths[0], BoneNetwork((4, 8, 8, 16)), {})
    with pytest.raises(InputError, match="other widths"):
        mean_of(paths, tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="no weights"):
        mean_of([], tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


def test_pairs_keep_their_numbers_whoever_is_left_out() -> None:
    people, scans = [someone(n, False) for n in ("trunk000", "lumbar000", "knee000")], [someone(n, True) for n in REAL]
    places = [p.name for p in (*people, *scans)]
    drawn, real = Pairs([*people, *scans], None, 0, places=places).numbers(200)
    assert sorted([*drawn, *real]) == list(range(200))
    assert Pairs(people, None, 0, places=places).numbers(200) == (drawn, [])
    without = [Pairs([*people, *(s for s in scans if s is not out)], None, 0, places=places).numbers(200) for out in scans]
    assert all(numbers[0] == drawn for numbers in without)
    left = [set(real) - set(numbers[1]) for numbers in without]
    assert all(left)
    assert sorted(n for numbers in left for n in numbers) == real  # each real one has numbers of its own


def test_steps_of_real_patients_have_their_share() -> None:
    settings = Settings(real_share=0.25)
    taken = [settings.pair(step, [0, 1, 2], [7, 9]) for step in range(800)]
    assert 0.2 < np.mean([n > 2 for n in taken]) < 0.3
    assert set(taken) == {0, 1, 2, 7, 9}
    assert {settings.pair(step, [0, 1], []) for step in range(20)} == {0, 1}


def test_intensities_of_ct_and_mr() -> None:
    ct = torch.tensor([-2000.0, -1000, -200, 0, 200, 1200, 3000])
    assert torch.allclose(unit_intensities(ct), torch.tensor([0, 0, 0.1, 0.35, 0.6, 1, 1]), atol=1e-6)
    mr = torch.cat([torch.zeros(500), torch.linspace(100, 600, 501)])
    scaled = unit_intensities(mr)
    assert float(scaled[0]) == 0
    assert float(scaled.max()) == 1
    assert torch.allclose(unit_intensities(3 * mr), scaled, atol=1e-5)
    assert not unit_intensities(torch.full((8,), 7.0)).any()


def test_weights_are_checked(tmp_path) -> None:
    torch.manual_seed(0)
    network = BoneNetwork(SMALL)
    digest = save_bone_network(tmp_path / "some.safetensors", network, {"step": 3})
    read, about = load_bone_network(tmp_path / "some.safetensors", digest)
    assert about == {"step": 3}
    for name, value in network.state_dict().items():
        assert torch.equal(read.state_dict()[name], value.half().float())
    broken = bytearray((tmp_path / "some.safetensors").read_bytes())
    broken[-1] ^= 1
    (tmp_path / "some.safetensors").write_bytes(bytes(broken))
    with pytest.raises(InputError, match="SHA-256"):
        load_bone_network(tmp_path / "some.safetensors", digest)
    with pytest.raises(InputError, match="does not exist"):
        load_bone_network(tmp_path / "none.safetensors")


def test_the_shipped_file_is_the_one_that_was_measured() -> None:
    network = shipped_network()
    assert sum(w.numel() for w in network.parameters()) < 3_000_000
    assert all(torch.isfinite(w).all() for w in network.parameters())
