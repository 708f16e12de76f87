"""Read from the environment of `torchrun` which of several processes this one is. Does not import torch."""

import os

from tinystory.errors import UsageError

__all__ = ["local_rank", "place_among_ranks"]


def place_among_ranks() -> tuple[int, int]:
    """Return the rank of this process, from 0, and the number of ranks; without torchrun, 0 and 1.

    Raises:
        UsageError: the variables RANK and WORLD_SIZE do not fit together.
    """
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UsageError(
            f"the variables RANK={rank} and WORLD_SIZE={size} do not fit together: start with torchrun, or unset them"
        )
    return int(rank), int(size)


def local_rank() -> int:
    """Return the number of this process on its machine, which is also the number of its GPU; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))
