"""ANTs through antspyx: SyN on Mattes' mutual information, no linear stage, since pairs are aligned."""

import tempfile

import ants
import numpy as np
from adapter import Run

SETTINGS = {
    "type_of_transform": "SyNOnly",
    "initial_transform": "Identity",
    "syn_metric": "mattes",
    "syn_sampling": 32,
    "reg_iterations": (100, 70, 50, 20),
    "random_seed": 1,
}


def main():
    run = Run("syn")
    fixed, moving = ants.image_read(run.fixed), ants.image_read(run.moving)
    with tempfile.TemporaryDirectory() as folder:
        with run:
            found = ants.registration(fixed=fixed, moving=moving, outprefix=f"{folder}/", **SETTINGS)
            there = ants.apply_transforms(fixed, moving, found["fwdtransforms"], compose=f"{folder}/there_")
            back = ants.apply_transforms(moving, fixed, found["invtransforms"], compose=f"{folder}/back_")
        fields = [np.squeeze(ants.image_read(name).numpy()) for name in (there, back)]
    run.write(fields[0], "LPS", SETTINGS, ("antspyx",), inverse=fields[1])


main()
