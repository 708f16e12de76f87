"""XXX-DOC."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

__all__ = ["distinct", "ngram_count", "ngrams", "rarefied", "repeated", "words"]


LONGEST_DISTINCT = 3


_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


_APOSTROPHES = str.maketrans("’ʼ", "''")


def words(text: str) -> list[str]:
    """The words of a text, in lower case.

    A word is a run of letters and digits, joined by apostrophes (curly ones become straight). Everything else
    separates words, hyphens too, and is left out.

    >>> words("“Don’t!” said Zoë's grown-up friend, 7.")
    ["don't", 'said', "zoë's", 'grown', 'up', 'friend', '7']
    """
    return _WORD.findall(unicodedata.normalize("NFC", text.lower()).translate(_APOSTROPHES))


def ngrams(story: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every n words in a row, in order; n is at least 1.

    >>> list(ngrams(["a", "cat", "sat"], 2))
    [('a', 'cat'), ('cat', 'sat')]
    """
    return zip(*(story[start:] for start in range(n)), strict=False)


def ngram_count(stories: Iterable[str]) -> int:
    """How many n-grams of each size distinct-1/2/3 can be taken over: the number of word triples.

    Groups of stories are compared on the smallest of their counts.
    """
    return sum(max(0, len(words(story)) - LONGEST_DISTINCT + 1) for story in stories)


def distinct(stories: Sequence[Sequence[str]], n: int, n_ngrams: int | None = None) -> float | None:
    """Distinct-n: the share of different ones among word n-grams (Li et al. 2016, arXiv 1510.03055).

    The share falls the more text there is, so groups of stories are compared on equally many n-grams. Of a group
    that has more, it is the mean share over all choices of `n_ngrams` of them, as a closed formula: with N n-grams
    of which one kind makes up c, a choice of m misses that kind with probability C(N−c, m) / C(N, m)
    (rarefaction: Hurlbert 1971, Ecology 52). It needs no luck and does not depend on the order of the stories.

    Args:
        stories: their words; no n-gram reaches across two stories.
        n: words of an n-gram, at least 1.
        n_ngrams: how many n-grams are looked at; None, or more than there are: all, the plain distinct-n.

    Returns:
        A share above 0 and at most 1; None where no n-gram is looked at.

    Raises:
        ValueError: n_ngrams is below 0.

    >>> distinct([["a", "b", "a", "b"]], 1)
    0.5
    >>> distinct([["a", "b", "a", "b"]], 1, 2)  # of the 6 pairs, 4 have two kinds and 2 have one
    0.8333333333333334
    """
    if n_ngrams is not None and n_ngrams < 0:
        raise ValueError(f"n_ngrams is {n_ngrams}; it must be at least 0")
    count_of = Counter(chain.from_iterable(ngrams(story, n) for story in stories))
    chosen = count_of.total() if n_ngrams is None else min(n_ngrams, count_of.total())
    return rarefied(np.fromiter(count_of.values(), np.int64), chosen) / chosen if chosen else None


def rarefied(counts: NDArray[np.int64], n: int) -> float:
    """How many kinds there are among n things, in the mean over all choices of n (Hurlbert 1971, Ecology 52).

    Args:
        counts: how many there are of each kind, at least 0.
        n: how many are chosen, from 1 to all of them.

    >>> rarefied(np.array([2, 2]), 2)  # the formula is at `distinct`
    1.6666666666666667
    """
    counts, n_kinds = np.unique(counts[counts > 0], return_counts=True)
    total = counts @ n_kinds
    # missed[c - 1]: C(total - c, n) / C(total, n) as a product of c factors. At most total - n things can be
    # missed: the factor after those is exactly 0, and so is every longer product.
    step = np.arange(counts[-1])
    missed = np.cumprod((total - n - step) / (total - step))
    return min(float(n), float(n_kinds @ (1 - missed[counts - 1])))


def repeated(story: Sequence[str], n: int) -> tuple[int, int]:
    """How many word n-grams of a story occurred earlier in it, and how many there are.

    Their ratio is seq-rep-n of Welleck et al. 2020 (arXiv 1908.04319), who take its mean over texts; `describe` adds
    up both numbers over all stories first, so that a story without n-grams needs no rule of its own.

    >>> repeated(["la", "la", "la", "la"], 2)
    (2, 3)
    """
    total = max(0, len(story) - n + 1)
    return total - len(set(ngrams(story, n))), total
