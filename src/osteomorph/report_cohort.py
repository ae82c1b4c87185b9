"""A cohort as one table: worst first, failed cases with their reason, thumbnails that open a case."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any, final
from urllib.parse import quote

from osteomorph.errors import InputError

COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("warnings", "warnings", "", 1),
    ("residual_mm", "not rigid, at most", "mm", 1),
    ("folding_percent", "folding", "%", 1),
    ("jacobian_min", "smallest det J", "", -1),
    ("inverse_error_mean_mm", "inverse off by, mean", "mm", 1),
    ("mutual_information", "mutual information", "nats", -1),
    ("gain", "gained by deforming", "nats", -1),
    ("dice", "Dice, mean", "", -1),
    ("hd99_mm", "HD99, mean", "mm", 1),
    ("shift_sd_mm", "± shift, at most", "mm", 1),
    ("seconds", "time", "s", 0),
)
"""Key, heading, unit, and 1 where large is bad, -1 where small is."""

DASH = "\N{EN DASH}"
"""For what was not measured."""

SUMMARY = re.compile(r'<script type="application/json" id="summary">(.*?)</script>', re.DOTALL)
THUMBNAIL = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


@final
class Entry(dict[str, Any]):
    """A case: name, link, figures by column key, thumbnail; or ``reason``, why there is no result."""


def summary(name: str, record: Mapping[str, Any], bones: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one case that a cohort is sorted by; what was not measured has no key."""
    metrics = record.get("metrics", {})
    found: dict[str, Any] = {
        key: metrics.get(key) for key in ("folding_percent", "jacobian_min", "inverse_error_mean_mm", "mutual_information")
    }
    before, after = metrics.get("mutual_information_start"), metrics.get("mutual_information")
    found["gain"] = None if before is None or after is None else after - before
    for key in ("dice", "hd99_mm"):
        values = list(metrics.get(key, {}).values())
        found[key] = sum(values) / len(values) if values else None
    found["residual_mm"] = max((bone.get("rigidity_residual_mm") or 0.0 for bone in bones), default=None)
    found["shift_sd_mm"] = max(
        (float((bone.get("uncertainty") or {}).get("shift_sd_mm") or 0.0) for bone in bones if bone.get("uncertainty")),
        default=None,
    )
    found["seconds"] = sum(record.get("seconds", {}).values()) or None
    found["warnings"] = len(record.get("warnings", ()))
    kept = {key: value for key, value in found.items() if isinstance(value, int | float) and isfinite(value)}
    return {"name": name, "passed": bool(record.get("passed")), **kept}


def case_folders(roots: Sequence[Path]) -> list[Path]:
    """Results at the roots, or in their folders; folders that hold only an error are cases too."""
    found: list[Path] = []
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root} is no folder. Give output folders of osteomorph register, or a folder that holds them.")
        held = _held(root)
        found += held or [part for child in sorted(root.iterdir()) if child.is_dir() for part in _held(child) or _below(child)]
    if not found:
        raise InputError("None of the folders holds a result.json or an error.txt. Give output folders of osteomorph register.")
    return list(dict.fromkeys(found))


def _held(folder: Path) -> list[Path]:
    return [folder] if any((folder / name).is_file() for name in ("result.json", "error.txt", "error.json")) else []


def _below(folder: Path) -> list[Path]:
    return [child for child in sorted(folder.iterdir()) if child.is_dir() and _held(child)]


def entry(folder: Path, beside: Path) -> Entry:
    """One row. ``beside``: the folder of the cohort page, from which links go."""
    from osteomorph.report import REPORT, read_record, without_folders

    name = folder.resolve().name
    if not (folder / "result.json").is_file():
        error = next(folder / file for file in ("error.txt", "error.json") if (folder / file).is_file())
        lines = error.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return Entry(name=name, reason=without_folders(lines[-1] if lines else "no reason given")[:500])
    try:
        record = read_record(folder)
        content = json.loads((folder / "bones.json").read_text(encoding="utf-8"))["bones"]
        out = Entry(summary(name, record, content))
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Entry(name=name, reason=without_folders(f"its files cannot be read: {error}"))
    page = folder / REPORT
    if page.is_file():
        out["link"] = quote(Path(os.path.relpath(page.resolve(), beside.resolve())).as_posix())
        out["thumbnail"] = _thumbnail(page)
    return out


def _thumbnail(page: Path) -> str | None:
    match = SUMMARY.search(page.read_text(encoding="utf-8", errors="replace"))
    try:
        found = json.loads(match[1]).get("thumbnail") if match else None
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, str) and THUMBNAIL.fullmatch(found) else None


def worst_first(entries: Sequence[Entry]) -> list[Entry]:
    """Failed cases, then those that warn, then by how many cases each is worse than, over all figures."""
    ranks: dict[int, float] = {id(entry): 0.0 for entry in entries}
    for key, _, _, sign in COLUMNS[1:]:
        held = [entry for entry in entries if key in entry]
        for one in held:
            ranks[id(one)] += sum(sign * (one[key] - other[key]) > 0 for other in held) / max(len(held), 1)
    return sorted(
        entries,
        key=lambda one: (
            "reason" not in one,
            bool(one.get("passed")),
            -one.get("warnings", 0),
            -ranks[id(one)],
            one["name"],
        ),
    )


def cohort_page(entries: Sequence[Entry], title: str) -> str:
    """cohort.html."""
    from osteomorph.report_page import asset, code_script, frame

    ordered = worst_first(entries)
    good = [one for one in ordered if "reason" not in one]
    columns = [column for column in COLUMNS if any(column[0] in one for one in good)]
    heads = "".join(
        f'<th scope=col data-key="{key}"><button type="button">{name}<small> {unit}</small></button></th>'
        for key, name, unit, _ in columns
    )
    rows = "".join(_row(one, columns) for one in ordered)
    failed = len(ordered) - len(good)
    flagged = sum(not one["passed"] for one in good)
    pictures = _violins(good, columns)
    body = (
        f'<header><div><h1>{escape(title)}</h1><p class="sub">{len(ordered)} cases: {failed} failed, '
        f"{flagged} to look at twice, {len(good) - flagged} passed every check. "
        "Worst first; a heading sorts.</p></div></header><main><section>"
        '<div class="scroll" tabindex="0"><table class="cohort" id="cases"><thead><tr><th scope=col data-key="">'
        '<button type="button">case</button></th><th scope=col>picture</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>{pictures}</main>"
        "<footer><p>Made by osteomorph. For research; not a medical device.</p></footer>"
    )
    return frame(f"{title} - osteomorph", body, [code_script(asset("cohort.js") or "")])


def _row(one: Entry, columns: Sequence[tuple[str, str, str, int]]) -> str:
    name = escape(one["name"])
    if "reason" in one:
        reason = f"<td colspan={len(columns) + 1}>failed: {escape(one['reason'])}</td>"
        return f'<tr class="failed"><th scope=row>{name}</th>{reason}</tr>'
    link = escape(one["link"]) if one.get("link") else None
    first = f'<a href="{link}">{name}</a>' if link else name
    mark = "" if one["passed"] else ' <span class="verdict look">look twice</span>'
    picture = f'<img src="{escape(one["thumbnail"])}" alt="open {name}" loading="lazy">' if one.get("thumbnail") else DASH
    picture = f'<a href="{link}">{picture}</a>' if link else picture
    cells = "".join(
        f'<td data-value="{one[key]}">{one[key]:.4g}</td>' if key in one else f"<td>{DASH}</td>" for key, _, _, _ in columns
    )
    return f"<tr><th scope=row>{first}{mark}</th><td>{picture}</td>{cells}</tr>"


def _violins(good: Sequence[Entry], columns: Sequence[tuple[str, str, str, int]]) -> str:
    """Each figure over all cases, one dot a case; only where there are enough cases for a shape."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from osteomorph.report_pictures import data_uri, small

    drawn = [(column, [one[column[0]] for one in good if column[0] in one]) for column in columns if column[0] != "warnings"]
    drawn = [(column, values) for column, values in drawn if len(values) >= 3]
    if not drawn:
        return ""
    across = min(5, len(drawn))
    down = -(-len(drawn) // across)
    figure = Figure(figsize=(2.3 * across, 2.4 * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax, ((_, name, unit, _), values) in zip(axes, drawn, strict=False):
        if max(values) > min(values):
            ax.violinplot(values, showextrema=False, showmedians=True)
        step = max(1, len(values) - 1)
        ax.plot([1 + 0.16 * (k / step - 0.5) for k in range(len(values))], values, ".", color="#0b5fa5", markersize=4)
        ax.set_title(name, fontsize=9)
        ax.set_ylabel(unit, fontsize=8)
        ax.set_xticks([])
        ax.tick_params(labelsize=7)
    for ax in axes[len(drawn) :]:
        ax.set_axis_off()
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110, format="png")
    names = ", ".join(name for (_, name, _, _), _ in drawn)
    picture = f'<img src="{data_uri(small(stream.getvalue()))}" alt="Violins of {names}.">'
    return f"<section><h2>Over all cases</h2><figure>{picture}</figure></section>"


def write_cohort(folders: Sequence[Path], path: Path, title: str) -> int:
    """The cohort's page; returns the number of cases."""
    from osteomorph.io.files import writing

    entries = [entry(folder, path.parent) for folder in case_folders(folders)]
    with writing(path) as target:
        target.write_text(cohort_page(entries, title), encoding="utf-8")
    return len(entries)
