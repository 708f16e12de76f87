"""Restless: the temperature rises while a story has no surprise, and falls back to 1 after a surprise.

A token is a surprise if its probability, as this stage received it, is below one half. Every token since the last
surprise adds `growth` to the temperature, up to `limit`. So a fixed phrase keeps its likely words for a while, and the
longer everything goes as expected, the sooner something else happens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Request, Step, option

if TYPE_CHECKING:  # importing torch takes seconds, so completion and help must not wait for it
    from torch import Tensor


@dataclass(frozen=True)
class Restless(LogitsProcessor):
    """Raise the temperature with every token that is not a surprise."""

    name = "restless"
    growth: float = option(0.1, ge=0, neutral=0, help="added to the temperature for each token without a surprise")
    limit: float = option(2.0, ge=1, help="the highest temperature")

    def start(self, request: Request) -> int:
        """Return the state: an immutable number, which counts the tokens since the last surprise."""
        return 0

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Return (V,) logits / temperature."""
        return logits / min(1 + self.growth * step.state, self.limit)

    def observe(self, state: int, token_id: int, logits: "Tensor") -> int:
        """Count one more token, or begin again at 0 after a surprise."""
        surprise = bool(logits.softmax(dim=-1)[token_id] < 0.5)
        return 0 if surprise else state + 1
