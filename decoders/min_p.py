"""Min-p sampling (Nguyen et al. 2024, arXiv 2407.01082; its claims are disputed by arXiv 2506.13681).

A token stays if it is at least p times as likely as the likeliest one. Where the model is sure few tokens pass, where
it is not many do: the bar follows the model, token by token. The likeliest always passes.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MinP(LogitsProcessor):
    """Keep tokens at least p times as likely as the likeliest."""

    name = "min-p"
    takes_arrays = True
    p: float = option(0.1, ge=0, le=1, neutral=0, help="share of the top probability a token must reach")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> those of tokens with probability of at least p · the largest, −inf elsewhere."""
        probs = logits.softmax(dim=-1)
        return logits.masked_fill(probs < self.p * probs.max(), -math.inf)
