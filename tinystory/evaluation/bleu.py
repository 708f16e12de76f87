"""Compute self-BLEU, which tells how much of each text also stands in the others. Knows words only."""

import math
from collections import Counter
from collections.abc import Sequence

from tinystory.evaluation.ngrams import ngrams

__all__ = ["self_bleu"]

_LONGEST = 4
_MISSED = 0.1
"""The count that stands for no match (method 1 of Chen and Cherry 2014), so that no score is 0."""


def self_bleu(texts: Sequence[Sequence[str]]) -> list[float | None]:
    """Return BLEU-4 of each text, with all other texts as references (Zhu et al. 2018, arXiv 1802.01886).

    BLEU (Papineni et al. 2002) is the geometric mean of the clipped n-gram precisions for n = 1..4. It is multiplied by
    exp(1 − r/c) if c, the words of the text, are fewer than r, the words of the reference that is nearest in length
    (the shorter one, if two are equally near).

    Args:
        texts: the words of each text. The score rises with the number of texts, so compare only groups of equal size.

    Returns:
        A score above 0 and at most 1 for each text; None for a text of fewer than 4 words, or if it is the only one.

    >>> [round(score, 4) for score in self_bleu(["a b c d e".split(), "a b c d f".split()])]
    [0.6687, 0.6687]
    """
    logs = [0.0] * len(texts)
    for n in range(1, _LONGEST + 1):
        counts = [Counter(ngrams(text, n)) for text in texts]
        highest = _two_highest(counts)
        for index, ngram_counts in enumerate(counts):
            if n_ngrams := ngram_counts.total():
                matched = sum(
                    min(count, highest[ngram][highest[ngram][2] == index]) for ngram, count in ngram_counts.items()
                )
                logs[index] += math.log((matched or _MISSED) / n_ngrams) / _LONGEST
    lengths = [len(text) for text in texts]
    return [
        math.exp(log + _brevity(length, lengths[:index] + lengths[index + 1 :]))
        if length >= _LONGEST and len(texts) > 1
        else None
        for index, (log, length) in enumerate(zip(logs, lengths, strict=True))
    ]


def _two_highest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Return for each n-gram its highest count, its highest count in another text, and the index of the first text."""
    highest: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for index, ngram_counts in enumerate(counts):
        for ngram, count in ngram_counts.items():
            first, second, owner = highest.get(ngram, (0, 0, -1))
            highest[ngram] = (count, first, index) if count > first else (first, max(second, count), owner)
    return highest


def _brevity(length: int, others: Sequence[int]) -> float:
    """Return the logarithm of the brevity penalty, at most 0."""
    nearest = min(others, key=lambda other: (abs(other - length), other))
    return min(0.0, 1 - nearest / length)
