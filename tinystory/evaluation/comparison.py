"""Compare several decoders on one prompt with the same noise. Knows no terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinystory.decoding import Decoder, FinishReason
from tinystory.errors import UsageError
from tinystory.evaluation.ngrams import distinct, repeated, words
from tinystory.writing.generate import Story, StoryRequest
from tinystory.writing.statistics import statistics_items

__all__ = ["FEWEST", "MOST", "Measures", "check_count", "figures", "measures", "requests"]

FEWEST, MOST = 2, 8
"""The smallest and the largest number of decoders in one comparison."""


@dataclass(frozen=True)
class Measures:
    """The figures of one story in a comparison.

    The two shares are taken of the text without the prompt, because all stories have the same prompt. They depend on
    the length of that text.

    Attributes:
        tokens: number of new tokens.
        tokens_per_second: speed, while the other stories were written, too.
        bits_per_token: mean surprise under the model's own distribution, before the decoder changes it.
        distinct_2: share of different word pairs among all word pairs, from 0 to 1; None if there is no pair.
        repeated_4grams: share of word 4-grams that occur earlier in the story, from 0 to 1; None if there is none.
        finish_reason: why the story ended.
    """

    tokens: int
    tokens_per_second: float
    bits_per_token: float
    distinct_2: float | None
    repeated_4grams: float | None
    finish_reason: FinishReason


def check_count(n_decoders: int) -> None:
    """Check that a comparison has from FEWEST to MOST decoders.

    Raises:
        UsageError: there are too few or too many.
    """
    if not FEWEST <= n_decoders <= MOST:
        hint = "give each with its own -d" if n_decoders < FEWEST else "leave some out"
        raise UsageError(f"compare takes from {FEWEST} to {MOST} decoders, not {n_decoders}; {hint}")


def requests(
    prompt: str,
    decoders: Sequence[Decoder],
    seed: int,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    cancel: Callable[[], bool] = lambda: False,
) -> list[StoryRequest]:
    """Return one request for each decoder, which `write` takes as one batch.

    All requests have story number 0, and so the same noise: two stories are equal up to the place where their decoders
    differ.

    Args:
        prompt: text with which every story begins.
        decoders: from FEWEST to MOST decoders.
        seed: seed of the noise.
        max_new_tokens: most new tokens of a story.
        stop: texts at which a story ends.
        cancel: polled after every token; True ends every story where it is.

    Raises:
        UsageError: there are too few or too many decoders.
    """
    check_count(len(decoders))
    return [
        StoryRequest(
            prompt, decoder, seed=seed, max_new_tokens=max_new_tokens, stop=tuple(stop), number=0, cancel=cancel
        )
        for decoder in decoders
    ]


def measures(story: Story) -> Measures:
    """Return the figures of a finished story."""
    story_words = words(story.completion)
    n_repeated, n_4grams = repeated(story_words, 4)
    return Measures(
        tokens=len(story.tokens),
        tokens_per_second=story.statistics["tokens_per_second"],
        bits_per_token=story.statistics["bits_per_token"],
        distinct_2=distinct([story_words], 2),
        repeated_4grams=n_repeated / n_4grams if n_4grams else None,
        finish_reason=story.finish_reason,
    )


def figures(story: Story) -> list[str]:
    """Return the figures under a story in a column: its statistics, then the shares of `Measures`, from 0 to 1."""
    story_measures = measures(story)
    shares = (("distinct-2", story_measures.distinct_2), ("repeated 4-grams", story_measures.repeated_4grams))
    return [
        *statistics_items(story),
        *(f"{name} {'–' if share is None else f'{share:.2f}'}" for name, share in shares),
    ]
