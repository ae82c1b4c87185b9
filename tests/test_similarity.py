"""Similarities against hand values, brute force and MONAI."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import GRIDS, oblique_grid
from scipy import ndimage

from osteomorph import similarity
from osteomorph.case import Case
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.objective import Alignment
from osteomorph.similarity import Dice, Mind, MutualInformation, dice, mind_ssc, mutual_information
from osteomorph.transforms import Displacement

KERNELS = ("gaussian", "bspline")


def related(n: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    fixed = torch.rand(n, dtype=dtype)
    return fixed, (0.6 * (fixed - 0.3).abs() + 0.3 * torch.rand(n, dtype=dtype) + 0.05)


def parzen_by_hand(fixed: np.ndarray, moved: np.ndarray, weight: np.ndarray, bins: int, kernel: str) -> float:
    """Every value's kernel weights, one by one, without any fine histogram."""

    def windows(value: float) -> np.ndarray:
        if kernel == "gaussian":
            centres = np.linspace(0, 1, bins)
            w = np.exp(-((value - centres) ** 2) / (2 * (0.5 / (bins - 1)) ** 2))
        else:  # cubic B-spline: the box convolved with itself three times
            t = np.abs(1 + value * (bins - 3) - np.arange(bins))
            w = (np.maximum(2 - t, 0) ** 3 - 4 * np.maximum(1 - t, 0) ** 3) / 6
        return w / w.sum()

    joint = sum(w * np.outer(windows(f), windows(m)) for f, m, w in zip(fixed, moved, weight, strict=True)) / weight.sum()
    outer = np.outer(joint.sum(1), joint.sum(0))
    return float((joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])).sum())


# -- mutual information -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kernel", KERNELS)
def test_two_values_that_go_together_share_one_bit(kernel):
    fixed = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert mutual_information(fixed, 1 - fixed, kernel=kernel).item() == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_are_probabilities(kernel):
    fixed = torch.tensor([0.0, 0, 1, 1], dtype=torch.float64)
    moved = torch.tensor([0.0, 1, 0, 1], dtype=torch.float64)
    by_hand = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    weight = torch.tensor([4.0, 1, 1, 4], dtype=torch.float64)
    assert mutual_information(fixed, moved, weight, kernel=kernel).item() == pytest.approx(by_hand, abs=1e-12)
    assert mutual_information(fixed, moved, kernel=kernel).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bins", [6, 24])
def test_matches_a_sum_over_kernels(kernel, bins):
    levels = 256  # values at nodes, where the fine histogram is no approximation
    fixed, moved = (torch.randint(0, levels, (60,)).double() / (levels - 1) for _ in range(2))
    weight = torch.rand(60, dtype=torch.float64)
    expected = parzen_by_hand(fixed.numpy(), moved.numpy(), weight.numpy(), bins, kernel)
    assert mutual_information(fixed, moved, weight, bins, kernel, levels).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_between_nodes_it_stays_close_to_a_sum_over_kernels(kernel):
    fixed, moved = related(4000)
    expected = parzen_by_hand(fixed.numpy(), moved.numpy(), np.ones(4000), 24, kernel)
    assert mutual_information(fixed, moved, kernel=kernel).item() == pytest.approx(expected, abs=3e-4)


def test_matches_monai():
    losses = pytest.importorskip("monai.losses", reason="MONAI is an optional peer")
    fixed, moved = related(60_000, torch.float32)
    moved.requires_grad_()
    ours = mutual_information(fixed, moved)
    theirs = -losses.GlobalMutualInformationLoss("gaussian", num_bins=24)(moved[None, None], fixed[None, None])
    assert ours.item() == pytest.approx(theirs.item(), abs=1.5e-4)
    a, b = (torch.autograd.grad(value, moved)[0] for value in (ours, theirs))
    assert torch.cosine_similarity(a, b, 0) > 0.999
    assert a.norm() / b.norm() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("weighted", [True, False])
def test_gradient_is_exact(kernel, weighted):
    fixed, _ = related(40)
    moved = ((torch.randint(0, 63, (40,)) + 0.2 + 0.6 * torch.rand(40)).double() / 63).requires_grad_()
    weight = torch.rand(40, dtype=torch.float64) if weighted else None
    assert torch.autograd.gradcheck(lambda m: mutual_information(fixed, m, weight, 16, kernel, 64), moved, atol=1e-7)


def test_clamped_values_count_but_have_no_gradient():
    fixed, inside = related(50)
    moved = inside.clone()
    moved[:5], moved[5:10] = -0.2, 1.3
    moved.requires_grad_()
    value = mutual_information(fixed, moved)
    (gradient,) = torch.autograd.grad(value, moved)
    assert value.item() == mutual_information(fixed, moved.detach().clamp(0, 1)).item()
    assert (gradient[:10] == 0).all()
    assert (gradient[10:] != 0).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_weight_zero_is_absent(kernel):
    fixed, moved = related(500)
    moved.requires_grad_()
    keep = torch.rand(500) < 0.6
    masked = mutual_information(fixed, moved, keep.double(), kernel=kernel)
    cropped = mutual_information(fixed[keep], moved[keep], kernel=kernel)
    assert masked.item() == pytest.approx(cropped.item(), abs=1e-12)
    a, b = (torch.autograd.grad(value, moved)[0] for value in (masked, cropped))
    assert torch.allclose(a, b, atol=1e-14)
    multiplied = mutual_information(fixed * keep, moved.detach() * keep, kernel=kernel)
    assert multiplied > masked + 0.1  # what masking must not be


def test_weights_have_no_scale():
    fixed, moved = related(300)
    weight = torch.rand(300, dtype=torch.float64)
    value = mutual_information(fixed, moved, weight)
    assert mutual_information(fixed, moved, 1000 * weight).item() == pytest.approx(value.item(), abs=1e-12)


def test_nothing_to_compare_has_no_information():
    fixed, moved = related(30)
    moved.requires_grad_()
    value = mutual_information(fixed, moved, torch.zeros(30, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value, moved)
    assert value.item() == 0
    assert (gradient == 0).all()


def test_far_tails_of_the_kernel_stay_finite():
    fixed, moved = torch.full((20,), 0.02), torch.linspace(0, 0.03, 20).requires_grad_()
    value = mutual_information(fixed, moved)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert moved.grad.isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_batch_is_each_alone(kernel):
    fixed, moved = (part.reshape(2, 3, 100) for part in related(600))
    moved.requires_grad_()
    weight = torch.rand(2, 3, 100, dtype=torch.float64)
    together = mutual_information(fixed, moved, weight, kernel=kernel)
    (gradient,) = torch.autograd.grad(together.sum(), moved)
    for where in np.ndindex(2, 3):
        alone = moved[where].detach().requires_grad_()
        value = mutual_information(fixed[where], alone, weight[where], kernel=kernel)
        assert value.item() == together[where].item()
        assert torch.equal(torch.autograd.grad(value, alone)[0], gradient[where])


def test_chunks_do_not_show(monkeypatch):
    fixed, moved = related(1000, torch.float32)
    moved.requires_grad_()
    found = []
    for chunk in (7, 1000, 1 << 14):
        monkeypatch.setattr(similarity, "CHUNK", chunk)
        value = mutual_information(fixed, moved)
        found.append((value.item(), torch.autograd.grad(value, moved)[0]))
    for value, gradient in found[:2]:
        assert value == pytest.approx(found[2][0], abs=1e-7)
        assert torch.allclose(gradient, found[2][1], rtol=1e-6, atol=0)


def test_same_input_same_bytes():
    fixed, moved = related(50_000, torch.float32)
    moved.requires_grad_()
    values = [mutual_information(fixed, moved) for _ in range(2)]
    gradients = [torch.autograd.grad(value, moved)[0] for value in values]
    assert values[0].item() == values[1].item()
    assert torch.equal(*gradients)


def test_float32_and_float64_agree():
    fixed, moved = related(5000)
    value = mutual_information(fixed.float(), moved.float())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(mutual_information(fixed, moved).item(), abs=1e-5)


def test_only_the_second_image_has_a_gradient():
    fixed, moved = related(20)
    with pytest.raises(ValueError, match="swap the two, or detach fixed"):
        mutual_information(fixed.requires_grad_(), moved)
    with pytest.raises(ValueError, match="weight; detach it"):
        mutual_information(fixed.detach(), moved, torch.ones(20, dtype=torch.float64, requires_grad=True))
    with pytest.raises(ValueError, match="at least 4 bins"):
        mutual_information(fixed.detach(), moved, bins=3)


# -- Dice -------------------------------------------------------------------------------------------------------------
def test_dice_by_hand():
    fixed = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 0]])
    moved = torch.tensor([[1.0, 0, 0.5, 0], [0, 0, 0, 1]])
    assert dice(fixed, moved).item() == pytest.approx((2 * 1 / 3.5 + 0) / 2)
    assert dice(fixed, fixed).item() == pytest.approx(1)
    assert dice(fixed, moved, torch.tensor([1.0, 1, 0, 0])).item() == pytest.approx((2 / 3) / 2)
    assert dice(fixed * 0, moved * 0).item() == 0


def test_dice_has_an_exact_gradient_and_no_memory_across_a_batch():
    fixed, moved = (torch.rand(2, 3, 8, dtype=torch.float64) for _ in range(2))
    moved.requires_grad_()
    weight = torch.rand(2, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: dice(fixed, m, weight), moved)
    for f, m, w, value in zip(fixed, moved, weight, dice(fixed, moved, weight), strict=True):
        assert dice(f, m, w).item() == value.item()


# -- MIND -------------------------------------------------------------------------------------------------------------
def mind_by_hand(volume: np.ndarray, radius: int, dilation: int) -> np.ndarray:
    steps = [sign * np.eye(3, dtype=int)[axis] for axis in range(3) for sign in (-1, 1)]
    pairs = [(a, b) for a, b in combinations(steps, 2) if ((a - b) ** 2).sum() == 2]
    index = np.indices([n + 2 * radius for n in volume.shape]) - radius
    ends = np.array(volume.shape).reshape(3, 1, 1, 1) - 1
    inner = (slice(radius, -radius or None),) * 3

    def at(step: np.ndarray) -> np.ndarray:
        return volume[tuple(np.clip(index + dilation * step.reshape(3, 1, 1, 1), 0, ends))]

    distances = np.stack([ndimage.uniform_filter((at(a) - at(b)) ** 2, 2 * radius + 1)[inner] for a, b in pairs])
    distances -= distances.min(0)
    variance = distances.mean(0)
    return np.exp(-distances / variance.clip(0.001 * variance.mean(), 1000 * variance.mean()))


@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (2, 1), (0, 3)])
def test_mind_by_hand(radius, dilation):
    volume = np.random.default_rng(0).random((7, 6, 9))
    volume[:3, :3, :4] *= 1e-3  # a corner so flat that the variance is clamped
    found = mind_ssc(torch.from_numpy(volume)[None], radius, dilation)
    assert found.shape == (12, 7, 6, 9)
    np.testing.assert_allclose(found.numpy(), mind_by_hand(volume, radius, dilation), atol=1e-9)


def test_mind_does_not_see_contrast():
    data = torch.rand(1, 8, 7, 6, dtype=torch.float64)
    assert torch.allclose(mind_ssc(5 - 3 * data), mind_ssc(data), atol=1e-9)
    assert (mind_ssc(data**3) - mind_ssc(data)).abs().max() > 0.01
    assert (mind_ssc(torch.full((1, 5, 5, 5), 0.3)) == 1).all()


def test_mind_follows_the_volume():
    data = torch.rand(1, 12, 11, 10, dtype=torch.float64)
    inner = mind_ssc(data[:, 1:])[:, 3:-3, 3:-3, 3:-3]
    whole = mind_ssc(data)[:, 4:-3, 3:-3, 3:-3]
    assert torch.allclose(inner, whole, atol=1e-9)


def test_mind_channels_follow_the_anatomy_when_axes_are_swapped_or_reversed():
    grid = GRIDS["oblique"]
    data = torch.rand(1, *grid.shape, dtype=torch.float64)
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, 1] * (grid.shape[1] - 1)
    affine[:, 1] *= -1
    other = Grid((grid.shape[2], grid.shape[0], grid.shape[1]), affine[:, [2, 0, 1, 3]])
    turned = data.flip(2).permute(0, 3, 1, 2)
    described = mind_ssc(turned, pairs=similarity.pairs_as_seen_from(grid, other))
    back = described.permute(0, 2, 3, 1).flip(2)
    assert torch.allclose(back, mind_ssc(data), atol=1e-12)
    assert not torch.allclose(mind_ssc(turned).permute(0, 2, 3, 1).flip(2), mind_ssc(data), atol=0.1)
    alignment = Alignment(
        Case(Image(data, grid), Image(turned, other)), Displacement(torch.zeros(3, 2, 2, 2), oblique_grid((2,) * 3))
    )
    assert Mind()(alignment).item() < 1e-6


def test_mind_leaves_the_image_alone_and_lays_its_channels_side_by_side():
    data = torch.rand(1, 6, 5, 7)
    kept = data.clone()
    found, half = mind_ssc(data), mind_ssc(data, dtype=torch.float16)
    assert torch.equal(data, kept)
    assert found.stride(0) == half.stride(0) == 1
    assert half.dtype == torch.float16
    assert (found - half).abs().max() < 3e-4


def test_mind_does_not_depend_on_how_much_is_described_at_a_time(monkeypatch):
    data = torch.rand(1, 9, 5, 7)
    whole = mind_ssc(data)
    monkeypatch.setattr(similarity, "VOXELS_CACHED", 2 * 35)
    for together in (1, 4):
        monkeypatch.setattr(similarity, "VOXELS_AT_ONCE", together * (9 + 6) * (5 + 6) * (7 + 6))
        assert torch.allclose(mind_ssc(data), whole, atol=1e-6)


def test_mind_with_a_margin_describes_what_lies_within():
    data = torch.rand(1, 12, 11, 10, dtype=torch.float64)
    assert torch.allclose(mind_ssc(data, with_margin=True), mind_ssc(data)[:, 3:-3, 3:-3, 3:-3], atol=1e-9)


# -- terms ------------------------------------------------------------------------------------------------------------
def still(grid, labels: bool = False) -> Alignment:
    """An image on itself, nothing moved."""
    data = torch.rand(1, *grid.shape)
    image = Image(data, grid)
    found = Labels((data > 0.5).to(torch.int16) + (data > 0.8).to(torch.int16), grid) if labels else None
    return Alignment(Case(image, image, found, found), Displacement(torch.zeros(3, *grid.shape), grid))


def test_terms_of_an_image_on_itself(grid):
    alignment = still(grid, labels=True)
    values = alignment.case.fixed.data.flatten()
    assert MutualInformation(16, "bspline")(alignment).item() == pytest.approx(
        -mutual_information(values, values, bins=16, kernel="bspline").item(), abs=1e-4
    )
    assert Dice()(alignment).item() == pytest.approx(0, abs=1e-4)
    assert Mind()(alignment).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("far", [0.0, 0.5, 6.0, 500.0])
def test_dice_near_labels_is_dice_everywhere(grid, far, stride):
    """The moving side on another grid, turned and coarser; bones at a corner and in the middle; far: mm that points move by."""
    moving = Grid((13, 12, 11), grid.moved(np.eye(4)).resampled(grid.spacing_mm * (1.7, 1.5, 1.6)).affine)
    maps = []
    for side in (grid, moving):
        ids = torch.zeros(1, *side.shape, dtype=torch.int16)
        ids[:, :4, :5, :3], ids[:, 6:9, 5:8, 4:7], ids[:, -1, -1, -1] = 1, 2, 3
        maps.append(Labels(ids, side))
    image = [Image(torch.zeros(1, *side.shape), side) for side in (grid, moving)]
    vectors = (torch.randn(3, *grid.shape) * far).requires_grad_()
    alignment = Alignment(Case(image[0], image[1], maps[0], maps[1]), Displacement(vectors, grid), stride)
    near = Dice()(alignment)
    (slope,) = torch.autograd.grad(near, vectors)
    where = alignment.moved_points
    everywhere = 1 - dice(alignment.fixed_onehot(), alignment.moved_onehot())
    (wanted,) = torch.autograd.grad(everywhere, vectors)
    assert where.requires_grad
    assert torch.allclose(near, everywhere, atol=1e-6)
    assert torch.allclose(slope, wanted, atol=1e-7)
    left_out = torch.ones(where.shape[1], dtype=torch.bool)
    left_out[alignment.near_labels] = False
    assert not alignment.moved_onehot()[:, left_out].any()


def test_dice_without_labels_is_a_constant():
    value = Dice()(still(GRIDS["oblique"]))
    assert value.item() == 0
    assert not value.requires_grad


def test_an_image_is_described_once():
    alignment = still(GRIDS["LAS"])
    Mind()(alignment)
    before = dict(alignment.memo)
    Mind()(alignment)
    assert {key: id(value) for key, value in alignment.memo.items()} == {key: id(value) for key, value in before.items()}
    Mind(dilation=1)(alignment)
    assert len(alignment.memo) > len(before)
