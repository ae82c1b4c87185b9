"""The gain of an MR's coil: found against the other image, whatever its contrast, and taken out."""

from dataclasses import replace

import pytest
import torch
from conftest import oblique_grid
from test_exact_bones import PLAN, scene  # noqa: F401
from test_exact_path import true_poses
from test_refine import blobs

from osteomorph.case import Case
from osteomorph.clock import Clock
from osteomorph.exact_path import Options, exact_path
from osteomorph.gain import even_gain, uneven_side
from osteomorph.image import Image
from osteomorph.prepare import prepare
from osteomorph.transforms import Displacement, Rigid


def coil(grid) -> torch.Tensor:
    """A log gain of about +-.4 that changes over 40 mm."""
    x, y, z = (grid.points() - torch.as_tensor(grid.centre_mm, dtype=torch.float32)[:, None, None, None]) / 25
    return 0.3 * (torch.sin(x) + torch.cos(y + 1) * torch.sin(z))[None]


@pytest.fixture(scope="module")
def tissues():
    """Two contrasts of one anatomy; the second is not a monotonous function of the first."""
    grid = oblique_grid((64, 60, 52), spacing=(1.5, 1.5, 1.5))
    first = blobs(grid).data.clamp(0, 1)
    return Image(0.25 + 0.5 * (2 * first - 1).square(), grid), Image(first, grid)


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_the_gain_of_either_image_is_taken_out(tissues, side):
    even, other = tissues
    gain = coil(even.grid)
    uneven = even.with_data(even.data * gain.exp())
    case = Case(uneven, other) if side == "fixed" else Case(other, uneven)
    found = even_gain(case, side, 15.0)
    left = (getattr(found, side).data / even.data).log()
    assert float(left.std()) < 0.4 * float(gain.std())
    assert getattr(found, "moving" if side == "fixed" else "fixed") is other


def test_an_even_image_stays_about_as_it_is(tissues):
    even, other = tissues
    found = even_gain(Case(even, other), "fixed", 15.0)
    assert float((found.fixed.data / even.data).log().std()) < 0.03


def test_what_a_mask_leaves_out_does_not_count(tissues):
    even, other = tissues
    mask = torch.ones_like(even.data)
    mask[:, :20] = 0
    wild = even.with_data(torch.where(mask > 0, even.data, 0.9 * torch.rand_like(even.data) + 0.1))
    seen = Case(wild, other, fixed_mask=even.with_data(mask))
    same = Case(even, other, fixed_mask=even.with_data(mask))
    found, known = even_gain(seen, "fixed", 15.0).fixed.data, even_gain(same, "fixed", 15.0).fixed.data
    torch.testing.assert_close(found[:, 24:], known[:, 24:], rtol=0.02, atol=0)
    nothing = replace(seen, fixed_mask=even.with_data(0 * mask))
    assert even_gain(nothing, "fixed", 15.0) is nothing


def test_the_mr_is_the_uneven_one(tissues):
    image, _ = tissues
    ct = image.with_data(2000 * image.data - 1000)
    assert [uneven_side(*pair) for pair in ((image, ct), (ct, image), (image, image), (ct, ct))] == [
        "fixed",
        "moving",
        "fixed",
        None,
    ]


@pytest.mark.parametrize("gain_mm", [0.0, 12.0])
def test_the_soft_stage_compares_images_without_the_gain(scene, gain_mm, monkeypatch):  # noqa: F811
    case, poses, _ = scene
    gain = coil(case.fixed.grid)
    uneven = replace(case, fixed=case.fixed.with_data(case.fixed.data * gain.exp()))
    seen = []

    def compared(through, *_):
        seen.append(through.fixed.data)
        return Displacement(torch.zeros(3, *through.fixed.grid.shape), through.fixed.grid), []

    monkeypatch.setattr("osteomorph.exact_bones.soft_field", compared)
    plan = PLAN.model_copy(update={"soft": PLAN.soft.model_copy(update={"gain_mm": gain_mm})})
    prepared = prepare(uneven, plan.prepare)
    given = Options(poses=true_poses(poses))
    start = Rigid.identity()
    assert exact_path(uneven, prepared, start, start, plan, (1, 2, 9), "moving", Clock(None), given) is not None
    bright = prepared.fixed.data > 0.2
    taken = (prepared.fixed.data / seen[0])[bright].log()
    if gain_mm == 0:
        assert float(taken.abs().max()) == 0
    else:
        expected = coil(prepared.fixed.grid)[bright]
        assert float(torch.corrcoef(torch.stack([taken, expected]))[0, 1]) > 0.8
