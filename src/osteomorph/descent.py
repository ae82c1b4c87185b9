"""Descent through one level of a coarse-to-fine optimisation, the step length falling to a fifth."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from osteomorph.plan import Level

Progress = Callable[[str, int, int], None]
"""(stage, steps done, steps in all); raise in it to stop."""

FINAL_STEP = 0.2
"""Share of a level's step length that is left at its end."""

BETAS = (0.9, 0.99)
"""Of Adam: each step looks at other voxels, so that its moments forget sooner than usual."""

TINY = 1e-12


@final
class Adam:
    """Steps of Kingma and Ba (2015). torch's own optimisers import its compiler, which takes 2.5 s in every process."""

    def __init__(self, control: Tensor, betas: tuple[float, float]) -> None:
        self.control, self.betas, self.steps = control, betas, 0
        self.mean, self.square = torch.zeros_like(control), torch.zeros_like(control)

    def step(self, loss: Tensor, length: float) -> None:
        """Changes the control points by about ``length`` each, so that the loss falls."""
        (slope,) = torch.autograd.grad(loss, self.control)
        first, second = self.betas
        self.steps += 1
        with torch.no_grad():
            self.mean.lerp_(slope, 1 - first)
            self.square.mul_(second).addcmul_(slope, slope, value=1 - second)
            spread = (self.square / (1 - second**self.steps)).sqrt_().add_(TINY)
            self.control.addcdiv_(self.mean, spread, value=-length / (1 - first**self.steps))


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
    adam = Adam(control, BETAS)
    for step in range(level.iterations):
        total, values = loss()
        if not torch.isfinite(total):
            raise FloatingPointError(f"The objective became {float(total)} at step {len(history)}: {values}.")
        adam.step(total, level.step_mm * (1 - (1 - FINAL_STEP) * step / level.iterations))
        history.append({"loss": float(total.detach()), **values})
        if told is not None:
            told(len(history))
    control.requires_grad_(False)
