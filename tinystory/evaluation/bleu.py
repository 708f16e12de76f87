"""Self-BLEU: how much of each text stands in the others."""

import math
from collections import Counter
from collections.abc import Sequence

from tinystory.evaluation.ngrams import ngrams

__all__ = ["self_bleu"]

_LONGEST = 4
_MISSED = 0.1
"""Counts for no match at all (method 1 of Chen and Cherry 2014), so that one missing size does not make a score 0."""


def self_bleu(texts: Sequence[Sequence[str]]) -> list[float | None]:
    """BLEU-4 of each text with all others as its references (Zhu et al. 2018, arXiv 1802.01886).

    BLEU (Papineni et al. 2002) is the geometric mean of the clipped n-gram precisions for n = 1..4, times
    exp(1 − r/c) where the text's c words are fewer than the r of the reference nearest in length (of two the shorter).

    Args:
        texts: their words. The score rises with the number of texts: compare only groups of equal size.

    Returns:
        A score above 0 and at most 1 for each text; None for one of fewer than 4 words, or without another text.

    >>> [round(score, 4) for score in self_bleu(["a b c d e".split(), "a b c d f".split()])]
    [0.6687, 0.6687]
    """
    logs = [0.0] * len(texts)
    for n in range(1, _LONGEST + 1):
        counts = [Counter(ngrams(text, n)) for text in texts]
        highest = _two_highest(counts)
        for index, own in enumerate(counts):
            if n_ngrams := own.total():
                matched = sum(min(count, highest[ngram][highest[ngram][2] == index]) for ngram, count in own.items())
                logs[index] += math.log((matched or _MISSED) / n_ngrams) / _LONGEST
    lengths = [len(text) for text in texts]
    return [
        math.exp(log + _brevity(length, lengths[:index] + lengths[index + 1 :]))
        if length >= _LONGEST and len(texts) > 1
        else None
        for index, (log, length) in enumerate(zip(logs, lengths, strict=True))
    ]


def _two_highest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Of each n-gram, its highest count in a text, the highest in any other, and which text has the first."""
    found: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for index, own in enumerate(counts):
        for ngram, count in own.items():
            first, second, owner = found.get(ngram, (0, 0, -1))
            found[ngram] = (count, first, index) if count > first else (first, max(second, count), owner)
    return found


def _brevity(length: int, others: Sequence[int]) -> float:
    """The logarithm of the brevity penalty."""
    nearest = min(others, key=lambda other: (abs(other - length), other))
    return min(0.0, 1 - nearest / length)
