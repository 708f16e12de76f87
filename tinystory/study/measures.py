"""What a study measures of groups of stories, the decoders' and the real ones alike.

A group has one story for each prompt. Only what follows the prompt is measured. Every figure is taken of a group and
then averaged over the groups, so that a decoder with two seeds and real stories in twelve groups can be compared.
Shapes: G groups, P prompts, K position buckets.
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
"""Positions in a story that are taken together in the profile of its surprise."""

_REPEATED_NGRAM = 4
_FEWEST_NGRAMS = 1 / 4


@dataclass(frozen=True)
class StoryGroup:
    """A story for each prompt.

    Attributes:
        texts: what follows the prompts.
        bits: the surprise of their tokens under the model's own distribution, in bits; ends are not among them.
        finished: whether a story was ended by its writer, not by the limit.
    """

    texts: tuple[str, ...]
    bits: tuple[Sequence[float], ...]
    finished: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Profile:
    """Surprise by position: (G, P, K) sums of bits in each bucket, and how many tokens they are of."""

    sums: Floats
    counts: Floats

    def mean(self) -> list[float | None]:
        """Bits a token in each bucket; None where there is no token."""
        sums, counts = self.sums.sum(axis=(0, 1)), self.counts.sum(axis=(0, 1))
        return [float(total / n) if n else None for total, n in zip(sums, counts, strict=True)]


def profile_of(groups: Sequence[StoryGroup], max_tokens: int) -> Profile:
    """The profile of some groups over positions 0..max_tokens."""
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
    """What profiles are held against.

    Args:
        real: of all groups of real stories.
        leave_one_out: each real group against all the others, instead of one reference for everybody.

    Returns:
        The mean bits of each bucket and the share of the tokens in it: (1, K), or (G, K) with `leave_one_out`.
    """
    sums, counts = real.sums.sum(axis=1), real.counts.sum(axis=1)
    if leave_one_out:
        sums, counts = sums.sum(axis=0) - sums, counts.sum(axis=0) - counts
    else:
        sums, counts = sums.sum(axis=0, keepdims=True), counts.sum(axis=0, keepdims=True)
    with np.errstate(invalid="ignore"):
        return sums / counts, counts / counts.sum(axis=1, keepdims=True)


def comparable_ngrams(sides: Sequence[Sequence[StoryGroup]], real: Sequence[StoryGroup]) -> int:
    """Over how many n-grams distinct-n is taken, so that it means the same everywhere.

    The smallest group decides, without the longest of its stories, since each story is left out in turn. A decoder
    whose stories have less than a quarter of the real ones' n-grams does not count: it has no distinct-n.
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
    """Every measure of some groups, by name.

    Args:
        groups: of one decoder, or of real stories.
        profile: of those groups.
        reference: from `reference_of`.
        distinct_ngrams: from `comparable_ngrams`.
        vocabulary: the words of the training text; None leaves `unknown_words` out.
    """
    split = [[words(text) for text in group.texts] for group in groups]
    one = np.ones((len(groups), len(groups[0].texts)))
    found: dict[str, Measure] = {
        "bits_gap": gap(profile.sums, profile.counts, *_for_each(reference, len(groups))),
        "bits_per_token": Ratio(profile.sums.sum(axis=-1), profile.counts.sum(axis=-1)),
    }
    fits = all(_ngrams_without_longest(group) >= distinct_ngrams for group in groups)
    for n in (1, 2, 3):
        found[f"distinct_{n}"] = jackknifed_distinct(split, n, distinct_ngrams if fits else 0)
    scores = [self_bleu(stories) for stories in split]
    found["self_bleu"] = Ratio(
        np.array([[score or 0.0 for score in group] for group in scores]),
        np.array([[score is not None for score in group] for group in scores], np.float64),
    )
    repeats = np.array([[repeated(story, _REPEATED_NGRAM) for story in stories] for stories in split], np.float64)
    found["repeated_4grams"] = Ratio(repeats[..., 0], repeats[..., 1])
    ended = [
        [by_itself and ends_sentence(text) for text, by_itself in zip(group.texts, group.finished, strict=True)]
        for group in groups
    ]
    found["ended_properly"] = Ratio(np.array(ended, np.float64), one)
    lengths = np.array([[len(story) for story in stories] for stories in split], np.float64)
    if vocabulary is not None:
        whole = [
            [_whole_words(story, by_itself) for story, by_itself in zip(stories, group.finished, strict=True)]
            for stories, group in zip(split, groups, strict=True)
        ]
        unknown = [[sum(word not in vocabulary for word in story) for story in stories] for stories in whole]
        n_words = [[len(story) for story in stories] for stories in whole]
        found["unknown_words"] = Ratio(np.array(unknown, np.float64), np.array(n_words, np.float64))
    found["words"] = Ratio(lengths, one)
    return found


def _whole_words(story: Sequence[str], finished: bool) -> Sequence[str]:
    """Without the last word where a story was cut off: it may be half a word."""
    return story if finished else story[:-1]


def _for_each(reference: tuple[Floats, Floats], n_groups: int) -> tuple[Floats, Floats]:
    means, shares = (np.broadcast_to(one, (n_groups, one.shape[1])) for one in reference)
    return means, shares
