"""The statistics of a finished story in words: for the line under it, or for a column. It knows no terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tinystory.decoding import FinishReason
from tinystory.decoding.spec import shown_spec

if TYPE_CHECKING:
    from tinystory.writing.generate import Story

__all__ = ["REASONS", "statistics_items", "statistics_line"]

REASONS: Mapping[FinishReason, str] = {
    "eos": "the end",
    "length": "length",
    "stop": "stop text",
    "cancelled": "cancelled",
}
"""The finish reasons in the words of the screen."""


def statistics_items(story: "Story") -> list[str]:
    """Return four items of a few words each: tokens, tokens per second, bits per token, and why the story ended."""
    n_tokens, statistics = len(story.tokens), story.statistics
    return [
        f"{n_tokens} token{'' if n_tokens == 1 else 's'}",
        f"{statistics['tokens_per_second']:.0f} tokens/s",
        f"{statistics['bits_per_token']:.2f} bits/token",
        REASONS[story.finish_reason],
    ]


def statistics_line(story: "Story", *, numbered: bool = False) -> str:
    """Return the line under a story: its statistics, then the decoder and the seed that write it again.

    Args:
        story: a finished story.
        numbered: add the number of the branch; for several stories of one prompt and one seed.
    """
    request = story.request
    number = [f"story {request.number}"] if numbered else []
    return " · ".join([*statistics_items(story), shown_spec(request.decoder), f"seed {request.seed}", *number])
