"""Dynamic temperature by entropy (kalomaze 2023; llama.cpp calls it `--dynatemp-range` and uses middle and range).

The flatter the distribution, the higher the temperature. H is its entropy, and n is the number of tokens left. So
H / ln n is 0 if the model is certain, and 1 if all tokens are equally likely. This number, raised to `exponent`, sets
the temperature between `low` and `high`. A certain model keeps to its likeliest tokens, and an uncertain one varies.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DynamicTemperature(LogitsProcessor):
    """Divide the logits by a temperature between `low` (the model is certain) and `high` (it is uncertain)."""

    name = "dynamic-temperature"
    example = "dynamic-temperature low=0.5 high=1.2"
    low: float = option(gt=0, neutral=1, instead="leave the stage out", help="the temperature if one token is certain")
    high: float = option(
        gt=0, neutral=1, instead="leave the stage out", help="the temperature if all tokens left are equally likely"
    )
    exponent: float = option(1.0, gt=0, help="above 1 keeps the temperature nearer to low, below 1 nearer to high")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Return (V,) logits / t, with t = low + (high − low) · (H / ln n)^exponent if n tokens are left."""
        log_probs = logits.log_softmax(dim=-1)
        entropy = -float((log_probs * log_probs.exp()).nansum())
        n = int((logits > -math.inf).sum())
        uncertainty = min(max(entropy / math.log(n), 0.0), 1.0) if n > 1 else 0.0
        t = self.low + (self.high - self.low) * math.pow(uncertainty, self.exponent)
        # The bounds keep float32 quotients finite, as in `temperature`.
        return logits / min(max(t, 1e-30), 1e30)
