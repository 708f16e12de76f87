"""Top-nσ sampling (Tang et al. 2024, "Top-nσ: not all logits are you need", arXiv 2411.07641).

Logits of unlikely tokens scatter like noise around a mean, and the few that matter stand out above them. So a token
stays if its logit is within n standard deviations of the largest one. Temperature before or after it does not change
what stays: both sides of the comparison scale alike.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TopNSigma(LogitsProcessor):
    """Keep tokens whose logit is within n standard deviations of the largest."""

    name = "top-n-sigma"
    n: float = option(1.0, gt=0, help="how many standard deviations below the largest logit are kept")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> those of at least max − n · σ, −inf elsewhere; σ is over the logits that are left."""
        sigma = logits[logits > -math.inf].std(correction=0)
        return logits.masked_fill(logits < logits.max() - self.n * sigma, -math.inf)
