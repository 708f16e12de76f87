"""Heal tokens: make a story go on well after a text that ends within a word.

Example: a writer cuts the story to "Once upon a ti". Its last tokens spell "ti", and after them the model has hardly
seen "me". So the last word is taken back, and the model is asked for tokens that begin with " ti" again. It may now
write the one token " time". The idea comes from Microsoft's library guidance (2023).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Request, Step

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Healing"]


@dataclass(frozen=True)
class Healing(LogitsProcessor):
    """A processor that makes the first tokens spell a given text again. No spec shows it.

    Its state is the part of the text, in bytes, that is not spelled yet. While that is not empty, a token is kept if
    it spells the beginning of that part, or if it begins with all of it.

    Attributes:
        text: the text that was taken back from the end of the prompt.
        token_bytes: the bytes of each token, by token id.
    """

    name = "healing"
    text: str
    token_bytes: Mapping[int, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        """Check nothing: no user writes the options of this stage."""

    def start(self, request: Request) -> bytes:
        """Return the whole text in bytes: nothing of it is spelled yet."""
        return self.text.encode()

    def observe(self, state: bytes, token_id: int, logits: "Tensor") -> bytes:
        """Return the part of the text that is not spelled after a token."""
        return state[len(self.token_bytes.get(token_id, b"")) :]

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Remove the tokens that do not spell the text; remove none if the text is spelled, or if no token fits."""
        missing: bytes = step.state
        if not missing:
            return logits
        import torch

        fitting = [
            token_id
            for token_id, spelled in self.token_bytes.items()
            if spelled and (spelled.startswith(missing) or missing.startswith(spelled))
        ]
        if not fitting:
            return logits
        healed = torch.full_like(logits, -math.inf)
        healed[fitting] = logits[fitting]
        return healed
