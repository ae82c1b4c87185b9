"""A report in a real browser: Chromium without a window, WebGL 2 in software, no network."""

import json
import os
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GRIDS
from test_report import BONE, HOSTILE, RECORD, ball, shifted

from osteomorph.image import Image, Labels
from osteomorph.report import Material, write_report
from osteomorph.report_cohort import Entry, cohort_page
from osteomorph.report_page import asset

VIEWER = Path(__file__).parent.parent / "viewer"
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
    pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js on the PATH"),
    pytest.mark.skipif(asset("built/viewer.js") is None, reason="the viewer is not built (make viewer)"),
    pytest.mark.skipif(not (VIEWER / "node_modules/playwright-core").is_dir(), reason="no playwright-core (make viewer)"),
]


def seen(path: Path, **wish):
    """What tests/drive.mjs saw of a page."""
    words = ["node", str(VIEWER / "tests/drive.mjs"), str(CHROMIUM), path.as_uri(), json.dumps(wish)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["requests"] == []
    assert told["console"] == []
    return told


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Fixed and moved differ, three contours, a bone, a hostile name."""
    grid = GRIDS["oblique"]
    x, y, _ = grid.points()
    labels = Labels(ball(grid).to(torch.int16) * 3, grid, {3: HOSTILE})
    fixed = Image(ball(grid) * 80.0 + torch.rand(1, *grid.shape) * 20, grid)
    moved = Image((50 + 30 * torch.sin(x / 2) + y)[None], grid)
    bone = {**BONE, "name": HOSTILE}
    material = Material(
        HOSTILE, fixed, fixed, moved, shifted(5, 0, 0), shifted(3, 0, 0), RECORD, (bone,), labels, labels, labels
    )
    return write_report(tmp_path_factory.mktemp("report") / "report.html", material)


def test_controls_and_keys_change_the_picture(report):
    actions = [
        ("slider", "#share=90"),
        ("key ]", "]"),
        ("before", "b"),
        ("swipe", "s"),
        ("checkerboard", "s"),
        ("contours", "f"),
        ("displacement", "d"),
        ("jacobian", "j"),
        ("grid", "g"),
        ("crosshair", "PageUp PageUp ArrowLeft"),
        ("axial", "4"),
        ("bones", "5"),
    ]
    told = seen(report, actions=actions)
    assert told["viewer"] == "ready"
    assert told["heading"] == HOSTILE
    assert not told["hint"]
    sums = list(told["sums"].items())
    same = [name for (_, before), (name, after) in pairwise(sums) if before == after]
    assert not same
    start = GRIDS["oblique"].centre_mm  # of the bone; one mm to the patient's right, two up
    assert np.allclose(np.array(told["mm"]) - start, (1, 0, 2), atol=0.6)


@pytest.mark.slow
def test_without_webgl_the_pictures_stay(report):
    told = seen(report, webgl=False)
    assert told["viewer"] == "off"
    assert told["hint"]
    assert len(told["pictures"]) == 2
    assert min(told["pictures"]) > 400


@pytest.mark.slow
def test_page_fits_a_phone(report):
    assert not seen(report, phone=True)["wide"]


@pytest.mark.parametrize("name", ["oblique", *(pytest.param(name, marks=pytest.mark.slow) for name in ("RAS", "LAS", "LPS"))])
def test_landmark_lies_under_the_crosshair(name, tmp_path):
    """A bright voxel at known mm: NiiVue has its value there, and a click on its spot in each pane leads to those mm."""
    grid = GRIDS[name]
    index = np.array([5, 11, 7])
    data = torch.zeros(1, *grid.shape)
    data[0, index[0], index[1], index[2]] = 1000.0
    at = grid.world(torch.as_tensor(index, dtype=torch.float64)[:, None])[:, 0].numpy()
    image, still = Image(data, grid), shifted(0, 0, 0)
    material = Material(name, image, image, image, still, still, RECORD)
    told = seen(write_report(tmp_path / "report.html", material), points=[at.tolist()])
    (point,) = told["seen"]
    assert np.allclose(point["read"], at, atol=0.02)
    assert point["value"] == pytest.approx(1000, rel=0.01)
    assert sorted(spot["axCorSag"] for spot in point["spots"]) == [0, 1, 2]
    for spot in point["spots"]:
        assert spot["n"] > 0
        assert np.linalg.norm(np.array(spot["mm"]) - at) < 0.35 * grid.spacing_mm.max()


def test_cohort_sorts_in_the_browser(tmp_path):
    cases = [
        Entry(name=HOSTILE, reason=HOSTILE),
        *(Entry(name=f"c{k}", passed=True, warnings=0, dice=k / 10) for k in (3, 9, 5)),
    ]
    (tmp_path / "cohort.html").write_text(cohort_page(cases, HOSTILE), encoding="utf-8")
    told = seen(tmp_path / "cohort.html", viewer=False, sort="dice")
    assert told["order"][:3] == ["c9", "c5", "c3"]
    assert told["again"][:3] == ["c3", "c5", "c9"]
