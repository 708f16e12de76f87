"""Which of several processes this one is, as the environment of `torchrun` tells it. Does not import torch."""

import os

from tinystory.errors import UsageError

__all__ = ["local_rank", "place_among_ranks"]


def place_among_ranks() -> tuple[int, int]:
    """This process's rank, from 0, and how many there are; 0 of 1 where nothing says otherwise.

    Raises:
        UsageError: the variables RANK and WORLD_SIZE do not belong together.
    """
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UsageError(
            f"the variables RANK={rank} and WORLD_SIZE={size} make no sense: torchrun sets them, or nobody"
        )
    return int(rank), int(size)


def local_rank() -> int:
    """The number of this process on its machine, and so of its GPU; 0 where nothing says otherwise."""
    return int(os.environ.get("LOCAL_RANK", "0"))
