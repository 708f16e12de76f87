"""Which decoder's stories are most like real ones: the criterion, laid down before there were results.

For each measure named in `CRITERION`, z is how far a decoder's figure is from that of real stories, in units of the
standard deviation between groups of real stories, a group having one story for each prompt. A decoder's distance is
the mean of log2(1 + z) over the measures: 0 is alike, 1 is as far as one handful of real stories is from the rest, and
each further 1 about doubles that. The logarithm keeps one bad figure from deciding alone. The least distance wins.

The gap of the bits counts only where it is above that of real stories: it is a distance itself. A measure that does not
differ between the groups of real stories has no unit, and is left out. A decoder without one of the figures is last.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tinystory.study.bootstrap import Floats, Measure, plain

__all__ = ["CRITERION", "Real", "distances", "rank", "real_side"]

CRITERION = ("bits_gap", "distinct_2", "repeated_4grams", "ended_properly", "unknown_words")

_ONE_SIDED = frozenset({"bits_gap"})

_TIED = 0.05
"""A decoder is tied with the winner if it is no further from real stories in at least this share of the resamples."""


@dataclass(frozen=True)
class Real:
    """What real stories are like in one measure: the mean of their groups, and the standard deviation between them."""

    mean: float
    spread: float


def real_side(measures: Mapping[str, Measure], n_prompts: int) -> dict[str, Real]:
    """The measures of the criterion that can be used, of at least two groups of real stories."""
    found = {name: plain(measures[name], n_prompts) for name in CRITERION if name in measures}
    return {
        name: Real(float(groups.mean()), float(groups.std(ddof=1)))
        for name, groups in found.items()
        if groups.std(ddof=1) > 0
    }


def distances(measures: Mapping[str, Measure], real: Mapping[str, Real], weights: Floats) -> Floats:
    """A decoder's distance from real stories in each of (R, P) resamples, (R,); infinite where a figure is missing."""
    doublings = []
    for name, side in real.items():
        away = measures[name].by_group(weights).mean(axis=0) - side.mean
        away = np.maximum(away, 0) if name in _ONE_SIDED else np.abs(away)
        doublings.append(np.log2(1 + away / side.spread))
    if not doublings:
        return np.full(len(weights), np.inf)
    mean: Floats = np.mean(doublings, axis=0)
    return np.where(np.isnan(mean), np.inf, mean)


def rank(plain_distances: Mapping[str, float], resampled: Mapping[str, Floats]) -> tuple[list[str], list[str]]:
    """The decoders from the nearest to the farthest, and those that are tied with the first.

    Args:
        plain_distances: of each decoder, from all prompts.
        resampled: of each decoder, (R,), from the same resamples.

    >>> far = np.array([2.0, 2.0]); near = np.array([1.0, 1.0])
    >>> rank({"a": 2.0, "b": 1.0, "c": 1.1}, {"a": far, "b": near, "c": near})
    (['b', 'c', 'a'], ['c'])
    """
    order = sorted(plain_distances, key=plain_distances.__getitem__)
    if not order or not np.isfinite(plain_distances[order[0]]):
        return order, []
    best = resampled[order[0]]
    tied = [spec for spec in order[1:] if (resampled[spec] <= best).mean() >= _TIED]
    return order, [spec for spec in tied if np.isfinite(plain_distances[spec])]
