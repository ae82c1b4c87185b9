"""A report shows what the result holds, as text, and nothing that it should not."""

import base64
import gzip
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import GRIDS
from typer.testing import CliRunner

from osteomorph import io
from osteomorph.cli import app
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.io import digest
from osteomorph.registration import register
from osteomorph.report import Material, material_from, shown_command, without_folders, write_report
from osteomorph.report_cohort import Entry, cohort_page, entry, worst_first, write_cohort
from osteomorph.report_page import json_script, page
from osteomorph.report_volumes import MOVED, bones_packed, cells, edges, images_packed, shown_grid, surface
from osteomorph.resampling import resample
from osteomorph.transforms import Rigid

HOSTILE = """</script><script>alert(1)</script>"'<img src=x onerror=alert(2)>&amp; 脊椎 Ωß """ + "very" * 80


def shifted(x: float, y: float, z: float) -> Rigid:
    matrix = np.eye(4)
    matrix[:3, 3] = (x, y, z)
    return Rigid(matrix)


def ball(grid: Grid, radius: float = 6.0) -> torch.Tensor:
    points = grid.points(torch.float64)
    return ((points - torch.as_tensor(grid.centre_mm)[:, None, None, None]).norm(dim=0) < radius)[None]


RECORD = {
    "version": "0",
    "versions": {"python": "3"},
    "command": ["osteomorph", "register", "-f", "/data/DOE_JANE/fixed.nii.gz", "--moving=C:\\DOE_JANE\\ct.nii.gz"],
    "grids": {},
    "start": {"method": "given", "matrix": shifted(3, 0, 0).matrix.tolist()},
    "plan": {"name": "default"},
    "plan_sha256": "0" * 64,
    "metrics": {"folding_percent": 0.0, "jacobian_min": 0.9, "dice": {"L3": 0.9}, "hd99_mm": {"L3": 1.5}},
    "seconds": {"read": 1.0},
    "passed": False,
    "warnings": ["Look at /data/DOE_JANE/fixed.nii.gz again."],
    "inputs": {},
}
BONE = {
    "label": 3,
    "name": "L3",
    "matrix": shifted(5, 0, 0).matrix.tolist(),
    "rotation_deg": 1.0,
    "displacement_mm": [5, 0, 0],
    "rotation_after_start_deg": 0.5,
    "displacement_after_start_mm": [2, 0, 0],
    "rigidity_residual_mm": 0.002,
    "uncertainty": None,
    "volume_mm3": 900.0,
}


@pytest.fixture(scope="module")
def material() -> Material:
    grid = GRIDS["oblique"]
    data = torch.rand(1, *grid.shape) * 50 + ball(grid) * 100.0
    image, labels = Image(data, grid), Labels(ball(grid).to(torch.int16) * 3, grid, {3: "L3"})
    after, start = shifted(5, 0, 0), shifted(3, 0, 0)
    return Material("case", image, image, image, after, start, RECORD, (BONE,), labels, labels, labels)


@pytest.fixture
def folder(tmp_path):
    """An output folder, its inputs beside it, as register leaves them."""
    grid = GRIDS["sagittal"]
    x, y, z = grid.points()
    fixed = Image((100 + 10 * torch.sin(x / 4) + y + z)[None], grid)
    transform, start = shifted(2, 1, 0), shifted(1, 1, 0)
    moving = Image(fixed.data * 2, grid)
    out = tmp_path / "case 1"
    out.mkdir()
    io.write_image(tmp_path / "fixed.nii.gz", fixed)
    io.write_image(tmp_path / "moving.nii.gz", moving)
    io.write_image(out / "moved.nii.gz", resample(moving, transform, grid))
    io.write_displacement(out / "displacement.nii.gz", transform, grid)
    io.write_transform(out / "inverse.h5", transform.inverse())
    inputs = {side: digest(tmp_path / f"{side}.nii.gz") for side in ("fixed", "moving")}
    words = ["osteomorph", "register", "-f", str(tmp_path / "fixed.nii.gz"), f"--moving={tmp_path / 'moving.nii.gz'}"]
    matrix = {"method": "given", "matrix": start.matrix}
    io.write_json(out / "result.json", {**RECORD, "command": words, "inputs": inputs, "start": matrix})
    io.write_json(out / "bones.json", {"bones": []})
    return out


@pytest.fixture(scope="module")
def content(material) -> str:
    return page(material)


class Seen(HTMLParser):
    """Elements, attributes and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.inside: list[str] = []
        self.words: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        if self.inside:
            self.words[self.inside[-1]] = self.words.get(self.inside[-1], "") + data


# -- the page -----------------------------------------------------------------------------------------------------------------
def test_page_names_no_address(content):
    seen = Seen(content)
    for name, value in seen.attributes:
        if name in ("src", "href", "srcset", "data", "action", "poster"):
            assert value.startswith("data:"), (name, value[:80])
    (policy,) = [value for name, value in seen.attributes if name == "content" and "default-src" in value]
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_hostile_names_are_text(material, content):
    bone = {**BONE, "name": HOSTILE}
    record = {**RECORD, "warnings": [HOSTILE], "command": ["osteomorph", "-f", HOSTILE], "plan": {"name": HOSTILE}}
    plain, seen = Seen(content), Seen(page(replace(material, name=HOSTILE, bones=(bone,), record=record)))
    assert seen.tags.count("script") == plain.tags.count("script")
    assert seen.tags.count("img") == plain.tags.count("img")
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert seen.words["h1"] == HOSTILE
    assert HOSTILE.strip() in seen.words["li"]


def test_json_in_a_script_cannot_end_it():
    coded = json_script("a", {"name": HOSTILE, "<!--": "&"})
    assert coded.count("<") == 2
    assert json.loads(re.search(r">(.*)</script>", coded)[1]) == {"name": HOSTILE, "<!--": "&"}


def test_page_shows_the_figures_and_no_folder(content):
    assert "DOE_JANE" not in content
    words = Seen(content).words
    assert "Look at fixed.nii.gz again." in words["li"]
    assert "look twice" in words["p"]
    for figure in ("L3", "5.00", "2.00", "0.002", "0.900", "1.50"):
        assert figure in words["td"] + words["th"]


def test_paths_become_names():
    assert shown_command(RECORD) == "osteomorph register -f fixed.nii.gz --moving=ct.nii.gz"
    assert without_folders("in /a/b/c.nii and ~/x/y.nii: 3 mm/s, 1/2") == "in c.nii and y.nii: 3 mm/s, 1/2"
    assert without_folders(r"see D:\scans\jane\ct.nii") == "see ct.nii"


def test_header_text_of_the_inputs_stays_out(folder, monkeypatch):
    source = folder.parent / "fixed.nii.gz"
    image = nib.load(source)
    for key, value in (
        ("descrip", b"DOE_JANE 1970"),
        ("aux_file", b"DOE_JANE"),
        ("db_name", b"DOE_JANE"),
        ("intent_name", b"DOE_JANE"),
    ):
        image.header[key] = value
    again = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    nib.save(again, source)
    assert b"DOE_JANE" in gzip.decompress(source.read_bytes())
    record = json.loads((folder / "result.json").read_text())
    record["inputs"]["fixed"] = digest(source)
    io.write_json(folder / "result.json", record)
    monkeypatch.setattr("osteomorph.report_page.asset", lambda name: "")  # data of the viewer, whether it was built or not
    content = page(material_from(folder))
    volumes = re.findall(r'"nii":"([^"]+)"', content)
    assert len(volumes) == 6
    assert "DOE_JANE" not in content
    assert not [v for v in volumes if b"DOE_JANE" in gzip.decompress(base64.b64decode(v))]


# -- from a folder ------------------------------------------------------------------------------------------------------------
def test_before_is_the_same_with_and_without_the_moving_image(folder):
    given = material_from(folder)
    (folder.parent / "moving.nii.gz").rename(folder.parent / "elsewhere.nii.gz")
    made = material_from(folder)
    assert not given.notes
    assert "moving image was not at hand" in made.notes[0]
    inner = (slice(None), slice(4, -4), slice(4, -4), slice(2, -2))
    assert torch.allclose(given.before.data[inner], made.before.data[inner], atol=1.5)
    assert not torch.allclose(given.before.data[inner], given.moved.data[inner], atol=1.5)


def test_inputs_must_be_those_that_were_registered(folder):
    with pytest.raises(InputError, match="another SHA-256"):
        material_from(folder, fixed=folder.parent / "moving.nii.gz")
    (folder.parent / "fixed.nii.gz").unlink()
    with pytest.raises(InputError, match="with -f"):
        material_from(folder)
    with pytest.raises(InputError, match="no result"):
        material_from(folder.parent)


def test_command_writes_the_page(folder):
    printed = CliRunner().invoke(app, ["report", str(folder)])
    assert printed.exit_code == 0, printed.output
    assert Seen((folder / "report.html").read_text(encoding="utf-8")).words["h1"] == "case 1"
    assert CliRunner().invoke(app, ["report", str(folder.parent)]).exit_code == 2


def test_register_writes_its_report(tmp_path):
    grid = GRIDS["sagittal"]
    image = Image(torch.rand(1, *grid.shape) * 50 + ball(grid) * 100.0, grid)
    labels = Labels(ball(grid).to(torch.int16) * 3, grid)
    found = register(image, image, moving_labels=labels, bone_labels={3: "L3"}, initial="none", refine=False)
    found.write(tmp_path / "DOE_JANE" / "case 7", command=["osteomorph", "register", "-f", "/data/DOE_JANE/a.nii.gz"])
    content = (tmp_path / "DOE_JANE" / "case 7" / "report.html").read_text(encoding="utf-8")
    assert Seen(content).words["h1"] == "case 7"
    assert "DOE_JANE" not in content
    assert "L3" in Seen(content).words["th"]


# -- volumes ------------------------------------------------------------------------------------------------------------------
def decoded(content: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(content)))


def test_shown_values_are_the_image_s(grid):
    image = Image(grid.points()[:1] * 7 - 300, grid)
    shown, out = images_packed({"fixed": image})
    back = decoded(out["fixed"]["nii"])
    assert shown is grid
    assert np.allclose(back.affine, grid.affine, atol=1e-4)
    error = np.abs(back.get_fdata() - image.data[0].numpy())
    assert np.percentile(error, 99) <= out["fixed"]["slope"] / 2 + 1e-4
    assert float(image.data.max() - image.data.min()) / 255 == pytest.approx(out["fixed"]["slope"], rel=0.02)


def test_images_keep_to_the_budget():
    grid = Grid((60, 60, 20), np.diag([0.5, 0.5, 2.0, 1]))
    image = Image(torch.rand(1, *grid.shape), grid)
    shown, out = images_packed({"fixed": image, "moved": image}, budget=60_000)
    assert sum(len(base64.b64decode(one["nii"])) for one in out.values()) <= 60_000
    assert shown.spacing_mm[0] > 0.5
    assert np.allclose(shown.spacing_mm[2], 2.0)  # thick slices are not made thicker while rows are finer
    assert np.linalg.norm(shown.centre_mm - grid.centre_mm) < 1e-6


def test_shown_grid_holds_at_most(grid):
    assert shown_grid(grid) is grid
    assert grid.voxels * 0.3 < shown_grid(grid, grid.voxels // 2).voxels <= grid.voxels // 2


def test_surface_has_the_volume_and_looks_outward(grid):
    inside = ball(grid, 6.0)[0].numpy()
    vertices, triangles = surface(inside, grid)
    a, b, c = (vertices[triangles[:, k]] - grid.centre_mm for k in range(3))
    volume = float(np.einsum("na,na->n", a, np.cross(b, c)).sum() / 6)
    assert volume == pytest.approx(inside.sum() * np.prod(grid.spacing_mm), rel=0.12)
    edge = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1)
    assert set(np.unique(edge, axis=0, return_counts=True)[1]) == {2}  # closed


def test_before_matrix_takes_a_bone_to_the_start(material):
    (bone,) = bones_packed(material.moved_labels, {3: shifted(5, 0, 0).matrix}, shifted(3, 0, 0), {3: "L3"})
    assert np.allclose(np.reshape(bone["before"], (4, 4)), shifted(2, 0, 0).matrix)
    assert np.allclose(bone["centre"], material.fixed.grid.centre_mm, atol=0.8)


def test_edges_are_the_outermost_voxels_of_each_label(grid):
    labels = Labels(ball(grid).to(torch.int16) * 9, grid)
    bits = edges([(MOVED, labels), (1, None)], grid)
    assert set(np.unique(bits)) == {0, MOVED}
    assert not bits[labels.data[0].numpy() == 0].any()
    assert 0 < (bits > 0).sum() < int((labels.data > 0).sum())


def test_cells_move_with_the_transform(grid):
    still = cells(torch.zeros(3, *grid.shape), grid, grid)
    period = torch.zeros(3, *grid.shape)
    period[1] = 10.0
    assert (cells(period, grid, grid) == 3 - still).mean() > 0.99  # one cell on, colours swap
    period[1] = 20.0
    assert (cells(period, grid, grid) == still).mean() > 0.99


# -- cohort -------------------------------------------------------------------------------------------------------------------
def test_cohort_puts_the_worst_first():
    good = Entry(name="good", passed=True, warnings=0, folding_percent=0.0, dice=0.9)
    poor = Entry(name="poor", passed=True, warnings=0, folding_percent=0.0, dice=0.5)
    flagged = Entry(name="flagged", passed=False, warnings=1, dice=0.99)
    failed = Entry(name="failed", reason="no overlap")
    assert [one["name"] for one in worst_first([good, flagged, poor, failed])] == ["failed", "flagged", "poor", "good"]


def test_cohort_of_folders(folder, tmp_path):
    write_report(folder / "report.html", material_from(folder))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "error.txt").write_text(f"Traceback\nInputError: /data/DOE/x.nii {HOSTILE}")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "result.json").write_text("{")
    assert write_cohort([tmp_path], tmp_path / "cohort.html", HOSTILE) == 3
    content = (tmp_path / "cohort.html").read_text(encoding="utf-8")
    seen = Seen(content)
    assert seen.words["h1"] == HOSTILE
    assert seen.tags.count("script") == 1
    assert ("href", "case%201/report.html") in seen.attributes
    assert seen.tags.count("img") == 1  # its thumbnail
    assert content.count('class="failed"') == 2
    assert "/data/DOE" not in content


def test_cohort_draws_violins_of_three_and_more():
    cases = [Entry(name=str(k), passed=True, warnings=0, dice=0.8 + 0.01 * k) for k in range(4)]
    assert "Violins of Dice, mean." in cohort_page(cases, "many")
    assert "Violins" not in cohort_page(cases[:2], "few")


def test_a_page_s_summary_cannot_smuggle_a_picture(folder, tmp_path):
    (folder / "report.html").write_text(json_script("summary", {"thumbnail": "https://example.org/x.png"}))
    assert entry(folder, tmp_path)["thumbnail"] is None


def test_cohort_refuses_what_holds_no_result(tmp_path):
    with pytest.raises(InputError, match="None of the folders"):
        write_cohort([tmp_path], tmp_path / "cohort.html", "x")
