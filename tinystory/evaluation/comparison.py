"""One prompt, several decoders, the same noise: what each of them makes of it. Knows no terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinystory.decoding import Decoder, FinishReason
from tinystory.errors import UsageError
from tinystory.evaluation.ngrams import distinct, repeated, words
from tinystory.writing.generate import Story, StoryRequest
from tinystory.writing.statistics import statistics_items

__all__ = ["FEWEST", "MOST", "Measures", "check_count", "figures", "measures", "requests"]

FEWEST, MOST = 2, 8
"""How many decoders are compared at once."""


@dataclass(frozen=True)
class Measures:
    """What is said of one story beside the others.

    The two shares are of the completion alone, since the prompt is everybody's; they depend on its length.

    Attributes:
        tokens: of the completion.
        tokens_per_second: while the others were written too.
        bits_per_token: mean surprise under the model's own distribution, whatever the decoder made of it.
        distinct_2: share of different ones among the word pairs; None without a pair.
        repeated_4grams: share of the word 4-grams that occurred before; None without one.
        finish_reason: why it ended.
    """

    tokens: int
    tokens_per_second: float
    bits_per_token: float
    distinct_2: float | None
    repeated_4grams: float | None
    finish_reason: FinishReason


def check_count(n_decoders: int) -> None:
    """Refuse too few and too many decoders.

    Raises:
        UsageError: they are not from FEWEST to MOST.
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
    """A story for each decoder, for `write` to take in one batch.

    All have sibling number 0 and so the same noise: two stories differ only from where their decoders do.

    Args:
        prompt: text to begin with.
        decoders: from FEWEST to MOST.
        seed: of the coupled noise.
        max_new_tokens: at most so many tokens a story.
        stop: texts at which a story ends.
        cancel: polled after every token; True ends every story with what it has.

    Raises:
        UsageError: too few or too many decoders.
    """
    check_count(len(decoders))
    return [StoryRequest(prompt, decoder, seed, max_new_tokens, tuple(stop), 0, cancel) for decoder in decoders]


def measures(story: Story) -> Measures:
    """Measure a finished story."""
    found = words(story.completion)
    n_repeated, n_4grams = repeated(found, 4)
    return Measures(
        tokens=len(story.tokens),
        tokens_per_second=story.statistics["tokens_per_second"],
        bits_per_token=story.statistics["bits_per_token"],
        distinct_2=distinct([found], 2),
        repeated_4grams=n_repeated / n_4grams if n_4grams else None,
        finish_reason=story.finish_reason,
    )


def figures(story: Story) -> list[str]:
    """Return the figures under a story in a column: its statistics, then the shares of `Measures`, from 0 to 1."""
    found = measures(story)
    shares = (("distinct-2", found.distinct_2), ("repeated 4-grams", found.repeated_4grams))
    return [
        *statistics_items(story),
        *(f"{name} {'–' if share is None else f'{share:.2f}'}" for name, share in shares),
    ]
