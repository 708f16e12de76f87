"""Compute figures with bootstrap intervals over the prompts.

A resample draws as many prompts as there are, with replacement, and takes all stories of each drawn prompt. It is a row
of weights: how often each prompt was drawn. So a measure is a function of weights, and the plain figure has all weights
1. Shapes: G groups (one story for each prompt, such as the stories of a seed), P prompts, R resamples, K buckets of
positions. Knows arrays, and not what they measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tinystory.evaluation.ngrams import ngrams, rarefied

__all__ = [
    "Estimate",
    "Floats",
    "Jackknife",
    "Measure",
    "Ratio",
    "estimate",
    "gap",
    "jackknifed_distinct",
    "plain",
    "resamples",
]

Floats = NDArray[np.float64]

_N_RESAMPLES = 1000
_TAILS = (0.025, 0.975)


class Measure(Protocol):
    """A figure of groups of stories, as a function of the weights of the prompts."""

    def by_group(self, weights: Floats) -> Floats:
        """Return the figure of each group for (R, P) weights: (G, R), NaN if there is nothing to measure."""
        ...


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; None if there is nothing to measure."""

    value: float | None
    low: float | None
    high: float | None


def resamples(n_prompts: int, n: int = _N_RESAMPLES, seed: int = 0) -> Floats:
    """Return the weights of n resamples, (n, n_prompts). All measures and decoders share them, so they are paired."""
    drawn = np.random.default_rng(seed).multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=n)
    return drawn.astype(np.float64)


def plain(measure: Measure, n_prompts: int) -> Floats:
    """Return the figure of each group, (G,), with every prompt counted once."""
    return measure.by_group(np.ones((1, n_prompts)))[:, 0]


def estimate(measure: Measure, weights: Floats) -> Estimate:
    """Return the mean figure of the groups, with its percentile interval over (R, P) resamples."""
    value = float(plain(measure, weights.shape[1]).mean())
    drawn = measure.by_group(weights).mean(axis=0)
    drawn = drawn[~np.isnan(drawn)]  # a resample may have nothing to measure
    if np.isnan(value) or not len(drawn):
        return Estimate(None, None, None)
    low, high = np.quantile(drawn, _TAILS)
    return Estimate(value, float(low), float(high))


@dataclass(frozen=True, eq=False)
class Ratio(Measure):
    """A share or a mean: the sum of `parts` divided by the sum of `wholes`, both (G, P)."""

    parts: Floats
    wholes: Floats

    def by_group(self, weights: Floats) -> Floats:
        """See `Measure`."""
        return _quotient(self.parts @ weights.T, self.wholes @ weights.T)


@dataclass(frozen=True, eq=False)
class Jackknife(Measure):
    """A figure whose resamples vary the plain figure by what each prompt adds to it.

    With P prompts, the figure F, and the figure F_i without prompt i, prompt i adds P · F − (P − 1) · F_i
    (pseudo-values: Tukey 1958). This suits figures that would be wrong if a prompt were drawn twice, because then all
    its n-grams would be repeated, or a difference would grow.

    Attributes:
        whole: (G,), the figure of all prompts.
        without: (G, P), the figure without each prompt.
    """

    whole: Floats
    without: Floats

    def by_group(self, weights: Floats) -> Floats:
        """See `Measure`."""
        # The mean of the pseudo-values would correct the figure; only their differences are used here.
        added = (self.without.shape[1] - 1) * (self.without.mean(axis=1, keepdims=True) - self.without)
        return self.whole[:, None] + _quotient(added @ weights.T, weights.sum(axis=1))


def gap(sums: Floats, counts: Floats, reference: Floats, shares: Floats) -> Jackknife:
    """Return the mean absolute difference, over the buckets, between a profile of surprise and a reference.

    Args:
        sums: (G, P, K), the sum of the values in each bucket.
        counts: (G, P, K), the number of values. A bucket without a value, here or in the reference, does not count.
        reference: (G, K), the profile with which each group is compared.
        shares: (G, K), the weight of each bucket, at least 0.
    """
    n_prompts = sums.shape[1]
    weights = np.vstack([np.ones(n_prompts), 1 - np.eye(n_prompts)])  # all prompts, then all without each one
    away = np.abs(_quotient(weights @ sums, weights @ counts) - reference[:, None, :])  # (G, 1 + P, K)
    counted = np.where(np.isnan(away), 0, shares[:, None, :])
    figures = _quotient((np.nan_to_num(away) * counted).sum(axis=-1), counted.sum(axis=-1))
    return Jackknife(figures[:, 0], figures[:, 1:])


def jackknifed_distinct(groups: Sequence[Sequence[Sequence[str]]], n: int, n_ngrams: int) -> Jackknife:
    """Return distinct-n of each group over `n_ngrams` of its n-grams; see `ngrams.distinct`.

    Args:
        groups: the words of P stories in each of G groups.
        n: words of an n-gram.
        n_ngrams: at most as many as every group has without any one of its stories; 0 measures nothing.
    """
    figures = [_with_and_without(stories, n, n_ngrams) for stories in groups]
    return Jackknife(np.array([whole for whole, _ in figures]), np.array([without for _, without in figures]))


def _with_and_without(stories: Sequence[Sequence[str]], n: int, n_ngrams: int) -> tuple[float, Floats]:
    """Return distinct-n of some stories, and distinct-n without each of them, (P,)."""
    if not n_ngrams:
        return np.nan, np.full(len(stories), np.nan)
    number: dict[tuple[str, ...], int] = {}
    ids = [[number.setdefault(ngram, len(number)) for ngram in ngrams(story, n)] for story in stories]
    counts = [np.bincount(np.array(story, np.int64), minlength=len(number)) for story in ids]
    together = np.sum(counts, axis=0)
    without = [rarefied(together - story, n_ngrams) for story in counts]
    return rarefied(together, n_ngrams) / n_ngrams, np.array(without) / n_ngrams


def _quotient(parts: Floats, wholes: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(wholes == 0, np.nan, parts / wholes)
