"""Restless: a story that has gone without a surprise for a while gets warmer, until one comes.

A token is a surprise when its probability, as this stage received it, is below one half. Every token since the
last surprise adds `growth` to the temperature, up to `limit`; a surprise brings it back to 1. So set phrases run at
full likelihood for a few words, and the longer everything goes as expected, the sooner something else happens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Request, Step, option

if TYPE_CHECKING:  # torch is imported only when a story is written, so that completion and help are quick
    from torch import Tensor


@dataclass(frozen=True)
class Restless(LogitsProcessor):
    """Raise the temperature with every token that is no surprise."""

    name = "restless"
    growth: float = option(0.1, ge=0, neutral=0, help="added to the temperature for each token without a surprise")
    limit: float = option(2.0, ge=1, help="the highest temperature")

    def start(self, request: Request) -> int:
        """How many tokens ago the last surprise was; the state is one immutable number."""
        return 0

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> logits / temperature."""
        return logits / min(1 + self.growth * step.state, self.limit)

    def observe(self, state: int, token_id: int, logits: "Tensor") -> int:
        """Count on, or begin anew after a surprise."""
        surprise = bool(logits.softmax(dim=-1)[token_id] < 0.5)
        return 0 if surprise else state + 1
