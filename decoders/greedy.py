"""Greedy decoding: no luck at all.

Every token is the one that the model holds for the likeliest, so there is one story for a prompt and no seed matters.
A small model soon tells the commonest story there is, and on a long one it may run in circles: what is likely next and
what is a likely story are two things.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import Sampler, Step

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Greedy(Sampler):
    """Always take the likeliest token."""

    name = "greedy"
    takes_arrays = True

    def __call__(self, logits: "Tensor", step: Step) -> int:
        """(V,) logits -> the id of the largest; the lowest id where several are equal."""
        return int(logits.argmax())

    def log_probs(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> 0 at the token it takes, −inf elsewhere."""
        return logits.new_full(logits.shape, -math.inf).index_fill(0, logits.argmax(), 0)
