"""The learning rate as a function of a run's progress: warmup, then one of three schedules."""

import math

__all__ = ["SCHEDULES", "learning_rate_scale"]

SCHEDULES = ("wsd", "cosine", "constant")


def learning_rate_scale(progress: float, schedule: str, *, warmup: float, decay: float) -> float:
    """Return the factor by which the peak learning rates are multiplied.

    Args:
        progress: how much of the run is done, from 0 to 1.
        schedule: one of `SCHEDULES`.
        warmup: the share of the run in which the rate rises.
        decay: the share of the run, at its end, in which "wsd" falls to zero.

    Returns:
        A factor above 0 and at most 1, if progress is below 1.
    """
    rising = (progress + 1e-3) / warmup if warmup > 0 else 1.0
    if schedule == "constant":
        falling = 1.0
    elif schedule == "cosine":
        since = max(0.0, (progress - warmup) / max(1 - warmup, 1e-9))
        falling = 0.1 + 0.9 * (1 + math.cos(math.pi * min(since, 1.0))) / 2
    else:
        falling = (1 - progress) / decay if decay > 0 else 1.0
    return max(0.0, min(1.0, rising, falling))
