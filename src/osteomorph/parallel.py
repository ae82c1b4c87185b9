"""Several processes that train one network, as ``torchrun`` starts them; one process is the ordinary case."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = TypeVar("Item")


@final
@dataclass(frozen=True)
class Workers:
    """rank: this process' number. size: how many there are. device: this process'."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: torch.device | str) -> "Workers":
        """Those that ``torchrun`` started (gloo on CPUs, nccl on GPUs), else this process alone."""
        device, size = torch.device(device), int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(0, 1, device)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), size, device)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process' part."""
        return list(items[self.rank :: self.size])

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()

    def summed(self, values: Tensor) -> Tensor:
        """The sum over processes, the same bits in each."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def average_gradients(self, weights: Iterable[nn.Parameter], active: int) -> None:
        """Over the ``active`` processes that had a pair in this step; the others have no gradient and take the same step."""
        if self.size == 1:
            return
        weights = list(weights)
        flat = torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in weights])
        parts = (self.summed(flat) / active).split([w.numel() for w in weights])
        for weight, part in zip(weights, parts, strict=True):
            weight.grad = part.view_as(weight).clone()

    def average_statistics(self, network: nn.Module) -> None:
        """Running means and variances, which every process gathered over pairs of its own."""
        for buffer in network.buffers():
            if self.size > 1 and buffer.is_floating_point():
                buffer.copy_(self.summed(buffer.clone()) / self.size)


def leave() -> None:
    """At the end of a program that joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
