"""Top-a sampling (BlinkDL 2022, in the repository of RWKV-LM; there is no paper).

A token stays if its probability is at least a times the square of the largest. Where the model is sure, the bar is
near a itself; where the largest probability is small, its square is far smaller, and nearly everything stays.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TopA(LogitsProcessor):
    """Keep tokens by the square of the top probability: many where the model is undecided, few where it is sure."""

    name = "top-a"
    takes_arrays = True
    a: float = option(0.2, ge=0, le=1, neutral=0, help="share of the squared top probability a token must reach")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> those of tokens with probability of at least a · (the largest)², −inf elsewhere."""
        probs = logits.softmax(dim=-1)
        return logits.masked_fill(probs < self.a * probs.max() ** 2, -math.inf)
