"""Temperature (Ackley, Hinton and Sejnowski 1985, "A learning algorithm for Boltzmann machines").

Logits are divided by t before they become probabilities. Below 1, likely tokens gain and stories become safer. Above 1,
unlikely tokens gain. No token is removed. The place among the other stages matters, because each stage sees the logits
that the stage before it gives.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Temperature(LogitsProcessor):
    """Divide the logits by t: below 1 makes likely tokens likelier, above 1 makes unlikely tokens likelier."""

    name = "temperature"
    example = "temperature 0.8"
    takes_arrays = True
    t: float = option(gt=0, neutral=1, instead="write `greedy`", help="logits are divided by t")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Return (V,) logits / t."""
        # Beyond these bounds, t is the same as greedy or uniform. The bounds keep float32 quotients finite.
        return logits / min(max(self.t, 1e-30), 1e30)
