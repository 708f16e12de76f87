"""Contrastive decoding (Li et al. 2022, arXiv 2210.15097) in the form of O'Brien and Lewis (2023, arXiv 2309.09117).

What a weak model finds likely is often what any text does: repeat, stay vague, go in circles. So the difference to it
is taken: of the tokens that the expert holds plausible, those gain which it finds likelier than the amateur does. The
amateur reads the same story, in a second session, so each token costs a step of both.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Request, Step, option
from tinystory.decoding.companion import Companion

if TYPE_CHECKING:
    from torch import Tensor

_FLOOR = -1e4
"""Log-probabilities below are as good as impossible; the bound keeps differences of them finite."""


@dataclass(frozen=True)
class ExpertAmateur(LogitsProcessor):
    """Prefer what the model knows better than a weaker one, the amateur.

    Of tokens at least alpha times as likely as the likeliest, (1 + beta) · l_expert − beta · l_amateur; all others are
    removed. Both l are log-probabilities; with logits, as the paper has it, the distribution is the same. The amateur
    has the same vocabulary; it may be an early checkpoint of the same run.
    """

    name = "expert-amateur"
    amateur: str = option("mini", help="a checkpoint that writes worse, in the same tokens")
    alpha: float = option(0.1, ge=0, le=1, neutral=0, help="share of the top probability a token must reach")
    beta: float = option(0.5, ge=0, le=100, neutral=0, help="how much the amateur counts against a token")

    def models(self) -> tuple[str, ...]:
        """The amateur."""
        return (self.amateur,)

    def start(self, request: Request) -> Companion:
        """Open the amateur."""
        return Companion(request, self.amateur)

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> contrasted log-probabilities, not normalised, −inf for what is not plausible."""
        expert = logits.log_softmax(dim=-1)
        companion: Companion = step.state
        amateur = companion.log_probs(step.token_ids, logits).clamp(min=_FLOOR)
        removed = expert == -math.inf
        if self.alpha:
            removed |= expert < expert.max() + math.log(self.alpha)
        contrasted = (1 + self.beta) * expert.clamp(min=_FLOOR) - self.beta * amateur
        return contrasted.masked_fill(removed, -math.inf)

    def statistics(self, state: Companion) -> dict[str, float]:
        """What the amateur took."""
        return state.statistics("amateur")
