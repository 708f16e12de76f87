"""Dynamic temperature by entropy (kalomaze 2023; llama.cpp has it as `--dynatemp-range`, given by middle and range).

The flatter the distribution, the higher the temperature: H is its entropy and n the number of tokens left, so H / ln n
is 0 where the model is sure and 1 where every token is as good as another. Between `low` and `high` that share, raised
to `exponent`, decides. A model that is sure is held to what it says, one that is undecided may wander.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DynamicTemperature(LogitsProcessor):
    """One temperature where the model is sure, another where it is undecided, and all between."""

    name = "dynamic-temperature"
    example = "dynamic-temperature low=0.5 high=1.2"
    low: float = option(gt=0, neutral=1, help="the temperature where one token is certain")
    high: float = option(gt=0, neutral=1, help="the temperature where all tokens left are equally likely")
    exponent: float = option(1.0, gt=0, help="above 1 stays near low for longer, below 1 leaves it sooner")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> logits / t, where t = low + (high − low) · (H / ln n)^exponent and n tokens are left."""
        log_probs = logits.log_softmax(dim=-1)
        entropy = -float((log_probs * log_probs.exp()).nansum())
        n = int((logits > -math.inf).sum())
        undecided = min(max(entropy / math.log(n), 0.0), 1.0) if n > 1 else 0.0
        t = self.low + (self.high - self.low) * math.pow(undecided, self.exponent)
        # The bounds keep float32 quotients finite, as in temperature.
        return logits / min(max(t, 1e-30), 1e30)
