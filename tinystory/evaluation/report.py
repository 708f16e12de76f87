"""Measure texts, to compare generated stories with real ones.

Pure functions of texts; they know no model, no tokenizer and no file. A share is a number from 0 to 1, or None if
there is nothing to divide by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

import numpy as np
from numpy.typing import NDArray

from tinystory.evaluation.copied import COPIED_NGRAM
from tinystory.evaluation.ngrams import LONGEST_DISTINCT, distinct, ngram_count, repeated, words
from tinystory.text.sentences import ends_sentence

__all__ = ["StoryReport", "balanced_quotes", "describe_stories"]

_REPEATED_NGRAM = 4


@dataclass(frozen=True)
class StoryReport:
    """The figures of a group of stories.

    Attributes:
        stories: number of stories.
        words: words of all stories together, as `words` counts them.
        mean_words: mean words of a story; None without a story.
        median_words: median words of a story; None without a story.
        mean_tokens: mean tokens of a story, without BOS and EOS; None if no token counts were given.
        median_tokens: median tokens of a story; None if no token counts were given.
        distinct_1: share of different words among `distinct_ngrams` words; see `distinct`.
        distinct_2: the same for word pairs.
        distinct_3: the same for word triples.
        distinct_ngrams: over how many n-grams these three are taken. They fall if it grows, so compare them only with
            an equal number.
        repeated_4grams: share of word 4-grams that occur earlier in the same story.
        ended_properly: share of stories that their writer ended, and whose last sentence is complete.
        balanced_quotes: share of stories in which every double quote has its partner.
        unknown_words: share of words that the reference text does not have; None without a reference text.
        copied_8grams: share of word 8-grams that the training text has; None without a training text.
        longest_copied: words of the longest run that the training text has; None without a training text.
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


def describe_stories(
    stories: Sequence[str],
    *,
    n_tokens: Sequence[int] | None = None,
    finished: Sequence[bool] | None = None,
    runs: Sequence[NDArray[np.int32]] | None = None,
    runs_in_training: bool = True,
    distinct_ngrams: int | None = None,
) -> StoryReport:
    """Return the figures of a group of stories.

    The order of the stories makes no difference. Shares are taken over all stories together, so a long story
    counts more than a short one, except in `ended_properly` and `balanced_quotes`.

    Args:
        stories: the texts; a story without words counts as a story.
        n_tokens: tokens of each story, without BOS and EOS.
        finished: whether the writer ended each story itself; None means that it ended all of them.
        runs: the result of `known_runs` for these stories.
        runs_in_training: whether the reference of these runs was the training text; if not, only `unknown_words` is
            taken from them.
        distinct_ngrams: over how many n-grams distinct-1, -2 and -3 are taken; None, or more than `ngram_count`, takes
            `ngram_count`.

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
    if runs is not None and [len(run) for run in runs] != lengths:
        raise ValueError("the runs are not those of these stories")
    unknown = None if runs is None else sum(int((run == 0).sum()) for run in runs)
    copied, longest = _copied(runs if runs_in_training else None)
    if n_tokens is not None and len(n_tokens) != len(stories):
        raise ValueError(f"there are {len(stories)} stories and {len(n_tokens)} token counts")
    distinct_1, distinct_2, distinct_3 = (distinct(split, n, distinct_ngrams) for n in range(1, LONGEST_DISTINCT + 1))
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


def _copied(runs: Sequence[NDArray[np.int32]] | None) -> tuple[int | None, int | None]:
    """Return how many n-grams are copied, and the words of the longest copy; None without runs."""
    if runs is None:
        return None, None
    longest = max((int(run.max()) for run in runs if len(run)), default=0)
    return sum(int((run >= COPIED_NGRAM).sum()) for run in runs), longest


def _share(part: int | None, whole: int) -> float | None:
    return None if part is None or not whole else part / whole


def balanced_quotes(text: str) -> bool:
    """Return whether every double quote has its partner.

    Straight quotes must be even in number, and every closing curly quote must follow an opening one.

    >>> balanced_quotes('"Yes," she said. “No.”'), balanced_quotes('He said, "Go.'), balanced_quotes("”Go.“")
    (True, False, False)
    """
    open_quotes = 0
    for character in text:
        open_quotes += (character == "“") - (character == "”")
        if open_quotes < 0:
            return False
    return open_quotes == 0 and text.count('"') % 2 == 0
