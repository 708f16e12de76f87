"""Decide which decoder's stories are most like real ones. The criterion was fixed before there were results.

For each measure in `CRITERION`, z is the difference between a decoder and real stories, in standard deviations between
groups of real stories; a group has one story for each prompt. The distance of a decoder is the mean of log2(1 + z) over
the measures. At 0 its stories are like real ones; at 1 they differ as much as one group of real stories differs from
the others; each further 1 about doubles the difference. Because of the logarithm, one bad figure does not decide alone.
The decoder with the smallest distance wins.

The bits gap is itself a distance, so it counts only if it is larger than that of real stories. A measure that is equal
in all groups of real stories has no unit, and is left out. A decoder that lacks a figure is last. Knows measures, and
not how they are computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tinystory.study.bootstrap import Floats, Measure, plain

__all__ = ["CRITERION", "Real", "distances", "rank", "real_side"]

CRITERION = ("bits_gap", "distinct_2", "repeated_4grams", "ended_properly", "unknown_words")

_ONE_SIDED = frozenset({"bits_gap"})

_TIED = 0.05
"""A decoder is tied with the winner if its distance is not larger in at least this share of the resamples."""


@dataclass(frozen=True)
class Real:
    """One measure of real stories: the mean of their groups, and the standard deviation between the groups."""

    mean: float
    spread: float


def real_side(measures: Mapping[str, Measure], n_prompts: int) -> dict[str, Real]:
    """Return the usable measures of the criterion, from at least two groups of real stories."""
    figures = {name: plain(measures[name], n_prompts) for name in CRITERION if name in measures}
    return {
        name: Real(float(groups.mean()), float(groups.std(ddof=1)))
        for name, groups in figures.items()
        if groups.std(ddof=1) > 0
    }


def distances(measures: Mapping[str, Measure], real: Mapping[str, Real], weights: Floats) -> Floats:
    """Return the distance of a decoder in each of (R, P) resamples: (R,), infinite if a figure is missing."""
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
    """Return the decoders from the smallest to the largest distance, and those that are tied with the first.

    Args:
        plain_distances: the distance of each decoder over all prompts.
        resampled: (R,), the distances of each decoder in the same resamples.

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
