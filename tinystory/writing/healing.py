"""Token healing: a text that was cut within a token goes on as if it had not been.

The last token of the text is taken back, and what is generated has to begin with its letters (as in Microsoft's
guidance, 2023): after "Once upon a ti" the model may still write " time".
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
    """Keep the tokens that spell the text taken back, or begin with what is left of it."""

    name = "healing"
    text: str
    token_bytes: Mapping[int, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        """Nothing to check: no user writes this stage."""

    def start(self, request: Request) -> bytes:
        """All of the text is still to come."""
        return self.text.encode()

    def observe(self, state: bytes, token_id: int, logits: "Tensor") -> bytes:
        """What is left after a token."""
        return state[len(self.token_bytes.get(token_id, b"")) :]

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Mask all other tokens; where none is left, or nothing is to come any more, none."""
        due: bytes = step.state
        if not due:
            return logits
        import torch

        fits = [i for i, own in self.token_bytes.items() if own and (own.startswith(due) or due.startswith(own))]
        if not fits:
            return logits
        healed = torch.full_like(logits, -math.inf)
        healed[fits] = logits[fits]
        return healed
