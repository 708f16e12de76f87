"""XXX-DOC."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from tinystory.evaluation.ngrams import words

__all__ = ["COPIED_NGRAM", "known_runs"]


COPIED_NGRAM = 8
"""A copy begins at so many words in a row: fewer are the common phrases of the genre."""


_CHUNK_WORDS = 2**18
"""Words of the reference text held at a time; with their hashes about 16 MiB."""


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
