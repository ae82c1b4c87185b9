"""Case: what is registered. Never mutated."""

from dataclasses import dataclass, fields
from typing import Literal, final

import torch

from osteomorph.image import Image, Labels

Side = Literal["fixed", "moving"]
"""Of a case: one of its images, with the labels and mask that lie on its grid."""


@final
@dataclass(frozen=True, eq=False)
class Case:
    """A fixed and a moving image of one patient, with the labels and masks that are known.

    Labels lie on the grid of their image. Masks are weights in [0, 1] for the similarity, on the grid of their image.
    The two label maps share their ids: id 3 is the same bone in both.
    """

    fixed: Image
    moving: Image
    fixed_labels: Labels | None = None
    moving_labels: Labels | None = None
    fixed_mask: Image | None = None
    moving_mask: Image | None = None

    def __post_init__(self) -> None:
        for companion, image in (
            (self.fixed_labels, self.fixed),
            (self.fixed_mask, self.fixed),
            (self.moving_labels, self.moving),
            (self.moving_mask, self.moving),
        ):
            if companion is not None and not companion.grid.isclose(image.grid):
                raise ValueError("Labels and masks lie on the grid of their image; resample them first.")

    def to(self, device: torch.device) -> "Case":
        parts = (getattr(self, part.name) for part in fields(self))
        return Case(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]
