"""The demonstration: a simulated CT and MR, registered and measured against the truth."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from osteomorph.plan import Plan

if TYPE_CHECKING:
    from rich.table import Table

    from osteomorph.result import Registration
    from osteomorph.simulate.pair import SimulatedPair

MARKER = "table.json"
"""The rows, and the file by which an earlier demonstration is known."""

Row = dict[str, Any]


@final
class Column(NamedTuple):
    """A figure of the table: key in a row, heading, and how it is written."""

    key: str
    heading: str
    form: str


COLUMNS = (
    Column("tre_bone_mean_mm", "TRE bone mm", ".3f"),
    Column("tre_bone_max_mm", "bone max mm", ".2f"),
    Column("tre_soft_mean_mm", "TRE soft mm", ".3f"),
    Column("dice_mean", "Dice", ".4f"),
    Column("hd99_mean_mm", "HD99 mm", ".2f"),
    Column("det_mean", "det J bone", ".4f"),
    Column("det_sd", "SD", ".4f"),
    Column("folding_percent", "folding %", ".3g"),
    Column("seconds", "s", ".1f"),
    Column("peak_memory_gb", "peak GB", ".2f"),
)


def run_demo(
    folder: Path,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    spacing_mm: float = 1.5,
    plan: str | Path | Plan = "default",
) -> tuple[list[Row], tuple[str, ...]]:
    """One row each for the identity, the rigid start, the result and the truth; and the registration's warnings.

    Writes into ``folder``, whole or not at all: ``pair/`` (the simulated files), ``result/`` (what ``register`` makes of them,
    given the moving labels), ``overlay.png``, ``table.md`` and ``table.json``. The result that is measured is the transform
    as it was written. Errors at points: mean and maximum over bone, mean over soft tissue within 30 mm of bone.

    seed: of the pair. spacing_mm: of the pair's voxels. Raises InputError where the folder cannot be written.
    """
    from osteomorph import __version__
    from osteomorph.io import OutputFolder, write_json
    from osteomorph.registration import register
    from osteomorph.simulate.phantom import phantom
    from osteomorph.simulate.write import save

    tell = progress or (lambda stage, done, total: None)
    with OutputFolder(folder, overwrite, marker=MARKER) as output:
        out = output.path
        tell("simulate", 0, 1)
        pair = phantom(seed, spacing_mm=spacing_mm)
        save(pair, out / "pair")
        tell("simulate", 1, 1)
        fixed, moving, labels = (out / "pair" / f"{name}.nii.gz" for name in ("fixed", "moving", "moving_labels"))
        names = dict(pair.case.moving_labels.names) if pair.case.moving_labels is not None else None
        result = register(fixed, moving, moving_labels=labels, bone_labels=names, plan=plan, progress=progress)
        result.write(out / "result")
        tell("measure", 0, 1)
        rows = _rows(pair, result, out / "result" / "transform.h5")
        _draw(result, pair, out / "overlay.png")
        tell("measure", 1, 1)
        (out / "table.md").write_text(markdown(rows), encoding="utf-8")
        write_json(out / MARKER, {"version": __version__, "seed": seed, "plan": result.plan.name, "rows": rows})
    return rows, result.warnings


def _rows(pair: "SimulatedPair", result: "Registration", written: Path) -> list[Row]:
    from osteomorph.io import read_transform
    from osteomorph.measure import measure
    from osteomorph.memory import peak_bytes
    from osteomorph.transforms import Rigid

    cost = {"seconds": sum(result.seconds.values()), "peak_memory_gb": peak_bytes() / 2**30}
    transforms = {
        "identity": Rigid.identity(),
        "rigid start": result.start.rigid,
        "result": read_transform(written),
        "truth": pair.truth,
    }
    rows = []
    for name, transform in transforms.items():
        row = {"name": name, **measure(transform, pair.case, pair.truth, pair.fixed_body)}
        rows.append({**row, **cost} if name == "result" else row)
    return rows


def _draw(result: "Registration", pair: "SimulatedPair", path: Path) -> None:
    from osteomorph.pictures import overlay
    from osteomorph.resampling import resample

    case, grid, start = result.case, result.case.fixed.grid, result.start.rigid
    overlay(
        path,
        case.fixed,
        resample(case.moving, start, grid),
        result.moved,
        pair.case.fixed_labels,
        None if case.moving_labels is None else resample(case.moving_labels, start, grid),
        result.moved_labels,
        result.warp.displacement(grid),
        "simulated pair: fixed MR, moving CT",
    )


def _cells(row: Row) -> list[str]:
    return [row["name"], *(format(row[column.key], column.form) if column.key in row else "" for column in COLUMNS)]


def table(rows: list[Row]) -> "Table":
    """The rows for a terminal."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 0))
    shown.add_column("")
    for column in COLUMNS:
        shown.add_column(column.heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(*_cells(row))
    return shown


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [["", *(column.heading for column in COLUMNS)], ["---", *("---:" for _ in COLUMNS)], *map(_cells, rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
