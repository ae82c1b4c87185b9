"""Whether a rigid start on images says when two images do not belong together.

    python benchmarks/mismatched.py [--seed 900] [-n 3]

Drawn patients of `osteomorph simulate`, -n of each view (lumbar, knee, pelvis, thorax), 2 mm, one CT and one MR each. "same":
both of one patient. "patient": the MR of one and the CT of the next, same view. "region": the MR of one view and the CT of
another and of the next patient (a seed's views are of one patient, and may share bones), begun from the centres. Where
OSTEOMORPH_TEST_DATA is set, "real": each MR there onto the two larger CTs, other patients'. Of each start its mutual
information in nats, and its warnings.
"""

import argparse
import os
from collections.abc import Iterator
from datetime import date
from itertools import permutations
from pathlib import Path

from anatomies import MOTIONS, simulated

from osteomorph.case import Case
from osteomorph.errors import StartError
from osteomorph.image import Image
from osteomorph.initialise import initialise
from osteomorph.io import read_image
from osteomorph.prepare import prepare
from osteomorph.recipes import default
from osteomorph.threads import threads

REAL_CT = ("ct-abdomen-pelvis-3mm/ct.nii.gz", "ct-lumbopelvic/ct.nii.gz")
REAL_MR = "mr-lumbar-[tw]*/*_mr.nii.gz"


def pairs(seed: int, count: int) -> Iterator[tuple[str, str, Image, Image]]:
    """Kind, name, fixed, moving."""
    drawn = {(view, k): simulated(view, seed + k, 2.0)[0].case for view in sorted(MOTIONS) for k in range(count)}
    for (view, k), case in drawn.items():
        yield "same", f"{view} {k}", case.fixed, case.moving
        yield "patient", f"{view} {k}", case.fixed, drawn[view, (k + 1) % count].moving
    for one, other in permutations(sorted(MOTIONS), 2):
        for k in range(count):
            yield "region", f"{one} {k}, {other}", drawn[one, k].fixed, drawn[other, (k + 1) % count].moving
    if folder := os.environ.get("OSTEOMORPH_TEST_DATA"):
        for path in sorted(Path(folder).glob(REAL_MR)):
            for name in REAL_CT:
                shown = f"{path.parent.name}/{path.stem[:2]}, {Path(name).parent}"
                yield "real", shown, read_image(path), read_image(Path(folder) / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=900)
    parser.add_argument("-n", type=int, default=3)
    given = parser.parse_args()
    if given.n < 2:
        parser.error("-n takes a number from 2 on: the next patient has to be another one.")
    plan, told = default(), dict[str, list[bool]]()
    print(f"{date.today()}\n\n| kind | pair | nats | warnings |\n|---|---|---|---|")
    for kind, name, fixed, moving in pairs(given.seed, given.n):
        prepared = prepare(Case(fixed, moving), plan.prepare)
        try:
            with threads(1):
                start = initialise(prepared, plan.initialise, plan.seed, from_centres=kind != "same")
            score, said = f"{start.score:.2f}", " ".join(start.warnings)
        except StartError as error:
            score, said = "refused", str(error)
        told.setdefault(kind, []).append(bool(said))
        print(f"| {kind} | {name} | {score} | {said} |", flush=True)
    for kind, values in told.items():
        print(f"{kind}: {sum(values)} of {len(values)} warned of or refused")


if __name__ == "__main__":
    main()
