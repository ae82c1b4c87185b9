"""Tissues look as physics says, and texture is what it claims to be."""

from math import acos, degrees, exp

import pytest
import torch

from osteomorph.simulate.anatomy import TISSUES
from osteomorph.simulate.contrast import Sequence, ct_palette, mixed, mr_palettes
from osteomorph.simulate.texture import KNOTS, SPACING_MM, texture

T2 = Sequence(False, 4000.0, 100.0)
T1 = Sequence(False, 600.0, 10.0)
GRE = Sequence(True, 7.0, 2.0, 10.0)


@pytest.fixture(scope="module")
def bank():
    return texture(3)


def brightness(sequence):
    water, fat = mr_palettes(sequence, 0.45, 12.0, 1.5)
    return {name: water[name].mean + fat[name].mean for name in TISSUES}


def test_every_tissue_has_a_look_in_every_palette():
    for palette in (
        ct_palette(200.0, 1000.0, 57.0, 0.0),
        *mr_palettes(T2, 0.45, 12.0, 1.5),
        *mr_palettes(GRE, 0.45, 12.0, 1.5),
    ):
        assert tuple(palette) == TISSUES
        assert all(abs(value) < 1e4 for look in palette.values() for value in look)


def test_hounsfield_units_are_those_of_the_tissues():
    hu = {name: look.mean for name, look in ct_palette(180.0, 950.0, 55.0, 0.0).items()}
    assert (hu["marrow"], hu["cortex"], hu["muscle"]) == (180.0, 950.0, 55.0)
    assert hu["gas"] < hu["lung"] < hu["fat"] < hu["urine"] < hu["csf"] < hu["kidney"] < hu["muscle"] < hu["liver"]
    assert hu["liver"] < hu["nucleus"] < hu["annulus"] < hu["marrow"] < hu["sclerosis"] < hu["cortex"] < hu["metal"]


def test_contrast_agent_is_where_blood_flows():
    plain, iodine = ct_palette(200.0, 1000.0, 57.0, 0.0), ct_palette(200.0, 1000.0, 57.0, 1.0)
    for name, low, high in (("vessel", 150, 250), ("vein", 130, 220), ("kidney", 150, 170), ("liver", 100, 110)):
        assert low <= iodine[name].mean <= high
    for name in ("csf", "nucleus", "cortex", "urine"):
        assert iodine[name].mean == plain[name].mean


def test_denser_bone_has_stronger_texture():
    thin, dense = ct_palette(100.0, 1000.0, 57.0, 0.0)["marrow"], ct_palette(300.0, 1000.0, 57.0, 0.0)["marrow"]
    assert dense.own == pytest.approx(3 * thin.own)
    assert dense.fine == pytest.approx(3 * thin.fine)


def test_spin_echo_decays_and_recovers():
    whole = Sequence(False, 1e6, 0.0).signal(1000.0, 50.0, 20.0)
    assert whole == pytest.approx(1)
    assert Sequence(False, 1e6, 50.0).signal(1000.0, 50.0, 20.0) == pytest.approx(exp(-1))
    assert Sequence(False, 1000.0, 0.0).signal(1000.0, 50.0, 20.0) == pytest.approx(1 - exp(-1))


def test_gradient_echo_is_brightest_at_the_ernst_angle():
    best = degrees(acos(exp(-7 / 400)))
    signal = [Sequence(True, 7.0, 2.0, best + by).signal(400.0, 50.0, 20.0) for by in (-2, 0, 2)]
    assert signal[1] > signal[0]
    assert signal[1] > signal[2]
    assert Sequence(True, 7.0, 22.0, best).signal(400.0, 50.0, 20.0) == pytest.approx(signal[1] * exp(-1))


def test_tissues_come_in_the_known_order():
    t2, t1, gre = brightness(T2), brightness(T1), brightness(GRE)
    assert t2["csf"] > t2["fat"] > t2["marrow"] > t2["muscle"] > t2["ligament"] > t2["cortex"]
    assert t2["nucleus"] > 2 * t2["dry nucleus"] > 2 * t2["annulus"]
    assert t1["fat"] > t1["marrow"] > t1["muscle"] > t1["csf"] > t1["cortex"]
    assert gre["fat"] > gre["marrow"] > gre["muscle"] > gre["csf"]
    assert gre["cortex"] < 0.1 * gre["muscle"]


def test_flowing_blood_is_dark_in_spin_echo_alone():
    for sequence, dark in ((T2, True), (T1, True), (GRE, False)):
        signal = brightness(sequence)
        assert (signal["vessel"] < 0.3 * signal["muscle"]) is dark
        assert signal["vein"] > signal["vessel"] or not dark


def test_fat_goes_to_the_fat_image():
    water, fat = mr_palettes(GRE, 0.45, 12.0, 1.5)
    assert fat["fat"].mean > 5 * water["fat"].mean
    assert fat["muscle"].mean < 0.2 * water["muscle"].mean
    lean, fatty = (mr_palettes(GRE, share, 12.0, 1.5)[0]["marrow"].mean for share in (0.35, 0.6))
    assert lean > fatty  # the scale is set by fat, which does not change
    assert mixed(water, 1.0, fat, 0.1)["fat"].mean == pytest.approx(water["fat"].mean + 0.1 * fat["fat"].mean)


def test_marrow_holds_more_fat_where_it_holds_less_water():
    water, fat = (palette["marrow"] for palette in mr_palettes(T2, 0.45, 12.0, 1.5))
    shade = 0.05  # of both alike
    assert water.own / water.mean < shade < fat.own / fat.mean


# -- texture ----------------------------------------------------------------------------------------------------------------
def test_texture_has_unit_variance_anywhere(bank):
    points = (torch.rand(3, 100_000) - 0.5) * 400
    for textures in (bank.for_ct(), bank.for_mr()):
        values = textures(points)
        torch.testing.assert_close(values.std(1), torch.ones(4), atol=0.12, rtol=0)
        torch.testing.assert_close(values.mean(1), torch.zeros(4), atol=0.06, rtol=0)


def test_scanners_share_two_textures_and_own_two(bank):
    ct, mr = bank.ct.flatten(1), bank.mr.flatten(1)
    assert torch.equal(ct[[0, 3]], mr[[0, 3]])
    for k in (1, 2):
        assert abs(float(torch.corrcoef(torch.stack([ct[k], mr[k]]))[0, 1])) < 0.06
    together = torch.corrcoef(ct)
    assert float((together - torch.eye(4)).abs().max()) < 0.06


def test_texture_repeats_without_a_seam(bank):
    points = torch.rand(3, 1000) * 50
    for axis in range(3):
        there = points.clone()
        there[axis] += KNOTS * SPACING_MM
        torch.testing.assert_close(bank.for_ct()(there), bank.for_ct()(points), atol=1e-3, rtol=0)
    before, after = torch.full((3, 1), -1e-3), torch.full((3, 1), 1e-3)
    torch.testing.assert_close(bank.for_mr()(before), bank.for_mr()(after), atol=0.02, rtol=0)


def test_fibres_run_along_z(bank):
    points = torch.rand(3, 50_000) * 80
    textures = bank.for_ct()

    def alike(shift):
        there = points + torch.tensor(shift)[:, None]
        return torch.corrcoef(torch.stack([textures(points)[3], textures(there)[3]]))[0, 1]

    assert alike((0.0, 0.0, 5.0)) > 0.7 > 0.3 > alike((5.0, 0.0, 0.0))


def test_a_seed_is_a_texture(bank):
    assert torch.equal(texture(3).mr, bank.mr)
    assert not torch.equal(texture(4).mr, bank.mr)
