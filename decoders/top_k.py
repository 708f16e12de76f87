"""Top-k sampling (Fan, Lewis and Dauphin 2018, "Hierarchical neural story generation", arXiv 1805.04833).

The k tokens with the largest logits stay, together with those that equal the last of them. The number is the same
whether the model is sure of the next token or not: 40 is generous within a name and narrow at the start of a sentence.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TopK(LogitsProcessor):
    """Keep the k likeliest tokens."""

    name = "top-k"
    example = "top-k 40"
    takes_arrays = True
    k: int = option(ge=1, help="how many tokens stay; equals of the last one stay too")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> those of at least the k-th largest, −inf elsewhere."""
        smallest_kept = logits.topk(min(self.k, len(logits))).values[-1]
        return logits.masked_fill(logits < smallest_kept, -math.inf)
