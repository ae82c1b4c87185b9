"""The rigid start where frames and fields of view have nothing in common: on images, and on bones named in both.

    python benchmarks/starts.py PAIRS [--cut 0 25 35] [--only NAME] [--one-shot]

PAIRS: a folder of pairs as `peers/pairs.py` writes it. The moving image of each is taken to a frame of its own (turned by up to
12 degrees about each axis, shifted by up to 300 mm, seed 0, 1, ...), and loses so many per cent of its length at the head.
Both starts begin there (the one on images from the centres); "off" is the median, over the bones labelled in both, of how far
the middle of a bone lies from where it is. No label is given to either. --one-shot: `register` without optimisation from there
too, and each bone's distance under its transform.
"""

import argparse
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from osteomorph.case import Case
from osteomorph.errors import StartError
from osteomorph.image import Image, Labels
from osteomorph.initialise import Start, initialise
from osteomorph.io import read_image, read_labels
from osteomorph.prepare import prepare
from osteomorph.recipes import default
from osteomorph.registration import register
from osteomorph.start_bones import start_on_bones
from osteomorph.threads import threads
from osteomorph.transforms import Rigid, Transform


def taken_away(image: Image, seed: int, cut: float) -> tuple[Image, np.ndarray]:
    """The image in another frame without its upper end, and the motion that took it there."""
    draw, motion = np.random.default_rng(seed), np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(draw.uniform(-12, 12, 3), degrees=True).as_matrix()
    centre = image.grid.centre_mm
    motion[:3, 3] = centre - motion[:3, :3] @ centre + draw.uniform(-300, 300, 3)
    axis = image.grid.axis("IS")
    size, upwards = image.grid.shape[axis], image.grid.affine[2, axis] > 0
    kept = size - int(cut * size)
    part = [slice(0, n) for n in image.grid.shape]
    part[axis] = slice(0, kept) if upwards else slice(size - kept, size)
    shorter = image.cropped((part[0], part[1], part[2]))
    return replace(shorter, grid=shorter.grid.moved(motion)), motion


def off_mm(found: Transform, motion: np.ndarray, fixed: Labels, moving: Labels) -> list[float]:
    """Of each bone that is labelled in both."""
    out = []
    for label in sorted(set(fixed.ids()) & set(moving.ids())):
        here, there = (m.grid.world((m.data[0] == label).nonzero().T.double()).mean(1, keepdim=True) for m in (fixed, moving))
        out.append(float((found(here) - Rigid(motion)(there)).norm()))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--cut", type=float, nargs="+", default=[0, 25, 35], help="per cent of the moving image's length")
    parser.add_argument("--only", default="", help="pairs whose folder has this in its name")
    parser.add_argument("--one-shot", action="store_true")
    given = parser.parse_args()
    plan = default()
    print(f"{date.today()}, one thread\n\n| pair | cut % | images: off mm | warnings | CPU s | bones: off mm | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for folder in sorted(path.parent for path in given.pairs.glob(f"*{given.only}*/*/fixed.nii.gz")):
        fixed, moving = (read_image(folder / f"{side}.nii.gz") for side in ("fixed", "moving"))
        labels = [read_labels(folder / f"{side}_labels.nii.gz") for side in ("fixed", "moving")]
        for seed, cut in enumerate(given.cut):
            elsewhere, motion = taken_away(moving, seed, cut / 100)
            case = Case(fixed, elsewhere)
            prepared = prepare(case, plan.prepare)

            def on_images(prepared: Case = prepared) -> Start:
                return initialise(prepared, plan.initialise, plan.seed, from_centres=True)

            def on_bones(case: Case = case, prepared: Case = prepared) -> Start:
                return start_on_bones(case, prepared, plan.initialise, plan.seed)

            cells = [f"{folder.parent.name}/{folder.name}", f"{cut:g}"]
            for method in (on_images, on_bones):
                began = time.process_time()
                try:
                    with threads(1):
                        start = method()
                    cells.append(f"{np.median(off_mm(start.rigid, motion, *labels)):.1f}")
                    cells += [str(len(start.warnings))] if method is on_images else []
                except StartError:
                    cells += ["refused"] + ([""] if method is on_images else [])
                cells.append(f"{time.process_time() - began:.1f}")
            print(f"| {' | '.join(cells)} |", flush=True)
            if given.one_shot:
                result = register(fixed, elsewhere, initial="centres", refine=False, threads=1)
                shown = ", ".join(f"{value:.2f}" for value in off_mm(result.transform, motion, *labels))
                print(f"    one shot, start on {result.start.method}: {shown} mm", flush=True)


if __name__ == "__main__":
    main()
