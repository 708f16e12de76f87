"""The learning rate as a function of a run's progress: warmup, then one of three schedules."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinystory.training.step import TrainConfig

__all__ = ["SCHEDULES", "learning_rate_scale"]


SCHEDULES = ("wsd", "cosine", "constant")


def learning_rate_scale(progress: float, config: "TrainConfig") -> float:
    """Return the factor by which the peak learning rates are multiplied.

    Args:
        progress: how much of the run is done, from 0 to 1.
        config: has the schedule.

    Returns:
        A factor above 0 and at most 1, if progress is below 1.
    """
    rising = (progress + 1e-3) / config.warmup if config.warmup > 0 else 1.0
    if config.schedule == "constant":
        falling = 1.0
    elif config.schedule == "cosine":
        since = max(0.0, (progress - config.warmup) / max(1 - config.warmup, 1e-9))
        falling = 0.1 + 0.9 * (1 + math.cos(math.pi * min(since, 1.0))) / 2
    else:
        falling = (1 - progress) / config.decay if config.decay > 0 else 1.0
    return max(0.0, min(1.0, rising, falling))
