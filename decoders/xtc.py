"""XTC, exclude top choices (p-e-w 2024, text-generation-webui pull request 6335; the rule is llama.cpp's).

Tokens with a probability of at least `threshold` are choices that make sense. Now and then, by chance, all of them but
the least likely are removed: the story takes a turn that is less expected and still sensible. text-generation-webui
spares newlines and the end of the text; llama.cpp and this file know no exceptions. Whether the rule strikes at a
position comes from the coupled noise, in a stream of its own.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class XTC(LogitsProcessor):
    """Now and then remove all likely tokens but the least likely of them."""

    name = "xtc"
    takes_arrays = True
    probability: float = option(0.5, ge=0, le=1, neutral=0, help="how often it strikes")
    threshold: float = option(0.1, gt=0, le=0.5, help="probability of a likely token; two cannot both have over 0.5")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> those below the threshold and the smallest of the others; the lowest id of equals stays."""
        if step.noise("xtc").uniform() > self.probability:
            return logits
        likely = logits.softmax(dim=-1) >= self.threshold
        if not likely.any():
            return logits
        least = logits.masked_fill(~likely, math.inf).argmin()
        return logits.masked_fill(likely.index_fill(0, least, False), -math.inf)
