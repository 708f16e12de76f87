"""Epsilon sampling (Hewitt, Manning and Liang 2022, "Truncation sampling as desmoothing", arXiv 2210.15191).

A token whose probability is below a fixed number is noise that training has left there, so it goes; the likeliest
always stays. The number does not ask how sure the model is: where it is undecided, much that is sensible goes too.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Epsilon(LogitsProcessor):
    """Keep tokens of at least a fixed probability."""

    name = "epsilon"
    takes_arrays = True
    e: float = option(3e-4, gt=0, lt=1, help="the smallest probability that stays; the likeliest token always does")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> those of tokens with probability of at least e, −inf elsewhere."""
        unlikely = logits.softmax(dim=-1) < self.e
        return logits.masked_fill(unlikely & (logits < logits.max()), -math.inf)
