"""What a registration costs as its images grow: wall and processor time and peak memory of the whole command.

    python benchmarks/sizes.py PAIR SIZES.csv --shapes 128,128,128 256,256,256 [--modes one-shot default] [--plan FILE]

PAIR is the folder of one simulated pair (`osteomorph simulate`). Both its images are interpolated onto grids of each shape over
their own fields of view, so that anatomy and motion stay as they are, and registered without labels. A row that the CSV holds
is not run again. Errors are means in mm over voxels of labelled bones and of soft tissue within 30 mm of them.
"""

import argparse
import csv
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from osteomorph import io
from osteomorph.geometry import Grid
from osteomorph.image import Image
from osteomorph.measure import SOFT_REACH_MM, target_registration_error
from osteomorph.resampling import resample
from osteomorph.transforms import Rigid

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from metrics import Known, read_known
from spent import run

MODES = {"one-shot": ("--no-refine",), "default": ()}
COLUMNS = ("shape", "spacing_mm", "mode", "threads", "wall_s", "cpu_s", "peak_gb", "code", "bone_mm", "soft_mm", "prepared_mm")
LIMIT_S = 3600.0
POINTS = 300_000
"""About how many voxels of bone, and of soft tissue, errors are measured at."""


def shaped(image: Image, shape: tuple[int, int, int]) -> Image:
    """The image over the same field of view on so many voxels along its axes."""
    spacing = image.grid.size_mm / np.array(shape)
    affine = np.eye(4)
    affine[:3, :3] = image.grid.direction * spacing
    affine[:3, 3] = image.grid.centre_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return resample(image, Rigid.identity(), Grid(shape, affine), outside="border")


def judged(known: Known) -> dict[str, Tensor]:
    """World mm of what errors are measured at, where the moving image shows it."""
    labels = known.case.fixed_labels
    assert labels is not None
    bone = labels.mask()[0]
    near = ndimage.distance_transform_edt(~bone.numpy(), sampling=labels.grid.spacing_mm) <= SOFT_REACH_MM
    found = {}
    for name, mask in (("bone_mm", bone), ("soft_mm", torch.from_numpy(near) & known.soft.mask()[0] & ~bone)):
        index = mask.nonzero()
        points = labels.grid.world(index[:: max(1, len(index) // POINTS)].T.double())
        found[name] = points[:, known.case.moving.grid.contains(known.truth(points))]
    return found


def errors(out: Path, known: Known, points: dict[str, Tensor]) -> dict[str, float]:
    """Of a result, and the spacing it was registered at; nothing where there is none."""
    if not (out / "result.json").is_file():
        return {}
    transform = io.read_transform(out / "transform.h5")
    found = {name: float(target_registration_error(transform, known.truth, here).mean()) for name, here in points.items()}
    return found | {"prepared_mm": json.loads((out / "result.json").read_text())["plan"]["prepare"]["spacing_mm"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shapes", nargs="+", required=True, help="three numbers of voxels each: 256,256,256")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    told = parser.parse_args()
    rows = list(csv.DictReader(told.out.open())) if told.out.is_file() else []
    known = {(row["shape"], row["mode"], row["threads"]) for row in rows}
    pair = read_known(told.pair)
    given, points = {"fixed": pair.case.fixed, "moving": pair.case.moving}, judged(pair)
    for text in told.shapes:
        i, j, k = (int(n) for n in text.split(","))
        name = f"{i}x{j}x{k}"
        modes = [mode for mode in told.modes if (name, mode, str(told.threads)) not in known]
        with tempfile.TemporaryDirectory(dir=told.out.parent) as place:
            folder = Path(place)
            if modes:
                for side, image in given.items():
                    one = shaped(image, (i, j, k))
                    spacing = " ".join(f"{h:.2f}" for h in one.grid.spacing_mm) if side == "fixed" else spacing
                    io.write_image(folder / f"{side}.nii.gz", Image(one.data.round(), one.grid, np.dtype(np.int16)))
                    del one
            for mode in modes:
                command = [str(Path(sys.executable).parent / "osteomorph"), "register", "--threads", str(told.threads)]
                command += ["-f", str(folder / "fixed.nii.gz"), "-m", str(folder / "moving.nii.gz")]
                command += ["-o", str(folder / "out"), *MODES[mode]]
                command += [] if told.plan is None else ["--plan", str(told.plan)]
                shutil.rmtree(folder / "out", ignore_errors=True)
                spent = run(command, told.out.with_name(f"{told.out.stem}-{name}-{mode}.log"), dict(environment()), LIMIT_S)
                made = {"shape": name, "spacing_mm": spacing, "mode": mode, "threads": told.threads, "wall_s": spent.wall_s}
                made |= {"cpu_s": spent.cpu_s, "peak_gb": spent.peak_gb, "code": spent.code}
                made |= errors(folder / "out", pair, points)
                rows.append({key: f"{v:.4g}" if isinstance(v, float) else str(v) for key, v in made.items()})
                with told.out.open("w", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    writer.writeheader()
                    writer.writerows(rows)
                print(rows[-1], flush=True)


def environment() -> dict[str, str]:
    """This process's, without its own number of threads."""
    import os

    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
