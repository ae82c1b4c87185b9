"""A simulated MR shows tissues as its contrast does, and its artefacts are as large as stated."""

import json
from dataclasses import asdict, replace
from math import pi, sqrt

import numpy as np
import pytest
import torch
from blocks import Blocks, cube, row, same

from osteomorph.geometry import Grid
from osteomorph.simulate.ct import draw_ct
from osteomorph.simulate.mr import CONTRASTS, draw_mr
from osteomorph.simulate.texture import texture

PLAIN = (0.0,) * 9
CLEAN = {
    "noise": 0.0,
    "bias": PLAIN,
    "fat_shift_mm": 0.0,
    "matrix": (1.0, 1.0),
    "apodise": 0.0,
    "scale": 1000.0,
    "marrow_fat": 0.45,
    "encoding": ("IS", "PA", "LR"),
}


@pytest.fixture(scope="module")
def bank():
    return texture(1)


def clean(contrast, **numbers):
    return draw_mr(np.random.default_rng(0), contrast, **(CLEAN | numbers))


def acquire(scan, anatomy, grid, bank):
    return scan.acquire(anatomy, same, grid, bank).data[0]


def means(contrast, tissues, bank, width=12.0):
    """Of the middle of each slab."""
    n = int(width * len(tissues))
    grid = cube(n)
    seen = acquire(clean(contrast), row(*tissues, width=width), grid, bank)
    x = grid.points()[0]
    out = {}
    for k, name in enumerate(tissues):
        out[name] = float(seen[(x - width * (k - (len(tissues) - 1) / 2)).abs() < width / 4].mean())
    return out


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_same_numbers_same_voxels(contrast, bank):
    scan, anatomy, grid = draw_mr(np.random.default_rng(5), contrast), row("fat", "muscle", "marrow"), cube(36)
    first = scan.acquire(anatomy, same, grid, bank)
    assert torch.equal(first.data, scan.acquire(anatomy, same, grid, bank).data)
    assert not torch.equal(first.data, replace(scan, seed=scan.seed + 1).acquire(anatomy, same, grid, bank).data)
    assert first.stored == np.int16
    assert torch.equal(first.data, first.data.round())
    assert 0 <= float(first.data.min()) < float(first.data.max()) <= 4095
    assert draw_mr(np.random.default_rng(5), contrast) == scan
    content = json.loads(json.dumps(asdict(scan)))
    assert content["contrast"] == contrast


def test_wishes_are_kept_and_checked():
    assert draw_mr(np.random.default_rng(0), echo_ms=3.3).echo_ms == 3.3
    with pytest.raises(ValueError, match=r"No MR contrast 'flair'; there are gre, "):
        draw_mr(np.random.default_rng(0), "flair")
    with pytest.raises(ValueError, match="No tesla in MrScan"):
        draw_mr(np.random.default_rng(0), tesla=7)


def test_tissue_means_hold_on_every_grid(grid, bank):
    centre = torch.as_tensor(grid.centre_mm, dtype=torch.float32)[:, None]
    scan = clean("t1", noise=0.01, bias=(0.4, *PLAIN[1:]))
    seen = scan.acquire(row("muscle", "fat", width=40.0), lambda p: p - centre, grid, bank).data[0]
    x = grid.points()[0] - centre[0]
    flat = seen / (0.4 * x / 150).exp()  # right is right on any grid
    pure = means("t1", ("muscle", "fat"), bank, width=20.0)
    assert float(flat[x < -4].mean()) == pytest.approx(pure["muscle"], rel=0.08)
    assert float(flat[x > 4].mean()) == pytest.approx(pure["fat"], rel=0.08)


def test_tissues_come_in_the_order_of_the_contrast(bank):
    tissues = ("csf", "fat", "muscle", "cortex", "marrow")
    t2, t1, water, gre = (means(c, tissues, bank) for c in ("t2", "t1", "water", "gre"))
    assert t2["csf"] > t2["fat"] > t2["marrow"] > t2["muscle"] > t2["cortex"]
    assert t1["fat"] > t1["marrow"] > t1["muscle"] > t1["csf"] > t1["cortex"]
    assert water["csf"] > water["muscle"] > water["marrow"] > 2 * water["fat"]
    assert gre["fat"] > gre["marrow"] > gre["muscle"] > 5 * gre["cortex"]


def test_borders_of_fat_and_water_are_dark_out_of_phase(bank):
    grid, anatomy = cube(40), row("muscle", "fat", width=60.0)
    shift = torch.tensor([0.25, 0.0, 0.0])[:, None]  # a voxel holds a quarter of fat, whose signal is the stronger
    profiles = {}
    for contrast in ("gre-in", "gre-out"):
        seen = clean(contrast).acquire(anatomy, lambda p: p + shift, grid, bank)
        profiles[contrast] = seen.data[0].mean((1, 2))
    sides = {c: min(float(p[5:15].mean()), float(p[25:35].mean())) for c, p in profiles.items()}
    assert float(profiles["gre-out"][18:22].min()) < 0.7 * sides["gre-out"]
    assert float(profiles["gre-in"][18:22].min()) > 0.9 * sides["gre-in"]


def test_noise_in_air_is_rayleigh_and_in_tissue_gaussian(bank):
    grid, sigma = cube(40), 0.03
    for matrix, apodise in (((1.0, 1.0), 0.0), ((0.7, 0.8), 0.7)):
        scan = clean("t1", noise=sigma, matrix=matrix, apodise=apodise)
        air = acquire(scan, Blocks(("metal", (0, 0, 0), (90, 90, 90))), grid, bank)
        assert float(air.mean()) == pytest.approx(1000 * sigma * sqrt(pi / 2), rel=0.03)
        assert float(air.std()) == pytest.approx(1000 * sigma * sqrt(2 - pi / 2), rel=0.05)
        fat = Blocks(("fat", (0, 0, 0), (90, 90, 90)))
        tissue = acquire(scan, fat, grid, bank) - acquire(replace(scan, noise=0.0), fat, grid, bank)
        assert float(tissue.std()) == pytest.approx(1000 * sigma, rel=0.05)


def test_receive_field_is_the_polynomial_in_mm(bank):
    grid, anatomy = cube(40, 4.0), Blocks(("fat", (0, 0, 0), (500, 500, 500)))
    bias = (0.1, -0.5, 0.2, 0.05, 0.2, -0.1, 0.03, 0.04, -0.05)
    field = acquire(clean("t1", bias=bias), anatomy, grid, bank) / acquire(clean("t1"), anatomy, grid, bank)
    x, y, z = grid.points() / 150
    log = 0.1 * x - 0.5 * y + 0.2 * z + 0.05 * x * x + 0.2 * y * y - 0.1 * z * z + 0.03 * x * y + 0.04 * y * z - 0.05 * z * x
    torch.testing.assert_close(field.log(), log, atol=0.01, rtol=0)


def edge_mm(seen, grid, axis, ends):
    """Where the mean profile along an array axis crosses half its height, world mm."""
    profile = seen.mean(tuple(d for d in range(3) if d != axis))
    at = grid.points()[ends].mean(tuple(d for d in range(3) if d != axis))
    half = (profile[:3].mean() + profile[-3:].mean()) / 2
    k = int(((profile[:-1] - half) * (profile[1:] - half) <= 0).nonzero()[0])
    share = (half - profile[k]) / (profile[k + 1] - profile[k])
    return float(at[k] + share * (at[k + 1] - at[k]))


@pytest.mark.parametrize("ends", ["LR", "PA", "IS"])
def test_fat_moves_by_the_stated_millimetres(grid, ends, bank):
    world = ("LR", "PA", "IS").index(ends)
    axis = grid.axis(ends)
    fine = grid.resampled(1.2)
    centre = torch.as_tensor(fine.centre_mm, dtype=torch.float32)[:, None]
    direction = torch.as_tensor(fine.direction[:, axis] * np.sign(fine.direction[world, axis]), dtype=torch.float32)
    half = torch.tensor([0.0, 0.0, 250.0])[:, None]

    def where(points):  # an edge across the array axis, along z of the anatomy
        along = (points - centre).T @ direction
        return torch.stack([torch.zeros_like(along), torch.zeros_like(along), along]) + half

    other = [e for e in ("LR", "PA", "IS") if e != ends]
    fat = Blocks(("fat", (0, 0, 0), (500, 500, 250)))
    still, moved = (
        clean("t1", fat_shift_mm=s, encoding=(ends, *other)).acquire(fat, lambda p: -where(p) + 2 * half, fine, bank).data[0]
        for s in (0.0, 2.0)
    )
    shift = edge_mm(moved, fine, axis, world) - edge_mm(still, fine, axis, world)
    assert shift == pytest.approx(2.0 * abs(fine.direction[world, axis]), abs=0.15)
    water = Blocks(("csf", (0, 0, 0), (500, 500, 250)))
    scans = [clean("t1", fat_shift_mm=s, encoding=(ends, *other)) for s in (0.0, 2.0)]
    assert torch.equal(*(s.acquire(water, where, fine, bank).data for s in scans))


def test_nothing_is_encoded_across_thick_slices(bank):
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    grid = Grid((24, 24, 6), affine)
    anatomy = Blocks(("fat", (0, 0, 0), (12, 12, 12)))
    first, second = (clean("t1", fat_shift_mm=2.0, encoding=e) for e in (("IS", "PA", "LR"), ("PA", "LR", "IS")))
    assert torch.equal(acquire(first, anatomy, grid, bank), acquire(second, anatomy, grid, bank))


def test_cutting_k_space_rings(bank):
    anatomy = Blocks(("csf", (0, 0, 250), (500, 500, 250)))

    def overshoot(**numbers):
        profile = acquire(clean("t2", **numbers), anatomy, cube(40), bank).mean((0, 1))
        return float(profile[20:28].max() / profile[32:38].mean()) - 1

    assert overshoot(matrix=(0.5, 1.0)) > 0.05
    assert overshoot(matrix=(0.5, 1.0)) > 2 * overshoot(matrix=(0.5, 1.0), apodise=1.0)
    assert overshoot() < 0.03


def test_a_ghost_is_half_a_field_of_view_away(bank):
    grid = cube(40)
    anatomy = Blocks(("fat", (0, -10, 0), (9, 4, 9)))
    seen = acquire(clean("t1", ghost=0.1), anatomy, grid, bank)
    where = (grid.points()[1] - 10).abs() < 3
    inside = where & (grid.points()[0].abs() < 7) & (grid.points()[2].abs() < 7)
    assert float(seen[inside].mean()) == pytest.approx(100, rel=0.1)
    assert float(acquire(clean("t1"), anatomy, grid, bank)[inside].max()) == 0


def test_chance_makes_other_contrasts(bank):
    anatomy, grid = row("fat", "muscle", "marrow", "csf"), cube(48)
    scans = [draw_mr(np.random.default_rng(k), "random", **CLEAN) for k in range(6)]
    seen = [acquire(scan, anatomy, grid, bank)[[6, 18, 30, 42]].mean((1, 2)).argsort() for scan in scans]
    assert len({tuple(order.tolist()) for order in seen}) > 2


def test_thick_slices_are_averages(bank):
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    affine[:3, 3] = (-8, -8, -16)
    grid = Grid((16, 16, 9), affine)
    edge = Blocks(("csf", (0, 0, 250), (500, 500, 250)))
    seen = acquire(clean("t2"), edge, grid, bank).mean((0, 1))
    assert float(seen[4]) == pytest.approx(0.5 * float(seen[8]), rel=0.06)


@pytest.mark.parametrize("contrast", ["gre", "gre-out", "t1", "t2", "water"])
@pytest.mark.parametrize("tissue", ["marrow", "muscle"])
def test_mr_is_no_function_of_ct(contrast, tissue, bank):
    """Without noise, which would hide what they share."""
    anatomy, grid = row(tissue, width=500.0), cube(40)
    ct = draw_ct(np.random.default_rng(0), contrast_agent=False, table=False, noise_hu=0.0, hardening=0.0)
    pair = torch.stack([acquire(ct, anatomy, grid, bank).flatten(), acquire(clean(contrast), anatomy, grid, bank).flatten()])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.5
    assert float(pair[0].std()) > 5
    assert float(pair[1].std() / pair[1].mean()) > 0.03
