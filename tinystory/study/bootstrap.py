"""Figures with their intervals: what some prompts' stories give, and what other prompts could have given.

The unit is the prompt: a resample draws as many prompts as there are, with replacement, and takes every story of each.
A resample is a row of weights, how often each prompt was drawn, so a measure is a function of weights, and a plain
figure is the one with all weights 1. Shapes: G groups (one story for each prompt: a seed's), P prompts, R resamples,
K position buckets.
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
    """A figure of groups of stories, as a function of how much each prompt counts."""

    def by_group(self, weights: Floats) -> Floats:
        """(R, P) weights to (G, R) figures; NaN where there is nothing to measure."""
        ...


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; None where there is nothing to measure."""

    value: float | None
    low: float | None
    high: float | None


def resamples(n_prompts: int, n: int = _N_RESAMPLES, seed: int = 0) -> Floats:
    """Weights of n resamples, (n, n_prompts): the same for every measure and decoder, so that these are paired."""
    drawn = np.random.default_rng(seed).multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=n)
    return drawn.astype(np.float64)


def plain(measure: Measure, n_prompts: int) -> Floats:
    """The figure of each group, (G,), every prompt counted once."""
    return measure.by_group(np.ones((1, n_prompts)))[:, 0]


def estimate(measure: Measure, weights: Floats) -> Estimate:
    """The mean figure of the groups, with its percentile interval over (R, P) resamples."""
    value = float(plain(measure, weights.shape[1]).mean())
    drawn = measure.by_group(weights).mean(axis=0)
    drawn = drawn[~np.isnan(drawn)]  # a resample of prompts without a single case
    if np.isnan(value) or not len(drawn):
        return Estimate(None, None, None)
    low, high = np.quantile(drawn, _TAILS)
    return Estimate(value, float(low), float(high))


@dataclass(frozen=True, eq=False)
class Ratio(Measure):
    """A share or a mean: the sum of `parts` over the sum of `wholes`, both (G, P)."""

    parts: Floats
    wholes: Floats

    def by_group(self, weights: Floats) -> Floats:
        """See `Measure`."""
        return _quotient(self.parts @ weights.T, self.wholes @ weights.T)


@dataclass(frozen=True, eq=False)
class Jackknife(Measure):
    """A figure whose resamples are made of what each prompt adds to it, about the plain figure.

    With P prompts, a figure F and F_i without prompt i, that is P · F − (P − 1) · F_i (pseudo-values: Tukey 1958). For
    figures that a prompt drawn twice would distort: its n-grams would all be repeated, or a difference would grow.

    Attributes:
        whole: (G,), the figure of all prompts.
        without: (G, P), of all but each one.
    """

    whole: Floats
    without: Floats

    def by_group(self, weights: Floats) -> Floats:
        """See `Measure`."""
        # The mean of the pseudo-values corrects the figure; what counts here is only how they differ.
        added = (self.without.shape[1] - 1) * (self.without.mean(axis=1, keepdims=True) - self.without)
        return self.whole[:, None] + _quotient(added @ weights.T, weights.sum(axis=1))


def gap(sums: Floats, counts: Floats, reference: Floats, shares: Floats) -> Jackknife:
    """How far a profile of surprise by position is from another: the mean absolute difference over the buckets.

    Args:
        sums: (G, P, K) of the values in a bucket.
        counts: (G, P, K), how many; a bucket without a value, here or in the reference, does not count.
        reference: (G, K), the profile that each group is held against.
        shares: (G, K), how much a bucket counts, at least 0.
    """
    n_prompts = sums.shape[1]
    weights = np.vstack([np.ones(n_prompts), 1 - np.eye(n_prompts)])  # all prompts, then all but each one
    away = np.abs(_quotient(weights @ sums, weights @ counts) - reference[:, None, :])  # (G, 1 + P, K)
    counted = np.where(np.isnan(away), 0, shares[:, None, :])
    figures = _quotient((np.nan_to_num(away) * counted).sum(axis=-1), counted.sum(axis=-1))
    return Jackknife(figures[:, 0], figures[:, 1:])


def jackknifed_distinct(groups: Sequence[Sequence[Sequence[str]]], n: int, n_ngrams: int) -> Jackknife:
    """Distinct-n of each group over `n_ngrams` of its n-grams; see `report.distinct`.

    Args:
        groups: G times the words of P stories.
        n: words of an n-gram.
        n_ngrams: at most as many as a group has without any one of its stories; 0 measures nothing.
    """
    figures = [_with_and_without(stories, n, n_ngrams) for stories in groups]
    return Jackknife(np.array([whole for whole, _ in figures]), np.array([without for _, without in figures]))


def _with_and_without(stories: Sequence[Sequence[str]], n: int, n_ngrams: int) -> tuple[float, Floats]:
    """Distinct-n of some stories, and (P,) of all but each of them."""
    if not n_ngrams:
        return np.nan, np.full(len(stories), np.nan)
    number: dict[tuple[str, ...], int] = {}
    ids = [[number.setdefault(ngram, len(number)) for ngram in ngrams(story, n)] for story in stories]
    own = [np.bincount(np.array(story, np.int64), minlength=len(number)) for story in ids]
    together = np.sum(own, axis=0)
    without = [rarefied(together - story, n_ngrams) for story in own]
    return rarefied(together, n_ngrams) / n_ngrams, np.array(without) / n_ngrams


def _quotient(parts: Floats, wholes: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(wholes == 0, np.nan, parts / wholes)
