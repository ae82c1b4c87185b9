import numpy as np
import pytest
import torch
from conftest import oblique_grid

from osteomorph.bones import bones_under
from osteomorph.case import Case
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.plan import Level, RefinePlan, Weights
from osteomorph.refine import refine
from osteomorph.resampling import resample
from osteomorph.transforms import Displacement, Rigid

LEVELS = (Level(control_mm=12, iterations=40, step_mm=0.5, samples=5_000),)
BRIEF = (Level(control_mm=12, iterations=6, step_mm=0.5, samples=5_000),)


def blobs(grid: Grid, seed: int = 0) -> Image:
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=grid.shape)
    values = gaussian_filter(noise, 2.0 / grid.spacing_mm)
    return Image(torch.as_tensor((values - values.min()) / np.ptp(values), dtype=torch.float32)[None], grid)


def pair(seed: int = 0) -> tuple[Case, torch.Tensor]:
    """A moving image, and the fixed one it makes under a known smooth field, in another contrast."""
    grid = oblique_grid((40, 36, 30), spacing=(1.2, 1.2, 1.2))
    x, y, z = (grid.points() - torch.as_tensor(grid.centre_mm, dtype=torch.float32)[:, None, None, None]) / 10
    truth = 1.5 * torch.stack([torch.sin(y), torch.cos(z), torch.sin(x)])
    moving = blobs(grid, seed)
    fixed = resample(moving, Displacement(truth, grid), grid)
    return Case(fixed.with_data(1 - 0.7 * fixed.data), moving), truth


def error(warp, case: Case, truth: torch.Tensor) -> float:
    found = warp.displacement(case.fixed.grid)
    inner = (slice(None), slice(8, -8), slice(8, -8), slice(8, -8))
    return float((found - truth)[inner].norm(dim=0).mean())


@pytest.mark.parametrize("field", ["displacement", "velocity"])
@pytest.mark.parametrize("weights", [Weights(mutual_information=1.0, diffusion=0.05), Weights(mind=30.0, bending=5.0)])
def test_a_known_field_is_found_across_contrasts(field, weights):
    case, truth = pair()
    plan = RefinePlan(field=field, levels=LEVELS, weights=weights)
    warp, history = refine(case, plan)
    assert error(warp, case, truth) < 0.4 * float(truth.norm(dim=0).mean())
    assert history[-1]["loss"] < history[0]["loss"]


def test_same_seed_same_bits_and_order_does_not_matter():
    (first, _), (second, _) = pair(0), pair(1)
    plan = RefinePlan(levels=BRIEF, weights=Weights(mutual_information=1, mind=5))
    a, b = refine(first, plan, seed=3)[0], refine(second, plan, seed=3)[0]
    again_b, again_a = refine(second, plan, seed=3)[0], refine(first, plan, seed=3)[0]
    assert torch.equal(a.vectors, again_a.vectors)
    assert torch.equal(b.vectors, again_b.vectors)
    assert not torch.equal(a.vectors, refine(first, plan, seed=4)[0].vectors)


def test_the_penalty_holds_a_bone_rigid():
    case, _ = pair()
    mask = torch.zeros(1, *case.moving.grid.shape, dtype=torch.int16)
    mask[:, 12:28, 10:26, 8:22] = 7
    case = Case(case.fixed, case.moving, None, Labels(mask, case.moving.grid))
    left = {}
    for weight in (0.0, 20.0):
        plan = RefinePlan(levels=LEVELS, weights=Weights(mutual_information=1.0, rigidity=weight))
        warp, _ = refine(case, plan, rigid_labels=(7,))
        (bone,) = bones_under(warp, Rigid.identity(), resample(case.moving_labels, warp, case.fixed.grid), (7,))
        left[weight] = bone.residual_rms_mm
    assert left[20.0] < left[0.0] / 3


def test_masks_restrict_by_weight():
    """What lies beyond the mask has no say: replacing it by noise changes nothing."""
    case, _ = pair()
    mask = torch.zeros_like(case.fixed.data)
    mask[:, :, :, :15] = 1
    noisy = case.fixed.data.clone()
    noisy[:, :, :, 15:] = torch.rand_like(noisy[:, :, :, 15:])
    plan = RefinePlan(
        levels=BRIEF,
        weights=Weights(mutual_information=1.0, bending=5.0),
    )
    results = []
    for data in (case.fixed.data, noisy):
        masked = Case(case.fixed.with_data(data), case.moving, fixed_mask=Image(mask, case.fixed.grid))
        results.append(refine(masked, plan)[0].vectors)
    assert torch.equal(*results)
    unmasked = refine(Case(case.fixed.with_data(noisy), case.moving), plan)[0].vectors
    assert not torch.allclose(results[0], unmasked, atol=1e-3)


def test_inputs_are_left_as_they_were():
    case, _ = pair()
    before = [case.fixed.data.clone(), case.moving.data.clone()]
    refine(case, RefinePlan(levels=LEVELS[:1], weights=Weights(mutual_information=1.0)))
    assert torch.equal(case.fixed.data, before[0])
    assert torch.equal(case.moving.data, before[1])


def test_progress_is_told_and_can_stop_the_work():
    case, _ = pair()
    seen = []

    def listen(stage: str, done: int, total: int) -> None:
        seen.append((stage, done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine(case, RefinePlan(levels=LEVELS, weights=Weights(mutual_information=1.0)), progress=listen)
    assert seen == [("refine", 1, 40), ("refine", 2, 40), ("refine", 3, 40)]


def test_no_level_means_no_motion():
    case, _ = pair()
    warp, history = refine(case, RefinePlan())
    assert history == []
    assert float(warp.vectors.abs().max()) == 0
