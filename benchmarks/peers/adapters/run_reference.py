"""What peers are held against: no motion, the truth itself, and six degrees of freedom per bone fitted to both label maps.

oracle: each bone's moving label onto its fixed one, both exact, by the surfaces' distances; blended by a polyrigid transform.
"""

import numpy as np
import torch
from adapter import Run

from osteomorph.case import Case
from osteomorph.errors import StartError
from osteomorph.io import read_image, read_labels, read_transform, write_displacement
from osteomorph.lattice import lattice
from osteomorph.polyrigid import Polyrigid, from_labels
from osteomorph.start_labels import start_on_labels
from osteomorph.transforms import Rigid, Transform


def oracle(case: Case) -> Polyrigid:
    assert case.fixed_labels is not None
    assert case.moving_labels is not None
    poses = {}
    for label in sorted(set(case.fixed_labels.ids()) & set(case.moving_labels.ids())):
        try:
            poses[label] = start_on_labels(case, [label])[0]
        except StartError as error:
            print(f"bone {label} is left as it is: {error}")
    return from_labels(poses, case.fixed_labels, case.moving_labels)


def main() -> None:
    run = Run("identity", "truth", "oracle")
    torch.set_num_threads(run.threads)
    fixed = read_image(run.fixed)
    inverse = None
    with run:
        transform: Transform = Rigid(np.eye(4))
        if run.variant == "truth":
            transform = read_transform(run.pair / "displacement.nii.gz")
        elif run.variant == "oracle":
            moving = read_image(run.moving)
            maps = (read_labels(run.pair / f"{n}_labels.nii.gz", i.grid) for n, i in (("fixed", fixed), ("moving", moving)))
            base = oracle(Case(fixed, moving, *maps))
            transform = lattice(base, fixed.grid, 0.02)
            write_displacement(run.out / "inverse.nii.gz", lattice(base.inverse(), moving.grid, 0.02), moving.grid)
            inverse = "inverse.nii.gz"
        write_displacement(run.out / "displacement.nii.gz", transform, fixed.grid)
    run.write("displacement.nii.gz", None, {"what": run.variant}, ("osteomorph",), inverse=inverse)


main()
