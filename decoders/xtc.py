"""XTC, exclude top choices (p-e-w 2024, text-generation-webui pull request 6335; the rule is that of llama.cpp).

Tokens with a probability of at least `threshold` are good choices. Now and then, by chance, all of them except the
least likely one are removed. So the story becomes less expected, but it still makes sense. text-generation-webui does
not remove newlines and the end of the text; llama.cpp and this file have no exceptions. The coupled noise decides at
which positions the rule is used, in a stream of its own.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class XTC(LogitsProcessor):
    """Now and then remove all likely tokens except the least likely of them."""

    name = "xtc"
    takes_arrays = True
    probability: float = option(
        0.5,
        ge=0,
        le=1,
        neutral=0,
        instead="leave the stage out",
        help="the share of positions at which the rule is used",
    )
    threshold: float = option(
        0.1,
        gt=0,
        le=0.5,
        instead="leave the stage out",
        help="the smallest probability of a likely token; above 0.5 there could be only one",
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Keep the (V,) logits below the threshold and the smallest of the others; of equals, the lowest id stays."""
        if step.noise("xtc").uniform() > self.probability:
            return logits
        # A threshold of nearly 0 is 0 in float32, which removed tokens would reach, too.
        likely = (logits.softmax(dim=-1) >= self.threshold) & (logits > -math.inf)
        if not likely.any():
            return logits
        least = logits.masked_fill(~likely, math.inf).argmin()
        return logits.masked_fill(likely.index_fill(0, least, False), -math.inf)
