"""The prompt, the seed and the stop texts of a command, with a value for each that the command line lacks."""

import sys
from collections.abc import Sequence

from tinystory.settings import random_seed
from tinystory.text.prompt_text import MAX_PROMPT_BYTES, check_prompt, prompt_text
from tinystory.writing.stops import check_stops

__all__ = ["prompt_of", "seed_of", "stops_of"]


def prompt_of(prompt: str | None) -> str:
    """Return the prompt of the command line, or else standard input without its last newline.

    Without a prompt, a terminal as standard input gives an empty prompt.

    Raises:
        UsageError: the prompt is too long, or standard input is not UTF-8 text.
    """
    if prompt is not None:
        return check_prompt(_utf8(prompt))
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    raw = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)  # a pipe may be endless
    return prompt_text(raw, "standard input").removesuffix("\n")


def seed_of(seed: int | None) -> int:
    """Return the seed of the command line, or else a random one."""
    return random_seed() if seed is None else seed


def stops_of(stops: Sequence[str]) -> tuple[str, ...]:
    """Return the stop texts as valid UTF-8.

    Raises:
        UsageError: a stop text is empty, or there are too many, or they are too long.
    """
    check_stops(stops)
    return tuple(map(_utf8, stops))


def _utf8(text: str) -> str:
    """Replace the surrogates that stand for invalid bytes: no tokenizer takes them."""
    return text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")
