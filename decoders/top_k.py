"""Top-k sampling (Fan, Lewis and Dauphin 2018, "Hierarchical neural story generation", arXiv 1805.04833).

The k tokens with the largest logits stay, and so do tokens that equal the last of them. The number is the same for
certain and uncertain models: 40 tokens are many inside a name, and few at the start of a sentence.
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
    k: int = option(
        ge=1, instead="leave the stage out", help="how many tokens stay; tokens equal to the last one stay, too"
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Set the (V,) logits that are smaller than the k-th largest to −inf."""
        smallest_kept = logits.topk(min(self.k, len(logits))).values[-1]
        return logits.masked_fill(logits < smallest_kept, -math.inf)
