"""The work that a peer has to do, and the type of the function that does it."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Work", "Writer"]


@dataclass(frozen=True)
class Work:
    """Stories that a peer has to write.

    Attributes:
        prompt_ids: the token ids that each row begins with.
        n_tokens: the number of new tokens of each row; an end of story does not end it.
        n_rows: the number of stories that are written together.
        top_k: each token is drawn from this many likeliest tokens; 1 is greedy.
        temperature: the temperature of the draw.
    """

    prompt_ids: tuple[int, ...]
    n_tokens: int
    n_rows: int = 1
    top_k: int = 1
    temperature: float = 1.0


Writer = Callable[[Work], list[int]]
"""Writes the rows and returns their new token ids, joined."""
