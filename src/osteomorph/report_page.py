"""The HTML of one case. Whatever came from outside is text: escaped in HTML, and in JSON inside a script."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from math import hypot, isfinite
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any

from osteomorph.geometry import Grid
from osteomorph.report_cohort import DASH, summary
from osteomorph.report_pictures import data_uri, maps_picture, overlay_picture, thumbnail
from osteomorph.report_volumes import (
    FIXED,
    MAP_MM,
    MOVED,
    MOVING,
    bones_packed,
    coarser,
    edges,
    images_packed,
    maps_packed,
    packed,
    text,
)
from osteomorph.threads import spread

if TYPE_CHECKING:
    from osteomorph.report import Material

POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; font-src data:; connect-src data: blob:; "
    "worker-src blob:; base-uri 'none'; form-action 'none'; script-src 'unsafe-inline'"
)
"""The browser itself refuses any request that the page might make."""

HOUNSFIELD = -500
"""An image of whole numbers that goes below this is a CT."""


def asset(name: str) -> str | None:
    """A file of the page; None for the viewer where it has not been built."""
    path = files("osteomorph") / "report_assets" / name
    return path.read_text(encoding="utf-8") if path.is_file() else None


def frame(title: str, body: str, scripts: Iterable[str] = ()) -> str:
    """A whole page: head, style, body and scripts."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">',
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>\n<style>\n{asset("report.css")}</style>\n</head>',
        f"<body>\n{body}\n",
        *scripts,
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def json_script(name: str, content: Any) -> str:
    """JSON in a script element, in which no markup can begin."""
    coded = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        coded = coded.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="{name}">{coded}</script>'


def code_script(code: str) -> str:
    return "<script>" + code.replace("</script", "<\\/script").replace("<!--", "<\\!--") + "</script>"


def page(material: "Material") -> str:
    """report.html of a case."""
    viewer = asset("built/viewer.js")
    makers: list[Callable[[Material], Any]] = [overlay_picture, maps_picture]
    first, maps, *volumes = spread(lambda make: make(material), makers if viewer is None else [*makers, *VOLUMES])
    content = json_script("case", viewer_data(material, *volumes)) if volumes else ""
    notices = asset("built/NOTICES.txt") if viewer is not None else None
    body = "\n".join(
        [
            _header(material),
            "<main>",
            _notes(material),
            _figures(material),
            _viewer() if viewer is not None else "",
            _pictures(first, maps, viewer is not None),
            _bones(material),
            _certificate(material.record),
            _provenance(material.record),
            "</main>",
            _footer(notices),
        ]
    )
    entry = {**summary(material.name, material.record, material.bones), "thumbnail": data_uri(thumbnail(first))}
    scripts = [json_script("summary", entry), content, code_script(viewer) if viewer is not None else ""]
    return frame(f"{material.name} - osteomorph", body, scripts)


# -- sections -----------------------------------------------------------------------------------------------------------------
def _header(material: "Material") -> str:
    from osteomorph.report import commanded

    record = material.record
    passed = bool(record.get("passed"))
    verdict = '<p class="verdict good">checks passed</p>' if passed else '<p class="verdict look">look twice</p>'
    sides = []
    for side in ("fixed", "moving"):
        grid = record.get("grids", {}).get(side, {})
        name = commanded(record, side)
        shape = " \N{MULTIPLICATION SIGN} ".join(map(str, grid.get("shape", ())))
        file = PureWindowsPath(name).name if name else ""
        shown = ", ".join(filter(None, (file, f"{shape} {grid.get('axcodes', '')}".strip())))
        sides.append(f"{side}: {escape(shown)}")
    return (
        f'<header><div><h1 title="{escape(material.name)}">{escape(material.name)}</h1>'
        f'<p class="sub">{"<br>".join(sides)}</p></div>{verdict}</header>'
    )


def _notes(material: "Material") -> str:
    from osteomorph.report import without_folders

    warnings = [f"<li>{escape(without_folders(str(text)))}</li>" for text in material.record.get("warnings", ())]
    notes = [f'<li class="note">{escape(note)}</li>' for note in material.notes]
    if not warnings and not notes:
        return ""
    return f'<section aria-label="warnings"><ul class="warnings">{"".join(warnings + notes)}</ul></section>'


def _figures(material: "Material") -> str:
    metrics, bones = material.record.get("metrics", {}), material.bones
    residuals = [bone["rigidity_residual_mm"] for bone in bones if bone.get("rigidity_residual_mm") is not None]
    tiles = [
        ("bones", str(len(bones)), ""),
        ("not rigid, at most", length_text(max(residuals)) if residuals else DASH, "mm"),
        ("folding", number(metrics.get("folding_percent"), "3g"), "%"),
        ("smallest det J", number(metrics.get("jacobian_min"), "2f"), ""),
        ("inverse off by, mean", number(metrics.get("inverse_error_mean_mm"), "4f"), "mm"),
        (
            "mutual information",
            f"{number(metrics.get('mutual_information_start'), '3f')} → {number(metrics.get('mutual_information'), '3f')}",
            "nats",
        ),
        ("Dice, mean", number(mean(metrics.get("dice")), "3f"), ""),
        ("HD99, mean", number(mean(metrics.get("hd99_mm")), "2f"), "mm"),
        ("time", number(sum(material.record.get("seconds", {}).values()), "0f"), "s"),
    ]
    cells = [
        f"<div><dt>{name}</dt><dd>{value} <small>{unit}</small></dd></div>" for name, value, unit in tiles if DASH not in value
    ]
    return f'<section aria-label="key figures"><dl class="tiles">{"".join(cells)}</dl></section>'


def _viewer() -> str:
    return f'<section id="viewer" aria-label="interactive viewer" hidden>{asset("viewer.html")}</section>'


def _pictures(first: bytes, second: bytes, viewer: bool) -> str:
    told = (
        '<p class="hint needs-webgl" hidden>This browser has no WebGL 2, so the interactive viewer is off.</p>'
        if viewer
        else '<p class="hint">This report was written without the interactive viewer. Install Node.js, run '
        "<code>make viewer</code> in a checkout of osteomorph, then <code>osteomorph report DIR</code>.</p>"
    )
    alt = (
        "Sagittal, coronal and axial slices through the bones: fixed; moving before; moved; checkerboards of fixed with both. "
        "Fixed outlines solid green, moving dotted red, moved dashed yellow."
    )
    return (
        f'<section id="pictures"><h2>Pictures</h2>{told}'
        f'<figure><img src="{data_uri(first)}" alt="{alt}"><figcaption>{alt}</figcaption></figure>'
        f'<figure><img src="{data_uri(second)}" alt="Maps of displacement, local volume change, and a deformed grid.">'
        "<figcaption>Displacement and local volume change without the rigid start, and a regular grid as the transform deforms "
        "it. In both kinds letters name the patient's sides.</figcaption></figure></section>"
    )


def _bones(material: "Material") -> str:
    if not material.bones:
        return ""
    metrics = material.record.get("metrics", {})
    dice, hd99 = metrics.get("dice", {}), metrics.get("hd99_mm", {})
    heads = [("bone", ""), ("rotation", "deg"), ("shift", "mm"), ("rotation after start", "deg"), ("shift after start", "mm")]
    heads += [("± rotation", "deg"), ("± shift", "mm"), ("not rigid, at most", "mm"), ("volume", "ml")]
    if dice:
        heads += [("Dice", ""), ("HD99", "mm")]
    rows = []
    for bone in material.bones:
        sure = bone.get("uncertainty") or {}
        values = [
            number(bone.get("rotation_deg"), "2f"),
            number(hypot(*bone["displacement_mm"]), "2f"),
            number(bone.get("rotation_after_start_deg"), "2f"),
            number(hypot(*bone["displacement_after_start_mm"]), "2f"),
            number(sure.get("rotation_sd_deg"), "2f"),
            number(sure.get("shift_sd_mm"), "2f"),
            length_text(bone.get("rigidity_residual_mm")),
            number(bone.get("volume_mm3", 0) / 1000, "1f"),
        ]
        if dice:
            values += [number(dice.get(bone["name"]), "3f"), number(hd99.get(bone["name"]), "2f")]
        flag = "" if sure.get("determined", True) else ' <abbr title="The images do not determine this pose.">?</abbr>'
        rows.append((escape(str(bone["name"])) + flag, values))
    return (
        '<section><h2>Bones</h2><p class="hint">Fixed to moving. Shifts are those of a bone\'s centroid, in mm; “after '
        "start” is without the rigid start; ± is one standard deviation.</p>" + table(heads, rows) + "</section>"
    )


def _certificate(record: Mapping[str, Any]) -> str:
    held = record.get("certificate")
    if not held:
        return ""
    pair = held.get("narrowest_pair")
    lines = [
        ("largest distance of a bone from its rigid pose", length_text(max(held["residual_mm"].values(), default=None)), "mm"),
        ("volume of bone rims, where two bones are too near for both to be rigid", total(held["rim_mm3"]), "mm³"),
        ("smallest Jacobian determinant", number(held.get("least_determinant"), "3f"), ""),
        ("voxels that fold", number(held.get("folding_percent"), "3g"), "%"),
        ("inverse off by, mean", number(held.get("inverse_mean_mm"), "4f"), "mm"),
        ("inverse off by, at most", number(held.get("inverse_max_mm"), "3f"), "mm"),
    ]
    if held.get("given_away_mm3"):
        text_ = "volume that found bones gave away where they are too near to one another"
        lines.insert(2, (text_, total(held["given_away_mm3"]), "mm³"))
    if pair:
        text_ = f"narrowest gap of two bones along the motion (labels {pair[0]} and {pair[1]})"
        lines.append((text_, number(held.get("narrowest_gap_mm"), "2f"), "mm"))
    rows = "".join(f"<tr><th scope=row>{escape(name)}</th><td>{value} {unit}</td></tr>" for name, value, unit in lines)
    return (
        '<section><h2>Certificate</h2><p class="hint">What is promised of the transform as it was written, and measured on it.'
        f'</p><div class="scroll"><table class="plain">{rows}</table></div></section>'
    )


def _provenance(record: Mapping[str, Any]) -> str:
    from osteomorph.report import shown_command

    versions = record.get("versions", {})
    facts: list[tuple[str, Any]] = [
        ("osteomorph", record.get("version")),
        ("with", ", ".join(f"{name} {value}" for name, value in versions.items() if name != "platform")),
        ("on", versions.get("platform")),
        ("command", shown_command(record)),
        ("plan", f"{record.get('plan', {}).get('name', '')} ({str(record.get('plan_sha256', ''))[:12]})"),
        ("seed", record.get("seed")),
        ("rigid start", record.get("start", {}).get("method")),
        ("seconds", ", ".join(f"{stage} {value:.1f}" for stage, value in record.get("seconds", {}).items())),
        ("direction", record.get("direction")),
        ("units", record.get("units")),
    ]
    facts += [(f"SHA-256 {name.replace('_', ' ')}", digest) for name, digest in record.get("inputs", {}).items()]
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts if value not in (None, ""))
    plan = escape(json.dumps(record.get("plan", {}), indent=1))
    return (
        f'<section><h2>Provenance</h2><dl class="facts">{rows}</dl>'
        f"<details><summary>the whole plan</summary><pre>{plan}</pre></details></section>"
    )


def _footer(notices: str | None) -> str:
    carried = (
        f"<details><summary>licences of the viewer's parts</summary><pre>{escape(notices)}</pre></details>" if notices else ""
    )
    return f"<footer><p>Made by osteomorph. For research; not a medical device.</p>{carried}</footer>"


# -- the viewer's data --------------------------------------------------------------------------------------------------------
def viewer_images(material: "Material") -> tuple[Grid, dict[str, Any]]:
    """The three images, and the grid that they are shown on."""
    images = {"fixed": material.fixed, "before": material.before, "moved": material.moved}
    grid, volumes = images_packed(images)
    for name, side in (("fixed", material.fixed), ("before", material.moved), ("moved", material.moved)):
        volumes[name]["unit"] = "HU" if float(side.data.min()) < HOUNSFIELD else "units of the image"
    volumes["before"]["window"] = volumes["moved"]["window"]
    return grid, volumes


def viewer_bones(material: "Material") -> list[dict[str, Any]]:
    """Surfaces of bones."""
    region = material.moved_labels or material.fixed_labels
    poses = {int(bone["label"]): as_matrix(bone["matrix"]) for bone in material.bones}
    names = {int(bone["label"]): str(bone["name"]) for bone in material.bones}
    return bones_packed(region, poses, material.start, names) if region is not None else []


VOLUMES = (viewer_images, viewer_bones)
"""Made side by side, with the pictures."""


def viewer_data(material: "Material", shown: tuple[Grid, dict[str, Any]], bones: list[dict[str, Any]]) -> dict[str, Any]:
    """Volumes, surfaces and where to begin, as the viewer reads them; from what `VOLUMES` made."""
    from osteomorph.slices import middle_of_bones

    grid, volumes = shown
    kinds = [(FIXED, material.fixed_labels), (MOVING, material.before_labels), (MOVED, material.moved_labels)]
    held = [labels for _, labels in kinds if labels is not None]
    makers: list[Callable[[], Any]] = [
        lambda: maps_packed(material.warp_on(coarser(grid, MAP_MM)), grid),
        lambda: text(packed(edges(kinds, grid), grid)) if held else None,
    ]
    maps, outlines = spread(lambda make: make(), makers)
    return {
        "affine": grid.affine.tolist(),
        "shape": list(grid.shape),
        "images": volumes,
        "maps": maps,
        "edges": outlines,
        "kinds": [labels is not None for _, labels in kinds],
        "at_mm": middle_of_bones(material.fixed.grid, held).tolist(),
        "bones": bones,
    }


def as_matrix(rows: Sequence[Sequence[float]]) -> Any:
    import numpy as np

    return np.array(rows, dtype=np.float64)


# -- numbers ------------------------------------------------------------------------------------------------------------------
def table(heads: Sequence[tuple[str, str]], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table that scrolls by itself; the first cell of each row is HTML and its heading."""
    top = "".join(f"<th scope=col>{name}{f'<small> {unit}</small>' if unit else ''}</th>" for name, unit in heads)
    lines = "".join(f"<tr><th scope=row>{first}</th>{''.join(f'<td>{v}</td>' for v in rest)}</tr>" for first, rest in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def number(value: float | None, form: str) -> str:
    """A figure, or a dash where there is none."""
    return DASH if value is None or not isfinite(value) else format(value, f".{form}")


def length_text(value: float | None) -> str:
    """Millimetres; what is below a micrometre says so."""
    if value is None or not isfinite(value):
        return DASH
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


def mean(values: Mapping[str, float] | None) -> float | None:
    return sum(values.values()) / len(values) if values else None


def total(values: Mapping[Any, float]) -> str:
    return number(sum(values.values()), "0f")
