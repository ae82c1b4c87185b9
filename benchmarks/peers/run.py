"""Peers, this package and references side by side on the same pairs.

    python benchmarks/peers/run.py --pairs DIR --envs DIR --out results.csv [METHOD ...] [--only 'lumbar-*/*'] [--labels exact]
        [--network FILE]

DIR of pairs is one that pairs.py or `osteomorph simulate` wrote (pairs aligned already: nothing is given a start); that of
environments is what environments.py made. Every method runs in a process of its own, on --threads threads, and costs what that
process and its children spend: wall, CPU (user and system), peak resident memory; seconds are those of the registration call
alone. A row that the CSV holds is not run again; a method that cannot run or fails is said and left out. table.py prints the
table. What a method wrote is kept beside the CSV, in NAME-work, with --keep; its log and meta.json always.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import table
from methods import METHODS, Method, command
from metrics import FIGURES, Known, as_tensor, figures, read_known, to_ras
from spent import Spent
from spent import run as measured

from osteomorph.geometry import Grid
from osteomorph.io import read_labels, read_transform
from osteomorph.transforms import Displacement, Transform

COSTS = ("wall_s", "cpu_s", "peak_gb", "seconds")
COLUMNS = ("pair", "method", "role", "labels", "threads", *FIGURES, *COSTS, "versions")
LABELS = {"exact": "moving_labels.nii.gz", "observed": "moving_labels_observed.nii.gz"}


def field(folder: Path, name: str, frame: str | None, grid: Grid) -> Transform:
    """A transform as an adapter wrote it."""
    path = folder / name
    if path.suffix != ".npy":
        return read_transform(path)
    vectors = to_ras(np.load(path), str(frame), grid.affine)
    return Displacement(as_tensor(vectors), grid)


def measured_row(folder: Path, known: Known) -> tuple[dict[str, float], dict[str, object]]:
    """Figures of what an adapter left in its folder, and its meta.json."""
    meta = json.loads((folder / "meta.json").read_text())
    case = known.case
    there = field(folder, meta["displacement"], meta["frame"], case.fixed.grid)
    back = None
    if "inverse" in meta:
        on = case.fixed.grid if meta["inverse_on"] == "fixed" else case.moving.grid
        back = field(folder, meta["inverse"], meta["frame"], on)
    bones = read_labels(folder / str(meta["bones"]), case.fixed.grid) if "bones" in meta else None
    return figures(there, known, back, bones), meta


def row(pair: Path, name: str, method: Method, known: Known, work: Path, options: argparse.Namespace) -> dict[str, str] | None:
    """One method on one pair; None where it cannot run or fails, which is said."""
    folder = work / method.name / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    count = str(options.threads)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), count)
    try:
        line = command(method, pair, folder, options.envs, LABELS[options.labels])
        network = {} if options.network is None else {"OSTEOMORPH_NETWORK": str(options.network.absolute())}
        spent: Spent = measured(line, folder / "log.txt", os.environ | threads | network, options.limit)
        if spent.code != 0:
            raise RuntimeError(f"exit code {spent.code}, see {folder / 'log.txt'}")
        found, meta = measured_row(folder, known)
    except (FileNotFoundError, RuntimeError) as error:
        print(f"{name} {method.name}: left out: {error}", file=sys.stderr, flush=True)
        return None
    if not options.keep:
        for part in folder.iterdir():
            if part.name not in ("log.txt", "meta.json"):
                shutil.rmtree(part) if part.is_dir() else part.unlink()
    costs = (spent.wall_s, spent.cpu_s, spent.peak_gb, float(str(meta["seconds"])))
    labels = method.labels if method.labels != "moving" else f"moving, {options.labels}"
    out = {"pair": name, "method": method.name, "role": method.role, "labels": labels, "threads": count}
    out |= {key: f"{value:.6g}" for key, value in found.items()}
    out |= {key: f"{value:.4g}" for key, value in zip(COSTS, costs, strict=True)}
    return out | {"versions": json.dumps(meta["versions"])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="all by default: " + ", ".join(METHODS))
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--envs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="*", help="pattern of the pairs to run, as SET/pairNNN")
    parser.add_argument("--labels", choices=tuple(LABELS), default="exact", help="moving labels: exact, or as segmented")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which a method is stopped")
    parser.add_argument("--network", type=Path, help="a bone network for this package, in place of the one in its box")
    parser.add_argument("--keep", action="store_true", help="keep the fields")
    options = parser.parse_args()
    unknown = sorted(set(options.methods) - set(METHODS))
    if unknown:
        parser.error(f"There is no method {unknown[0]!r}. Choose from {', '.join(METHODS)}.")
    found = sorted(path.parent for path in options.pairs.rglob("pair.json"))
    pairs = [(path, path.relative_to(options.pairs).as_posix()) for path in found]
    pairs = [(path, name) for path, name in pairs if Path(name).match(options.only)]
    if not pairs:
        parser.error(f"No pair matches {options.only} in {options.pairs}. Make some with pairs.py.")
    rows = table.read(options.out) if options.out.exists() else []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    work = options.out.with_name(options.out.stem + "-work").absolute()
    wanted = [METHODS[name] for name in options.methods or METHODS]
    left_out = 0
    for path, name in pairs:
        done = {r["method"] for r in rows if r["pair"] == name}
        to_do = [method for method in wanted if method.name not in done]
        known = read_known(path) if to_do else None
        for method in to_do:
            assert known is not None
            new = row(path.absolute(), name, method, known, work, options)
            if new is None:
                left_out += 1
                continue
            rows.append(new)
            table.write(options.out, rows, COLUMNS)
            print(name, method.name, *(f"{key} {new.get(key, '-')}" for key in ("bone_mm", "soft_mm", "cpu_s")), flush=True)
    return 1 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
