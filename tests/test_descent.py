"""Steps of the optimiser."""

import pytest
import torch

from osteomorph.descent import BETAS, FINAL_STEP, TINY, descend
from osteomorph.plan import Level

LEVEL = Level(control_mm=1.0, iterations=12, step_mm=0.3)


def valley(control):
    return (control - torch.arange(6.0)).square().sum() + control.prod().sin()


def test_steps_are_those_of_torchs_adam():
    ours, theirs = torch.full((6,), 0.5), torch.full((6,), 0.5, requires_grad=True)
    history = []
    descend(ours, LEVEL, lambda: (valley(ours), {"valley": float(valley(ours.detach()))}), history)
    optimiser = torch.optim.Adam([theirs], lr=LEVEL.step_mm, betas=BETAS, eps=TINY)
    for step in range(LEVEL.iterations):
        optimiser.param_groups[0]["lr"] = LEVEL.step_mm * (1 - (1 - FINAL_STEP) * step / LEVEL.iterations)
        optimiser.zero_grad()
        valley(theirs).backward()
        optimiser.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    assert len(history) == LEVEL.iterations
    assert history[-1]["loss"] < history[0]["loss"]
    assert not ours.requires_grad


def test_the_listener_hears_of_every_step_and_may_stop():
    control, heard = torch.zeros(6), []

    def told(done):
        heard.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descend(control, LEVEL, lambda: (valley(control), {}), [], told)
    assert heard == [1, 2, 3]


def test_a_loss_that_is_no_number_is_said():
    control = torch.zeros(2)
    with pytest.raises(FloatingPointError, match="became nan at step 0"):
        descend(control, LEVEL, lambda: (control.sum() * float("nan"), {"term": 1.0}), [])
