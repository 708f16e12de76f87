"""Epsilon sampling (Hewitt, Manning and Liang 2022, "Truncation sampling as desmoothing", arXiv 2210.15191).

A token with a probability below a fixed number is removed, because such small probabilities are mostly left over from
training. The likeliest token always stays. The number does not depend on the certainty of the model: if the model is
uncertain, sensible tokens are removed, too.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Epsilon(LogitsProcessor):
    """Keep the tokens that have at least a fixed probability."""

    name = "epsilon"
    takes_arrays = True
    e: float = option(
        3e-4,
        gt=0,
        lt=1,
        instead="leave the stage out",
        help="the smallest probability that stays; the likeliest token always stays",
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Set the (V,) logits of tokens with a probability below e to −inf."""
        unlikely = logits.softmax(dim=-1) < self.e
        return logits.masked_fill(unlikely & (logits < logits.max()), -math.inf)
