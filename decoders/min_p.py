"""Min-p sampling (Nguyen et al. 2024, arXiv 2407.01082; its claims are disputed by arXiv 2506.13681).

A token stays if it is at least p times as likely as the likeliest one. If the model is certain, few tokens stay, and if
it is uncertain, many do. The likeliest token always stays.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MinP(LogitsProcessor):
    """Keep the tokens that are at least p times as likely as the likeliest one."""

    name = "min-p"
    takes_arrays = True
    p: float = option(
        0.1,
        ge=0,
        le=1,
        neutral=0,
        instead="leave the stage out",
        help="share of the top probability that a token must reach",
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Set the (V,) logits of tokens with a probability below p · the largest one to −inf."""
        probs = logits.softmax(dim=-1)
        return logits.masked_fill(probs < self.p * probs.max(), -math.inf)
