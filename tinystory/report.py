"""Measures of what stories are like, to hold generated ones against real ones.

Pure functions on texts: they know no model, no tokenizer and no file. A share is a fraction from 0 to 1, and None
where there is nothing to take a share of.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import mean, median

import numpy as np
from numpy.typing import NDArray

from tinystory.generate import ends_sentence

__all__ = [
    "COPIED_NGRAM", "StoryReport", "balanced_quotes", "describe", "distinct", "known_runs", "ngram_count", "ngrams",
    "rarefied", "repeated", "words",
]  # fmt: skip

COPIED_NGRAM = 8
"""A copy begins at so many words in a row: fewer are the common phrases of the genre."""

_REPEATED_NGRAM = 4
_LONGEST_DISTINCT = 3

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_APOSTROPHES = str.maketrans("’ʼ", "''")

_CHUNK_WORDS = 2**18
"""Words of the reference text held at a time; with their hashes about 16 MiB."""


@dataclass(frozen=True)
class StoryReport:
    """What some stories are like.

    Attributes:
        stories: how many.
        words: of all stories together, as `words` counts them.
        mean_words: words a story; None without a story.
        median_words: half the stories have fewer words, half have more.
        mean_tokens: tokens a story, without BOS and EOS; None where no token counts were given.
        median_tokens: half the stories have fewer tokens, half have more.
        distinct_1: share of different ones among `distinct_ngrams` words; see `distinct`.
        distinct_2: the same of word pairs.
        distinct_3: the same of word triples.
        distinct_ngrams: how many n-grams those three are about. They fall as it grows, so compare only where it is
            the same.
        repeated_4grams: share of the word 4-grams that occurred earlier in the same story.
        ended_properly: share of the stories that their writer ended, with a sentence that is complete.
        balanced_quotes: share of the stories in which every double quote has its partner.
        unknown_words: share of the words that occur nowhere in the reference text; None without one.
        copied_8grams: share of the word 8-grams that occur in the training text; None without one.
        longest_copied: words of the longest run that occurs in the training text; None without one.
    """

    stories: int
    words: int
    mean_words: float | None
    median_words: float | None
    mean_tokens: float | None
    median_tokens: float | None
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    distinct_ngrams: int
    repeated_4grams: float | None
    ended_properly: float | None
    balanced_quotes: float | None
    unknown_words: float | None
    copied_8grams: float | None
    longest_copied: int | None


def describe(
    stories: Sequence[str],
    *,
    n_tokens: Sequence[int] | None = None,
    finished: Sequence[bool] | None = None,
    runs: Sequence[NDArray[np.int32]] | None = None,
    runs_in_training: bool = True,
    distinct_ngrams: int | None = None,
) -> StoryReport:
    """Measure stories.

    The order of the stories makes no difference. Shares are taken over all stories together, so a long story
    counts for more than a short one, except in `ended_properly` and `balanced_quotes`.

    Args:
        stories: the texts; a story without words is one.
        n_tokens: tokens of each story, without BOS and EOS.
        finished: whether the writer ended the story itself; None: every one.
        runs: what `known_runs` found for these stories.
        runs_in_training: whether that was in the training text; otherwise only words are looked up in it.
        distinct_ngrams: how many n-grams distinct-1/2/3 are about; None, or more than there are: `ngram_count`.

    Raises:
        ValueError: the sequences differ in length, or `distinct_ngrams` is below 0.
    """
    split = [words(story) for story in stories]
    lengths = [len(story) for story in split]
    available = ngram_count(stories)
    distinct_ngrams = available if distinct_ngrams is None else min(distinct_ngrams, available)
    repeats = [repeated(story, _REPEATED_NGRAM) for story in split]
    ended = [
        by_itself and ends_sentence(text)
        for text, by_itself in zip(stories, finished if finished is not None else [True] * len(stories), strict=True)
    ]
    unknown = copied = longest = None
    if runs is not None:
        if [len(run) for run in runs] != lengths:
            raise ValueError("the runs are not those of these stories")
        unknown = sum(int((run == 0).sum()) for run in runs)
        if runs_in_training:
            copied = sum(int((run >= COPIED_NGRAM).sum()) for run in runs)
            longest = max((int(run.max()) for run in runs if len(run)), default=0)
    if n_tokens is not None and len(n_tokens) != len(stories):
        raise ValueError(f"there are {len(stories)} stories and {len(n_tokens)} token counts")
    distinct_1, distinct_2, distinct_3 = (distinct(split, n, distinct_ngrams) for n in range(1, _LONGEST_DISTINCT + 1))
    return StoryReport(
        stories=len(stories),
        words=sum(lengths),
        mean_words=mean(lengths) if stories else None,
        median_words=median(lengths) if stories else None,
        mean_tokens=mean(n_tokens) if n_tokens else None,
        median_tokens=median(n_tokens) if n_tokens else None,
        distinct_1=distinct_1,
        distinct_2=distinct_2,
        distinct_3=distinct_3,
        distinct_ngrams=distinct_ngrams,
        repeated_4grams=_share(sum(n for n, _ in repeats), sum(total for _, total in repeats)),
        ended_properly=_share(sum(ended), len(stories)),
        balanced_quotes=_share(sum(map(balanced_quotes, stories)), len(stories)),
        unknown_words=_share(unknown, sum(lengths)),
        copied_8grams=_share(copied, sum(max(0, n - COPIED_NGRAM + 1) for n in lengths)),
        longest_copied=longest,
    )


def _share(part: int | None, whole: int) -> float | None:
    return None if part is None or not whole else part / whole


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
    return sum(max(0, len(words(story)) - _LONGEST_DISTINCT + 1) for story in stories)


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


def balanced_quotes(text: str) -> bool:
    """Whether every double quote has its partner: straight ones are even in number, curly ones close what is open.

    >>> balanced_quotes('"Yes," she said. “No.”'), balanced_quotes('He said, "Go.'), balanced_quotes("”Go.“")
    (True, False, False)
    """
    open_quotes = 0
    for character in text:
        open_quotes += (character == "“") - (character == "”")
        if open_quotes < 0:
            return False
    return open_quotes == 0 and text.count('"') % 2 == 0


def known_runs(stories: Sequence[str], reference: Iterable[str]) -> list[NDArray[np.int32]]:
    """For every word of some stories, how many words in a row from there on occur in a reference text.

    One pass over the reference, which may be of any size and need not fit into memory. Several groups of stories
    are best looked up together: what takes the time is the reference. Word sequences are compared by 64-bit hashes:
    with n words here and m there, the odds of taking any two for one that differ are about n · m / 2^56.

    Args:
        stories: the texts to look up.
        reference: stories, such as those of the training text; no run reaches across two of them.

    Returns:
        For each story an array with one length in words for each of its words (matching statistics: Chang and
        Lawler 1994): 0 for a word that the reference does not have; at least n where an n-gram of it begins.

    >>> [run.tolist() for run in known_runs(["The cat sat.", "A dog!"], ["One cat sat down.", "The end."])]
    [[1, 2, 1], [0, 0]]
    """
    split = [words(story) for story in stories]
    number = {word: i for i, word in enumerate(dict.fromkeys(chain.from_iterable(split)), start=1)}
    own = _Text([_numbers(story, number) for story in split])
    longest = np.zeros(len(own.room), np.int32)
    for text in _chunks(_numbers(words(story), number) for story in reference):
        _extend(longest, own, text)
    return np.split(longest, np.cumsum([len(story) for story in split])[:-1]) if split else []


def _numbers(story: Sequence[str], number: Mapping[str, int]) -> NDArray[np.uint64]:
    """Words as numbers; 0 for all that have none: no story that is looked up has one of them."""
    return np.fromiter((number.get(word, 0) for word in story), np.uint64, len(story))


class _Text:
    """Word numbers of stories, one after the other, with the hash of any run of them in one subtraction.

    The hash of words i to i+k is Σ value[i+j] · base^j modulo 2^64: the difference of two running sums, shifted back
    by the inverse power of base.

    Attributes:
        room: for each word, how many words its story has from there on.
    """

    _BASE = 0x2545F4914F6CDD1D  # odd, so that it has an inverse modulo 2^64

    def __init__(self, stories: Sequence[NDArray[np.uint64]]) -> None:
        numbers = np.concatenate([np.zeros(0, np.uint64), *stories])
        lengths = np.array([len(story) for story in stories], np.int64)
        self.room = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(numbers))
        powers, self._inverse = (_powers(base, len(numbers)) for base in (self._BASE, pow(self._BASE, -1, 2**64)))
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_scatter(numbers) * powers, dtype=np.uint64)])

    def hashes(self, start: NDArray[np.int64], n: int) -> NDArray[np.uint64]:
        """The hash of the n words from each start, (len(start),)."""
        found: NDArray[np.uint64] = (self._sums[start + n] - self._sums[start]) * self._inverse[start]
        return found


def _powers(base: int, n: int) -> NDArray[np.uint64]:
    """base^0 … base^(n−1) modulo 2^64."""
    factors = np.full(n, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _scatter(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread small numbers over 64 bits (the finaliser of SplitMix64: Steele et al. 2014)."""
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _chunks(stories: Iterable[NDArray[np.uint64]]) -> Iterator[_Text]:
    """Texts of whole stories, each of about `_CHUNK_WORDS`."""
    held: list[NDArray[np.uint64]] = []
    n_held = 0
    for story in stories:
        held.append(story)
        n_held += len(story)
        if n_held >= _CHUNK_WORDS:
            yield _Text(held)
            held, n_held = [], 0
    if n_held:
        yield _Text(held)


def _extend(longest: NDArray[np.int32], own: _Text, reference: _Text) -> None:
    """Raise the lengths in `longest`, which it changes in place, to what this piece of the reference has.

    A run of n words can only begin where one of n − 1 does, on either side: so each round looks at the starts that
    the last one left, and soon at few.
    """
    ours, theirs = np.arange(len(own.room)), np.arange(len(reference.room))
    n = 1
    while len(ours) and len(theirs):
        keys, key_of = np.unique(own.hashes(ours, n), return_inverse=True)
        wanted = reference.hashes(theirs, n)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        hit = keys[at] == wanted
        found = np.zeros(len(keys), np.bool_)
        found[at[hit]] = True
        ours, theirs = ours[found[key_of]], theirs[hit]
        longest[ours] = np.maximum(longest[ours], n)
        n += 1
        ours, theirs = ours[own.room[ours] >= n], theirs[reference.room[theirs] >= n]
