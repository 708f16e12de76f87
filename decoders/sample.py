"""Sampling from the whole distribution that is left (ancestral sampling), with coupled luck.

A token is drawn with its own probability, after the logits are divided by the temperature. The draw is Gumbel-max
(Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030): the argmax of logits plus noise. The noise is a function of seed,
position and token, so two decoders with one seed part only where they leave different tokens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import Sampler, Step, draw, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sample(Sampler):
    """Draw a token by its probability."""

    name = "sample"
    example = "sample 0.8"
    takes_arrays = True
    temperature: float = option(1.0, gt=0, help="below 1 likely tokens gain, above 1 unlikely ones do")

    def __call__(self, logits: "Tensor", step: Step) -> int:
        """(V,) logits -> a draw from softmax(logits / temperature)."""
        return draw(logits, step.noise(), self._divisor)

    def log_probs(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> the log-softmax of logits / temperature."""
        return (logits / self._divisor).log_softmax(dim=-1)

    @property
    def _divisor(self) -> float:
        # Any temperature so small is greedy already; the bound keeps the quotient finite.
        return max(self.temperature, 1e-30)
