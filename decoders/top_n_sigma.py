"""Top-nσ sampling (Tang et al. 2024, "Top-nσ: not all logits are you need", arXiv 2411.07641).

The logits of unlikely tokens scatter around a mean, and the few important ones are far above it. So a token stays if
its logit is at most n standard deviations below the largest one. A temperature before or after this stage does not
change which tokens stay, because it scales the logits and their standard deviation alike.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TopNSigma(LogitsProcessor):
    """Keep the tokens whose logit is at most n standard deviations below the largest one."""

    name = "top-n-sigma"
    n: float = option(
        1.0,
        gt=0,
        instead="leave the stage out",
        help="how many standard deviations below the largest logit a token may be",
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Set the (V,) logits below max − n · σ to −inf. σ is that of the logits that are left."""
        sigma = logits[logits > -math.inf].std(correction=0)
        return logits.masked_fill(logits < logits.max() - self.n * sigma, -math.inf)
