"""Temperature (Ackley, Hinton and Sejnowski 1985, "A learning algorithm for Boltzmann machines").

Logits are divided by t before they become probabilities. Below 1 likely tokens gain and stories get safer; above 1
unlikely ones gain. Nothing is removed, and where it stands among other stages matters: each sees what the one before
it made.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Temperature(LogitsProcessor):
    """Sharpen (below 1) or flatten (above 1) the distribution."""

    name = "temperature"
    example = "temperature 0.8"
    takes_arrays = True
    t: float = option(gt=0, neutral=1, help="logits are divided by it")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> logits / t."""
        # So small is greedy already and so large is uniform; the bounds keep float32 quotients finite.
        return logits / min(max(self.t, 1e-30), 1e30)
