"""Adam through one level of a coarse-to-fine optimisation, the step length falling to a fifth."""

from collections.abc import Callable

import torch
from torch import Tensor

from osteomorph.plan import Level

Progress = Callable[[str, int, int], None]
"""(stage, steps done, steps in all); raise in it to stop."""

FINAL_STEP = 0.2
"""Share of a level's step length that is left at its end."""

BETAS = (0.9, 0.99)
"""Of Adam: each step looks at other voxels, so that its moments forget sooner than usual."""


def descend(
    control: Tensor,
    level: Level,
    loss: Callable[[], tuple[Tensor, dict[str, float]]],
    history: list[dict[str, float]],
    told: Callable[[int], None] | None = None,
) -> None:
    """Changes ``control`` so that the loss falls, and appends each step's values to ``history``.

    loss: the sum to minimise and the values that it is made of. told: hears how many steps the history holds.
    Raises FloatingPointError where the loss is not finite.
    """
    control.requires_grad_(True)
    optimiser = torch.optim.Adam([control], lr=level.step_mm, betas=BETAS, eps=1e-12)
    for step in range(level.iterations):
        for group in optimiser.param_groups:
            group["lr"] = level.step_mm * (1 - (1 - FINAL_STEP) * step / level.iterations)
        total, values = loss()
        if not torch.isfinite(total):
            raise FloatingPointError(f"The objective became {float(total)} at step {len(history)}: {values}.")
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        history.append({"loss": float(total.detach()), **values})
        if told is not None:
            told(len(history))
    control.requires_grad_(False)
