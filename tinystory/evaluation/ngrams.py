"""Split texts into words and word n-grams, and measure how varied these are. Knows texts only."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONGEST_DISTINCT", "distinct", "ngram_count", "ngrams", "rarefied", "repeated", "words"]

LONGEST_DISTINCT = 3
"""Words of the longest n-grams of which distinct-n is taken."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_APOSTROPHES = str.maketrans("’ʼ", "''")


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case.

    A word is a run of letters and digits, which may have apostrophes inside (curly ones become straight). Everything
    else separates words, hyphens too, and is left out.

    >>> words("“Don’t!” said Zoë's grown-up friend, 7.")
    ["don't", 'said', "zoë's", 'grown', 'up', 'friend', '7']
    """
    return _WORD.findall(unicodedata.normalize("NFC", text.lower()).translate(_APOSTROPHES))


def ngrams(story: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Return an iterator over every n words in a row, in order; n is at least 1.

    >>> list(ngrams(["a", "cat", "sat"], 2))
    [('a', 'cat'), ('cat', 'sat')]
    """
    return zip(*(story[start:] for start in range(n)), strict=False)


def ngram_count(stories: Iterable[str]) -> int:
    """Return over how many n-grams distinct-1, -2 and -3 can all be taken: the number of word triples.

    Groups of stories are compared on the smallest of their counts.
    """
    return sum(max(0, len(words(story)) - LONGEST_DISTINCT + 1) for story in stories)


def distinct(stories: Sequence[Sequence[str]], n: int, n_ngrams: int | None = None) -> float | None:
    """Return distinct-n: the share of different n-grams among all word n-grams (Li et al. 2016, arXiv 1510.03055).

    The share falls if there is more text, so groups of stories are compared on equally many n-grams. For a group that
    has more n-grams, it is the mean share over all choices of `n_ngrams` of them. A formula gives this mean: if c of N
    n-grams are of one kind, a choice of m n-grams misses this kind with probability C(N−c, m) / C(N, m) (rarefaction:
    Hurlbert 1971, Ecology 52). It uses no random numbers and does not depend on the order of the stories.

    Args:
        stories: the words of each story; an n-gram never spans two stories.
        n: words of an n-gram, at least 1.
        n_ngrams: over how many n-grams the share is taken; None, or more than there are, takes all of them.

    Returns:
        A share above 0 and at most 1; None if it is taken over no n-gram.

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
    """Return the mean number of kinds among n things, over all choices of n (Hurlbert 1971, Ecology 52).

    Args:
        counts: how many things there are of each kind, at least 0.
        n: how many things are chosen, from 1 to all of them.

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
    """Return how many word n-grams of a story occur earlier in it, and how many word n-grams it has.

    Their ratio is seq-rep-n of Welleck et al. 2020 (arXiv 1908.04319), who take its mean over texts. `describe_stories`
    first adds up both numbers over all stories, so a story without n-grams needs no special rule.

    >>> repeated(["la", "la", "la", "la"], 2)
    (2, 3)
    """
    total = max(0, len(story) - n + 1)
    return total - len(set(ngrams(story, n))), total
