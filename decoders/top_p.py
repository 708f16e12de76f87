"""Top-p or nucleus sampling (Holtzman et al. 2020, "The curious case of neural text degeneration", 1904.09751).

Tokens stay, the likeliest first, until together they have probability p; the long tail, each of whose tokens is
unlikely but which as a whole is not, goes. How many stay follows the model's own certainty, from one to hundreds.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TopP(LogitsProcessor):
    """Keep the likeliest tokens that together reach a share of the probability."""

    name = "top-p"
    example = "top-p 0.9"
    p: float = option(gt=0, le=1, neutral=1, help="probability the kept tokens reach together")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> the smallest set of likeliest tokens with mass of at least p, −inf elsewhere.

        Which of several equal tokens stay at the cut is up to torch's sort, as it is in transformers.
        """
        ascending, token_ids = logits.sort()
        # Summing from the small end keeps the tail exact in float32: a token goes while all up to it fit in 1 − p.
        removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.p
        removed[-1] = False
        return logits.masked_fill(removed.scatter(0, token_ids, removed), -math.inf)
