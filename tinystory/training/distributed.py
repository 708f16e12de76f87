"""Join several training processes that `torchrun` has started, or run alone.

Every rank computes the same global batch and takes its share of the rows. So ranks exchange only gradients, sums and
the wish to stop. Knows torch.distributed, and not what the ranks train.
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
"""The longest time that a rank waits for the others in a step. So a rank that hangs ends the run within a minute."""

_PATIENCE = timedelta(hours=6)
"""The longest time of `wait`: the first rank may have to tokenise gigabytes of stories."""

_patient: list[Any] = []
"""The process group of `wait`, which has the longer time limit; empty outside `joined`."""


@dataclass(frozen=True)
class Ranks:
    """This process as one of several ranks.

    Attributes:
        rank: the number of this rank, from 0.
        size: how many ranks there are; 1 without torchrun.
        device: the device of this rank.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """True for the rank that writes to files and to the terminal."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over all ranks; may change `values` in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """Return the largest value of all ranks, on every rank."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)

    def wait(self) -> None:
        """Wait until every rank has called this, for up to six hours."""
        if self.size > 1:
            dist.barrier(group=_patient[-1])


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the group of ranks that the environment describes, and leave it at the end of the `with` block.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL; each rank takes the GPU with its local number).

    Raises:
        UsageError: the device is not available, or the variables of torchrun do not fit together.
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
