"""Locally typical sampling (Meister et al. 2022, arXiv 2202.00666).

People seldom say what is most expected, and seldom what is wholly unexpected. So tokens are kept whose surprise, −ln p,
is nearest to the entropy, which is the surprise that the model expects, until they have the probability `mass`. The
others are removed, and the likeliest token may be among them.

A token with a probability above 1 − `mass` always stays, because the others do not reach `mass`. So a large mass cuts
the same unlikely tokens as `top-p`. With the shipped model on held-out stories, `typical 0.95` and `top-p 0.95` keep
different tokens at 0.03 % of the places, both at 0.9 at 0.5 %, and both at 0.5 at half of the places.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option
from tinystory_decoders.top_p import SMALL, worth_of_last

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Typical(LogitsProcessor):
    """Keep the tokens whose surprise is nearest to the surprise that the model expects."""

    name = "typical"
    example = "typical 0.5"
    mass: float = option(
        gt=0, le=1, neutral=1, instead="leave the stage out", help="the probability that the kept tokens reach together"
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Keep the (V,) logits of tokens whose surprise is nearest to the entropy. Set the others to −inf.

        The likeliest token is removed if it is too likely. Tokens as far from the entropy as the last kept one stay,
        too.
        """
        log_probs = logits.log_softmax(dim=-1)
        entropy = -(log_probs * log_probs.exp()).nansum()
        distance = (-log_probs - entropy).abs()
        if len(logits) > SMALL:
            worth, probs = (array.numpy(force=True) for array in (-distance, log_probs.exp()))
            # In this order, float32 sums have errors of up to 2.5e-5.
            least = worth_of_last(worth, probs, self.mass, doubt=1e-4)
            if least is not None:
                return logits.masked_fill(distance > -least, -math.inf)
        ascending, token_ids = distance.sort()
        cumulative = logits[token_ids].softmax(dim=-1).cumsum(dim=-1)
        # A float32 sum may end below 1, so the index needs a limit.
        last_kept = min(int((cumulative < self.mass).sum()), len(logits) - 1)
        return logits.masked_fill(distance > ascending[last_kept], -math.inf)
