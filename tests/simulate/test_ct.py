"""A simulated CT keeps its Hounsfield units on any grid, and its artefacts are where physics puts them."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from blocks import Blocks, cube, row, same

from osteomorph.geometry import Grid
from osteomorph.simulate.ct import draw_ct
from osteomorph.simulate.texture import texture

CLEAN = {
    "marrow_hu": 200.0,
    "cortex_hu": 1000.0,
    "muscle_hu": 57.0,
    "blur_mm": 0.3,
    "sharpen": 0.0,
    "noise_hu": 0.0,
    "starvation": 0.0,
    "hardening": 0.0,
    "metal": 0.0,
}


@pytest.fixture(scope="module")
def bank():
    return texture(1)


def clean(**numbers):
    return draw_ct(np.random.default_rng(0), contrast_agent=False, table=False, **(CLEAN | numbers))


def acquire(scan, anatomy, grid, bank):
    return scan.acquire(anatomy, same, grid, bank).data[0]


def test_same_numbers_same_voxels(bank):
    scan, anatomy, grid = draw_ct(np.random.default_rng(5)), row("fat", "muscle", "marrow"), cube(32)
    first = scan.acquire(anatomy, same, grid, bank)
    assert torch.equal(first.data, scan.acquire(anatomy, same, grid, bank).data)
    assert not torch.equal(first.data, replace(scan, seed=scan.seed + 1).acquire(anatomy, same, grid, bank).data)
    assert first.stored == np.int16
    assert torch.equal(first.data, first.data.round())
    assert draw_ct(np.random.default_rng(5)) == scan
    assert json.loads(json.dumps(asdict(scan))) == asdict(scan)


def test_tissue_means_hold_on_every_grid(grid, bank):
    centre = torch.as_tensor(grid.centre_mm, dtype=torch.float32)[:, None]
    seen = clean(noise_hu=10.0).acquire(row("fat", "muscle", width=40.0), lambda p: p - centre, grid, bank).data[0]
    x = grid.points()[0] - centre[0]
    assert float(seen[x < -4].mean()) == pytest.approx(-106, abs=8)
    assert float(seen[x > 4].mean()) == pytest.approx(57, abs=8)


def test_air_is_not_below_the_scale(bank):
    seen = acquire(clean(noise_hu=40.0), row("muscle"), cube(32), bank)
    assert float(seen.min()) == -1024
    assert float(seen[0].mean()) < -970


def test_noise_is_as_strong_as_stated(bank):
    grid, anatomy = cube(40), row("csf", width=500.0)
    noise = acquire(clean(noise_hu=25.0, noise_mm=1.2), anatomy, grid, bank) - acquire(clean(), anatomy, grid, bank)
    assert float(noise.std()) == pytest.approx(25, rel=0.02)
    assert abs(float(noise.mean())) < 1.5
    neighbours = torch.corrcoef(torch.stack([noise[:, 1:].flatten(), noise[:, :-1].flatten()]))[0, 1]
    assert 0.05 < float(neighbours) < 0.9  # grain, neither white nor smooth


def test_noise_grows_with_the_way_through_tissue(bank):
    anatomy = Blocks(("muscle", (0, -20, 0), (90, 20, 90)), ("muscle", (0, 20, 0), (20, 20, 90)))
    scan, grid = clean(noise_hu=20.0, starvation=1.2), cube(64, 3.0)
    noise = acquire(scan, anatomy, grid, bank) - acquire(clean(), anatomy, grid, bank)
    y = grid.points()[1][0, :, 0]
    middle = noise[28:36]
    wide, narrow = middle[:, (y > -35) & (y < -5)], middle[:, (y > 5) & (y < 35)]
    assert float(wide.std()) > 1.1 * float(narrow.std())
    along = torch.corrcoef(torch.stack([wide[1:].flatten(), wide[:-1].flatten()]))[0, 1]
    across = torch.corrcoef(torch.stack([wide[:, 1:].flatten(), wide[:, :-1].flatten()]))[0, 1]
    assert along > across  # streaks from side to side


def test_low_dose_is_noisier():
    scans = [[draw_ct(np.random.default_rng(k), low_dose=low).noise_hu for k in range(40)] for low in (False, True)]
    assert max(scans[0]) < 31
    assert np.median(scans[1]) > 2 * np.median(scans[0])


def test_wishes_are_kept():
    for k in range(10):
        generator = np.random.default_rng(k)
        assert draw_ct(generator, contrast_agent=True).iodine > 0.5
        assert draw_ct(generator, contrast_agent=False, table=True, noise_hu=3.0).iodine == 0
        assert draw_ct(generator, table=True, noise_hu=3.0).noise_hu == 3.0
        assert draw_ct(generator, table=False).table is False
    with pytest.raises(ValueError, match="No kvp in CtScan"):
        draw_ct(np.random.default_rng(0), kvp=120)


def test_it_is_darker_between_dense_bones(bank):
    anatomy = Blocks(("muscle", (0, 0, 0), (90, 60, 90)), *(("cortex", (x, 30, 0), (12, 12, 90)) for x in (-50, 50)))
    grid = cube(64, 3.0)
    lost = acquire(clean(), anatomy, grid, bank) - acquire(clean(hardening=1.0), anatomy, grid, bank)
    world = grid.points()
    inside = (world[0].abs() < 80) & (world[1].abs() < 50)
    between = (world[0].abs() < 20) & ((world[1] - 30).abs() < 6)
    level = (world[0].abs() < 20) & ((world[1] + 30).abs() < 6)
    assert float(lost[between].mean()) > float(lost[level].mean()) + 5
    assert 0 < float(lost[inside].mean()) < 40
    assert float(lost[world[0].abs() > 93].abs().max()) == 0  # air keeps its value


def test_streaks_need_metal(bank):
    body = ("muscle", (0.0, 0.0, 0.0), (20.0, 20.0, 20.0))
    screws = [("metal", (x, 0.0, 0.0), (2.0, 6.0, 3.0)) for x in (-9.0, 9.0)]
    grid = cube(48)
    off, on = clean(), clean(metal=1.0)
    assert torch.equal(acquire(on, Blocks(body), grid, bank), acquire(off, Blocks(body), grid, bank))
    streaks = acquire(on, Blocks(body, *screws), grid, bank) - acquire(off, Blocks(body, *screws), grid, bank)
    z = grid.points()[2][0, 0]
    x, y = grid.points()[:2, :, :, 0]
    assert float(streaks[..., z.abs() > 5].abs().max()) == 0  # other slices are clean
    middle = streaks[..., 24]
    between = (x.abs() < 4) & (y.abs() < 4)
    assert float(middle[between].mean()) < -15
    tissue = (x.abs() < 19) & (y.abs() < 19) & ~((x.abs() < 13) & (y.abs() < 8))
    assert float(middle[tissue].max()) > 15


def test_table_lies_behind_the_patient_and_outside(bank):
    anatomy = Blocks(("muscle", (0, 20, 0), (30, 20, 90)))
    grid = cube(64, 2.0)
    with_it, without = acquire(replace(clean(), table=True), anatomy, grid, bank), acquire(clean(), anatomy, grid, bank)
    y = grid.points()[1]
    changed = (with_it - without).abs() > 50
    assert int(changed.sum()) > 1000
    assert float(y[changed].max()) < 5  # the back is at y = 0; the plate rises at its sides
    assert float(with_it[(y < -3) & (y > -40)].max()) > -100
    inside = anatomy.body(grid.points().flatten(1)).reshape(grid.shape) < -3
    assert torch.equal(with_it[inside], without[inside])


def test_outside_the_circle_there_is_nothing(bank):
    grid = cube(40)
    seen = acquire(clean(circle_mm=15.0), row("muscle", width=200.0), grid, bank)
    x, y = grid.points()[:2]
    assert float(seen[torch.hypot(x, y) > 15.5].max()) == -1024
    assert float(seen[torch.hypot(x, y) < 14.5].min()) > 0


def test_bone_kernel_overshoots_at_an_edge(bank):
    soft, sharp = (acquire(clean(sharpen=s), row("csf", "cortex", width=60.0), cube(), bank).mean((1, 2)) for s in (0.0, 0.8))
    assert float(sharp[24:30].max()) > float(soft[24:30].max()) + 30
    assert float(sharp[18:24].min()) < float(soft[18:24].min()) - 30
    assert float(soft[4]) == pytest.approx(float(sharp[4]), abs=2)


def test_thick_slices_are_averages(bank):
    asked = []

    def where(points):
        asked.append(points.shape[1])
        return points

    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    affine[:3, 3] = (-8, -8, -16)
    grid = Grid((16, 16, 9), affine)  # a slice about z = 0

    def seen(z):  # cortex from z on
        edge = Blocks(("csf", (0, 0, 0), (500, 500, 500)), ("cortex", (0, 0, z + 250.0), (500, 500, 250)))
        return clean(cortex_hu=1008.0).acquire(edge, where, grid, bank).data[0].mean((0, 1))

    within, between = seen(0.0), seen(-2.0)
    assert asked == [2 * grid.voxels] * 2
    assert within[3:6].tolist() == pytest.approx([8, 508, 1008], abs=40)
    assert between[3:5].tolist() == pytest.approx([108, 908], abs=40)  # slices overlap a little
