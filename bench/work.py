"""What a peer has to write, and the function that writes it."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Work", "Writer"]


@dataclass(frozen=True)
class Work:
    """What a peer has to write.

    Attributes:
        prompt_ids: each row begins with them.
        n_tokens: of each row; an end of story does not count.
        n_rows: stories written together.
        top_k: of how many tokens one is drawn; 1 is greedy.
        temperature: of the draw.
    """

    prompt_ids: tuple[int, ...]
    n_tokens: int
    n_rows: int = 1
    top_k: int = 1
    temperature: float = 1.0


Writer = Callable[[Work], list[int]]
"""Writes the rows and gives their new ids, one after the other."""
