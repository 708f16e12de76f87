"""Measure groups of stories, those of decoders and real ones in the same way.

A group has one story for each prompt. Only the text after the prompt is measured. Every figure is taken of a group and
then averaged over the groups, so a decoder with two seeds can be compared with twelve groups of real stories. Shapes: G
groups, P prompts, K buckets of positions. Knows texts and their surprise, and not the journal or the page.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tinystory.evaluation.bleu import self_bleu
from tinystory.evaluation.ngrams import ngram_count, repeated, words
from tinystory.study.bootstrap import Floats, Measure, Ratio, gap, jackknifed_distinct
from tinystory.text.sentences import ends_sentence

__all__ = ["BUCKET_TOKENS", "Profile", "StoryGroup", "comparable_ngrams", "measured", "profile_of", "reference_of"]

BUCKET_TOKENS = 16
"""Positions in a story that form one bucket in the profile of its surprise."""

_REPEATED_NGRAM = 4
_FEWEST_NGRAMS = 1 / 4
"""Share of the real stories' n-grams that a group must have to get a distinct-n."""


@dataclass(frozen=True)
class StoryGroup:
    """One story for each prompt.

    Attributes:
        texts: the texts after the prompts.
        bits: the surprise of each token under the model's own distribution, in bits, without the ends of the stories.
        finished: whether the writer ended each story itself, before max-tokens.
    """

    texts: tuple[str, ...]
    bits: tuple[Sequence[float], ...]
    finished: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Profile:
    """Surprise by position: (G, P, K) sums of bits in each bucket, and (G, P, K) numbers of tokens."""

    sums: Floats
    counts: Floats

    def mean(self) -> list[float | None]:
        """Return the bits per token of each bucket; None for a bucket without tokens."""
        sums, counts = self.sums.sum(axis=(0, 1)), self.counts.sum(axis=(0, 1))
        return [float(total / n) if n else None for total, n in zip(sums, counts, strict=True)]


def profile_of(groups: Sequence[StoryGroup], max_tokens: int) -> Profile:
    """Return the profile of some groups over the positions from 0 to max_tokens."""
    n_buckets = -(-max_tokens // BUCKET_TOKENS)
    stories = [[np.asarray(bits, np.float64) for bits in group.bits] for group in groups]
    buckets = [[np.arange(len(bits)) // BUCKET_TOKENS for bits in story] for story in stories]
    sums = [
        [np.bincount(at, bits, n_buckets) for at, bits in zip(*pair, strict=True)]
        for pair in zip(buckets, stories, strict=True)
    ]
    counts = [[np.bincount(at, minlength=n_buckets) for at in group] for group in buckets]
    return Profile(np.array(sums, np.float64), np.array(counts, np.float64))


def reference_of(real: Profile, *, leave_one_out: bool = False) -> tuple[Floats, Floats]:
    """Return the reference with which profiles are compared.

    Args:
        real: the profile of all groups of real stories.
        leave_one_out: make one reference for each real group from the other groups, instead of one for all.

    Returns:
        The mean bits of each bucket and its share of the tokens: both (1, K), or (G, K) with `leave_one_out`.
    """
    sums, counts = real.sums.sum(axis=1), real.counts.sum(axis=1)
    if leave_one_out:
        sums, counts = sums.sum(axis=0) - sums, counts.sum(axis=0) - counts
    else:
        sums, counts = sums.sum(axis=0, keepdims=True), counts.sum(axis=0, keepdims=True)
    with np.errstate(invalid="ignore"):
        return sums / counts, counts / counts.sum(axis=1, keepdims=True)


def comparable_ngrams(sides: Sequence[Sequence[StoryGroup]], real: Sequence[StoryGroup]) -> int:
    """Return over how many n-grams distinct-n is taken, so that all groups can be compared.

    The smallest group decides, without its longest story, because each story is left out in turn. A decoder whose
    stories have less than a quarter of the n-grams of real stories does not count, and gets no distinct-n.
    """
    enough = _FEWEST_NGRAMS * min(map(_ngrams_without_longest, real))
    counts = [_ngrams_without_longest(group) for side in (*sides, real) for group in side]
    return min((count for count in counts if count >= enough), default=0)


def _ngrams_without_longest(group: StoryGroup) -> int:
    counts = [ngram_count([text]) for text in group.texts]
    return sum(counts) - max(counts)


def measured(
    groups: Sequence[StoryGroup],
    profile: Profile,
    reference: tuple[Floats, Floats],
    *,
    distinct_ngrams: int,
    vocabulary: Collection[str] | None,
) -> Mapping[str, Measure]:
    """Return every measure of some groups, by name.

    Args:
        groups: the groups of one decoder, or of real stories.
        profile: the profile of these groups.
        reference: the result of `reference_of`.
        distinct_ngrams: the result of `comparable_ngrams`.
        vocabulary: the words of the training text; None leaves `unknown_words` out.
    """
    split = [[words(text) for text in group.texts] for group in groups]
    one_each = np.ones((len(groups), len(groups[0].texts)))
    measures: dict[str, Measure] = {
        "bits_gap": gap(profile.sums, profile.counts, *_for_each(reference, len(groups))),
        "bits_per_token": Ratio(profile.sums.sum(axis=-1), profile.counts.sum(axis=-1)),
    }
    fits = all(_ngrams_without_longest(group) >= distinct_ngrams for group in groups)
    for n in (1, 2, 3):
        measures[f"distinct_{n}"] = jackknifed_distinct(split, n, distinct_ngrams if fits else 0)
    scores = [self_bleu(stories) for stories in split]
    measures["self_bleu"] = Ratio(
        np.array([[score or 0.0 for score in group] for group in scores]),
        np.array([[score is not None for score in group] for group in scores], np.float64),
    )
    repeats = np.array([[repeated(story, _REPEATED_NGRAM) for story in stories] for stories in split], np.float64)
    measures["repeated_4grams"] = Ratio(repeats[..., 0], repeats[..., 1])
    ended = [
        [by_itself and ends_sentence(text) for text, by_itself in zip(group.texts, group.finished, strict=True)]
        for group in groups
    ]
    measures["ended_properly"] = Ratio(np.array(ended, np.float64), one_each)
    lengths = np.array([[len(story) for story in stories] for stories in split], np.float64)
    if vocabulary is not None:
        whole = [
            [_whole_words(story, by_itself) for story, by_itself in zip(stories, group.finished, strict=True)]
            for stories, group in zip(split, groups, strict=True)
        ]
        unknown = [[sum(word not in vocabulary for word in story) for story in stories] for stories in whole]
        n_words = [[len(story) for story in stories] for stories in whole]
        measures["unknown_words"] = Ratio(np.array(unknown, np.float64), np.array(n_words, np.float64))
    measures["words"] = Ratio(lengths, one_each)
    return measures


def _whole_words(story: Sequence[str], finished: bool) -> Sequence[str]:
    """Return a story without its last word if the story was cut off, because this may be half a word."""
    return story if finished else story[:-1]


def _for_each(reference: tuple[Floats, Floats], n_groups: int) -> tuple[Floats, Floats]:
    means, shares = (np.broadcast_to(array, (n_groups, array.shape[1])) for array in reference)
    return means, shares
