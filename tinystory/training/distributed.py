"""One process or many: torch.distributed as `torchrun` starts it, or nothing at all.

Every rank works out the same global batch and takes its share of the rows, so nothing but gradients, sums and the
wish to stop is exchanged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tinystory.model.device import usable_device
from tinystory.training.ranks import local_rank, place_among_ranks

__all__ = ["Ranks", "joined"]

_TIMEOUT = timedelta(seconds=50)
"""How long a rank waits for the others in a step: one that hangs ends the run within a minute."""

_PATIENCE = timedelta(hours=6)
"""How long `wait` does: the first rank may have gigabytes of stories to tokenise."""

_patient: list[Any] = []


@dataclass(frozen=True)
class Ranks:
    """This process among its peers.

    Attributes:
        rank: from 0.
        size: how many there are; 1 without torchrun.
        device: where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and to the terminal."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The element-wise sum over all ranks."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """The largest of the ranks' values; all ranks get the same."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)

    def wait(self) -> None:
        """Until every rank has come here, however long one of them prepares."""
        if self.size > 1:
            dist.barrier(group=_patient[-1])


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the group that torchrun's environment describes, and leave it at the end.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL; each local rank takes the GPU of its number).

    Raises:
        UsageError: the device is not there, or the environment makes no sense.
    """
    rank, size = place_among_ranks()
    if size > 1 and device.partition(":")[0] == "cuda":
        device = f"cuda:{local_rank()}"
    where = usable_device(device)
    if size == 1:
        yield Ranks(0, 1, where)
        return
    if where.type == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=_TIMEOUT)
    _patient.append(dist.new_group(backend="gloo", timeout=_PATIENCE))
    try:
        yield Ranks(rank, size, where)
    finally:
        _patient.clear()
        dist.destroy_process_group()
