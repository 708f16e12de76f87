"""Greedy decoding, without any noise.

Every token is the one that the model finds likeliest. So a prompt has exactly one story, and the seed has no effect. A
small model soon writes a very common story, and a long story may repeat itself: the likeliest next token does not
always lead to a likely story.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import Sampler, Step

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Greedy(Sampler):
    """Always pick the likeliest token."""

    name = "greedy"
    takes_arrays = True

    def __call__(self, logits: "Tensor", step: Step) -> int:
        """Return the id of the largest of the (V,) logits; of equal ones, the lowest id."""
        return int(logits.argmax())

    def log_probs(self, logits: "Tensor", step: Step) -> "Tensor":
        """Return (V,) log-probabilities: 0 for the picked token and −inf for the others."""
        return logits.new_full(logits.shape, -math.inf).index_fill(0, logits.argmax(), 0)
