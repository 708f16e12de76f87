"""Sampling from all tokens that are left (ancestral sampling), with coupled noise.

The logits are divided by the temperature, and then each token is drawn with its own probability. The draw is Gumbel-max
(Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030): the argmax of logits plus noise. The noise is a function of seed,
position and token. So two decoders with one seed differ only because they leave different tokens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import Sampler, Step, draw, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sample(Sampler):
    """Draw a token with its own probability, after dividing the logits by a temperature."""

    name = "sample"
    example = "sample 0.8"
    takes_arrays = True
    temperature: float = option(
        1.0, gt=0, instead="write `greedy`", help="below 1 favours likely tokens, above 1 unlikely ones"
    )

    def __call__(self, logits: "Tensor", step: Step) -> int:
        """Draw a token from softmax(logits / temperature), for (V,) logits."""
        return draw(logits, step.noise(), self._divisor)

    def log_probs(self, logits: "Tensor", step: Step) -> "Tensor":
        """Return the (V,) log-softmax of logits / temperature."""
        return (logits / self._divisor).log_softmax(dim=-1)

    @property
    def _divisor(self) -> float:
        # Beyond these bounds, the temperature is the same as greedy or uniform. They keep float32 quotients finite.
        return min(max(self.temperature, 1e-30), 1e30)
