"""Find runs of words that texts share with a reference text, such as the training text. Knows words only."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from tinystory.evaluation.ngrams import words

__all__ = ["COPIED_NGRAM", "known_runs"]

COPIED_NGRAM = 8
"""The fewest words in a row that count as a copy; shorter runs are phrases that many stories have."""

_CHUNK_WORDS = 2**18
"""Words of the reference text that are in memory at a time; with their hashes, about 16 MiB."""


def known_runs(stories: Sequence[str], reference: Iterable[str]) -> list[NDArray[np.int32]]:
    """Return for every word of some stories how many words in a row, from this word on, occur in a reference text.

    The reference is read once; it may have any size. Look up several groups of stories in one call, because reading the
    reference takes most of the time. Word sequences are compared by 64-bit hashes. With n words in the stories and m in
    the reference, the probability that any two different sequences count as equal is about n · m / 2^56.

    Args:
        stories: the texts to look up.
        reference: stories, such as those of the training text; a run never spans two of them.

    Returns:
        For each story, an array with one number for each of its words: the length of the longest run from this word on,
        in words (matching statistics: Chang and Lawler 1994). It is 0 for a word that the reference does not have.

    >>> [run.tolist() for run in known_runs(["The cat sat.", "A dog!"], ["One cat sat down.", "The end."])]
    [[1, 2, 1], [0, 0]]
    """
    split = [words(story) for story in stories]
    number = {word: i for i, word in enumerate(dict.fromkeys(chain.from_iterable(split)), start=1)}
    target = _Text([_numbers(story, number) for story in split])
    longest = np.zeros(len(target.room), np.int32)
    for text in _chunks(_numbers(words(story), number) for story in reference):
        _extend(longest, target, text)
    return np.split(longest, np.cumsum([len(story) for story in split])[:-1]) if split else []


def _numbers(story: Sequence[str], number: Mapping[str, int]) -> NDArray[np.uint64]:
    """Return words as numbers; 0 stands for all words that no story to look up has."""
    return np.fromiter((number.get(word, 0) for word in story), np.uint64, len(story))


class _Text:
    """The word numbers of stories, one after the other. The hash of any run of words takes one subtraction.

    The hash of k words from word i on is Σ value[i+j] · base^j for j < k, modulo 2^64. This is the difference of two
    running sums, divided by base^i.

    Attributes:
        room: for each word, how many words its story has from this word on.
    """

    _BASE = 0x2545F4914F6CDD1D  # odd, so that it has an inverse modulo 2^64

    def __init__(self, stories: Sequence[NDArray[np.uint64]]) -> None:
        numbers = np.concatenate([np.zeros(0, np.uint64), *stories])
        lengths = np.array([len(story) for story in stories], np.int64)
        self.room = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(numbers))
        powers, self._inverse = (_powers(base, len(numbers)) for base in (self._BASE, pow(self._BASE, -1, 2**64)))
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_scatter(numbers) * powers, dtype=np.uint64)])

    def hashes(self, start: NDArray[np.int64], n: int) -> NDArray[np.uint64]:
        """Return the hash of the n words from each start, (len(start),)."""
        hashes: NDArray[np.uint64] = (self._sums[start + n] - self._sums[start]) * self._inverse[start]
        return hashes


def _powers(base: int, n: int) -> NDArray[np.uint64]:
    """Return base^0 … base^(n−1) modulo 2^64, (n,)."""
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
    """Yield texts of whole stories, each of about `_CHUNK_WORDS` words."""
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


def _extend(longest: NDArray[np.int32], target: _Text, reference: _Text) -> None:
    """Raise the lengths in `longest`, in place, to those of the runs that this part of the reference has.

    A run of n words can begin only where a run of n − 1 words begins, in both texts. So each round looks only at the
    starts that the round before has left, and these soon become few.
    """
    starts, reference_starts = np.arange(len(target.room)), np.arange(len(reference.room))
    n = 1
    while len(starts) and len(reference_starts):
        keys, key_of = np.unique(target.hashes(starts, n), return_inverse=True)
        reference_keys = reference.hashes(reference_starts, n)
        place = np.minimum(np.searchsorted(keys, reference_keys), len(keys) - 1)
        match = keys[place] == reference_keys
        in_reference = np.zeros(len(keys), np.bool_)
        in_reference[place[match]] = True
        starts, reference_starts = starts[in_reference[key_of]], reference_starts[match]
        longest[starts] = np.maximum(longest[starts], n)
        n += 1
        starts = starts[target.room[starts] >= n]
        reference_starts = reference_starts[reference.room[reference_starts] >= n]
