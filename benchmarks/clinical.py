"""MRs with the voxels that clinics have: slices of 4 mm and more, and CTs of 1 or 3 mm, each in a frame of its own; no labels.

    python benchmarks/clinical.py [PROTOCOL ...] [--modes one-shot default] [--patients 2] [--seed 930] [--labels]

Drawn lumbar patients of `osteomorph simulate`, harmonic soft tissue; the start is looked for, as for anyone's files. Figures as
in peers/metrics.py, on the MR's grid; pieces: found bones that are held rigid; told: whose pose the images tell. --labels gives
the CT's exact ones. CPU seconds are those of the registration in this process, fields for files included.
"""

import argparse
import sys
import time
from dataclasses import dataclass, replace
from typing import final

import torch
from peers.metrics import Known, figures

from osteomorph.image import Labels
from osteomorph.recipes import default, one_shot
from osteomorph.registration import register
from osteomorph.simulate.motion import DIFFICULTIES
from osteomorph.simulate.pair import Settings, simulate
from osteomorph.simulate.subjects import procedural
from osteomorph.transforms import Rigid

Triple = tuple[float, float, float]


@final
@dataclass(frozen=True)
class Protocol:
    """mr_mm: in plane, in plane, from slice to slice; ct_mm: left-right, front-back, from slice to slice."""

    contrast: str
    orientation: str
    mr_mm: Triple
    ct_mm: Triple


PROTOCOLS = {
    "isotropic": Protocol("t2", "sagittal", (1.0, 1.0, 1.0), (0.8, 0.8, 1.0)),
    "sagittal-t2": Protocol("t2", "sagittal", (0.7, 0.7, 4.4), (0.8, 0.8, 1.0)),
    "sagittal-t1": Protocol("t1", "sagittal", (0.7, 0.7, 4.4), (0.8, 0.8, 1.0)),
    "sagittal-t2-ct3": Protocol("t2", "sagittal", (0.7, 0.7, 4.4), (0.9, 0.9, 3.0)),
    "axial-t2": Protocol("t2", "axial", (0.6, 0.6, 4.0), (0.8, 0.8, 1.0)),
    "coronal-t1": Protocol("t1", "coronal", (0.8, 0.8, 4.0), (0.8, 0.8, 1.0)),
}

SHOWN = {
    "bone_mm": "bone TRE mm",
    "bone_p95_mm": "95 %",
    "soft_mm": "soft TRE mm",
    "soft_p95_mm": "95 %",
    "dice": "Dice",
    "folding_percent": "fold %",
    "inverse_mm": "inverse mm",
}


def simulated(protocol: Protocol, seed: int) -> Known:
    settings = Settings(
        view="lumbar",
        fixed_mm=protocol.mr_mm,
        moving_mm=protocol.ct_mm,
        motion=DIFFICULTIES["thesis"],
        contrast=protocol.contrast,
        orientation=protocol.orientation,
    )
    pair = simulate(procedural("lumbar", seed)(0).anatomy, settings, seed)
    assert pair.case.fixed_labels is not None
    unlabelled = pair.fixed_bones.mask() & ~pair.case.fixed_labels.mask()
    soft = Labels(pair.fixed_body.data * ~unlabelled, pair.fixed_body.grid)
    return Known(pair.case, pair.displacement, pair.fixed_body, soft)


def off_mm(start: Rigid, known: Known) -> float:
    """Mean distance of what is in labelled bones from where it is, under a rigid start."""
    labels = known.case.fixed_labels
    assert labels is not None
    points = labels.grid.world((labels.data[0] > 0).nonzero().T.double())[:, ::7]
    return float((start(points) - known.truth(points)).norm(dim=0).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocols", nargs="*", default=list(PROTOCOLS), metavar="PROTOCOL", help=", ".join(PROTOCOLS))
    parser.add_argument("--modes", nargs="+", choices=["one-shot", "default"], default=["one-shot", "default"])
    parser.add_argument("--patients", type=int, default=2)
    parser.add_argument("--seed", type=int, default=930)
    parser.add_argument("--labels", action="store_true", help="give the CT's exact ones")
    options = parser.parse_args()
    if unknown := set(options.protocols) - set(PROTOCOLS):
        parser.error(f"There is no protocol {sorted(unknown)[0]!r}. Choose from {', '.join(PROTOCOLS)}.")
    torch.set_num_threads(1)
    print(f"| protocol | patient | mode | start, off mm | pieces | told | {' | '.join(SHOWN.values())} | CPU s |")
    print("|---" * (len(SHOWN) + 7) + "|", flush=True)
    for name in options.protocols:
        for seed in range(options.seed, options.seed + options.patients):
            known = simulated(PROTOCOLS[name], seed)
            case = replace(known.case, fixed_labels=None)
            for mode in options.modes:
                plan = one_shot() if mode == "one-shot" else default()
                began = time.process_time()
                labels = case.moving_labels if options.labels else None
                found = register(case.fixed, case.moving, moving_labels=labels, plan=plan, threads=1)
                there, back = found.stored, found.stored_inverse
                spent = time.process_time() - began
                values = figures(there, known, back)
                told = 0 if found.exact is None else sum(bone.determined for bone in found.exact.poses.values())
                off = f"{found.start.method}, {off_mm(found.start.rigid, known):.1f}"
                cells = [name, str(seed), mode, off, str(len(found.rigid_labels)), str(told)]
                cells += [f"{values[key]:.3g}" for key in SHOWN]
                print(f"| {' | '.join(cells)} | {spent:.0f} |", flush=True)
                for line in (*found.notes, *found.warnings):
                    print(f"    {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
