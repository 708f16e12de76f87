"""Locally typical sampling (Meister et al. 2022, arXiv 2202.00666).

People neither say the most expected thing all the time nor wholly unexpected ones. So tokens are taken in the order in
which their surprise, −ln p, is near to what the model expects, its entropy, until they hold `mass` of the probability;
the others go. The likeliest token can be among those.
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
    """Keep the tokens about as surprising as the model expects the next one to be."""

    name = "typical"
    example = "typical 0.9"
    mass: float = option(gt=0, le=1, neutral=1, help="probability the kept tokens reach together")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> those whose surprise is nearest to the entropy, −inf elsewhere.

        The likeliest token goes where it is too sure a thing; tokens as far from the entropy as the last one kept
        stay too.
        """
        log_probs = logits.log_softmax(dim=-1)
        entropy = -(log_probs * log_probs.exp()).nansum()
        distance = (-log_probs - entropy).abs()
        if len(logits) > SMALL:
            worth, probs = (array.numpy(force=True) for array in (-distance, log_probs.exp()))
            # In this order float32 sums are off by up to 2.5e-5.
            least = worth_of_last(worth, probs, self.mass, doubt=1e-4)
            if least is not None:
                return logits.masked_fill(distance > -least, -math.inf)
        ascending, token_ids = distance.sort()
        cumulative = logits[token_ids].softmax(dim=-1).cumsum(dim=-1)
        # Float32 sums may end below 1, hence the min.
        last_kept = min(int((cumulative < self.mass).sum()), len(logits) - 1)
        return logits.masked_fill(distance > ascending[last_kept], -math.inf)
