"""A cohort of five quick pairs: two bones in a box, the moving image shifted and of another contrast."""

from pathlib import Path

import numpy as np
import torch

from osteomorph import io
from osteomorph.cohort import Cohort, Fold, PairFiles, write_cohort
from osteomorph.geometry import Grid
from osteomorph.image import Image, Labels
from osteomorph.plan import InitialisePlan, NetworkPlan, Plan, PreparePlan, RefinePlan, TrainPlan, Weights

SHAPE = (18, 20, 16)

GRID = Grid(SHAPE, np.diag([-3.0, -3.0, 3.0, 1.0]))

FOLD = Fold(train=("p0", "p1", "p2"), validation=("p3",), test=("p4",))


def small_plan(epochs=3, weights=None, **more) -> Plan:
    return Plan(
        name="small",
        prepare=PreparePlan(spacing_mm=3.0),
        initialise=InitialisePlan(method="none"),
        network=more.pop("network", NetworkPlan(channels=2)),
        refine=RefinePlan(
            weights=weights or Weights(mutual_information=0.5, dice=0.5, diffusion=0.2, rigidity=0.4),
            foreground=False,
            rigid_frame="moving",
        ),
        train=TrainPlan(epochs=epochs, learning_rate=3e-3, **more),
    )


def small_pair(seed: int) -> tuple[Image, Image, Labels, Labels]:
    generator = torch.Generator().manual_seed(seed)
    i, j, k = torch.meshgrid(*[torch.arange(float(n)) for n in SHAPE], indexing="ij")

    def labels(shift):
        out = torch.zeros(SHAPE, dtype=torch.int16)
        for label, centre in ((23, 5.5), (24, 14.0)):
            out[((i - 9 - shift) / 4.5) ** 2 + ((j - centre) / 3.2) ** 2 + ((k - 8) / 4) ** 2 < 1] = label
        return out[None]

    fixed, moving = labels(0.0), labels(0.6 + 0.2 * seed)
    bright = 0.2 + 0.6 * (fixed > 0) + 0.1 * torch.rand(1, *SHAPE, generator=generator)
    dark = 1.0 - 0.7 * (moving > 0) + 0.1 * torch.rand(1, *SHAPE, generator=generator)
    return Image(bright, GRID), Image(dark, GRID), Labels(fixed, GRID), Labels(moving, GRID)


def small_cohort(folder: Path) -> Cohort:
    pairs = []
    for number in range(5):
        at = folder / f"p{number}"
        at.mkdir(parents=True)
        names = ("fixed", "moving", "fixed_labels", "moving_labels")
        for name, part in zip(names, small_pair(number), strict=True):
            io.write_image(at / f"{name}.nii.gz", part)
        files = {name: Path(at.name) / f"{name}.nii.gz" for name in names}
        pairs.append(PairFiles(id=at.name, patient=f"s{number}", **files))
    cohort = Cohort(pairs=tuple(pairs), folds=(FOLD,), names={23: "L4", 24: "L5"}, root=folder)
    write_cohort(folder, cohort)
    return cohort
