"""Top-a sampling (BlinkDL 2022, in the repository of RWKV-LM; there is no paper).

A token stays if its probability is at least a times the square of the largest one. If the model is certain, this limit
is nearly a. If the largest probability is small, its square is much smaller, and nearly all tokens stay.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TopA(LogitsProcessor):
    """Keep the tokens whose probability is at least a times the square of the largest one."""

    name = "top-a"
    takes_arrays = True
    a: float = option(
        0.2,
        ge=0,
        le=1,
        neutral=0,
        instead="leave the stage out",
        help="share of the squared top probability that a token must reach",
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Set the (V,) logits of tokens with a probability below a · (the largest one)² to −inf."""
        probs = logits.softmax(dim=-1)
        return logits.masked_fill(probs < self.a * probs.max() ** 2, -math.inf)
