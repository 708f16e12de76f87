"""Contrastive decoding (Li et al. 2022, arXiv 2210.15097) in the form of O'Brien and Lewis (2023, arXiv 2309.09117).

A weak model, the amateur, often likes the tokens of any text: repetitions and vague phrases. So this stage uses the
difference between two models. Of the tokens that the model itself finds plausible, those gain that it finds likelier
than the amateur does. The amateur reads the same story in a second session, so each token costs a step of both models.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import Companion, LogitsProcessor, Request, Step, option

if TYPE_CHECKING:
    from torch import Tensor

_FLOOR = -1e4
"""A lower log-probability means impossible in practice. The bound keeps differences finite."""


@dataclass(frozen=True)
class ExpertAmateur(LogitsProcessor):
    """Prefer tokens that the model finds likelier than a weaker model, the amateur, does.

    A token stays if it is at least alpha times as likely as the likeliest one. Its new logit is
    (1 + beta) · l_expert − beta · l_amateur, where both l are log-probabilities. The paper uses logits, which gives the
    same distribution. The amateur must have the same vocabulary; it may be an early checkpoint of the same run.
    """

    name = "expert-amateur"
    amateur: str = option("mini", help="a weaker checkpoint with the same tokens")
    alpha: float = option(0.1, ge=0, le=1, neutral=0, help="share of the top probability that a token must reach")
    beta: float = option(
        0.5, ge=0, le=100, neutral=0, help="how strongly the amateur's probability counts against a token"
    )

    def models(self) -> tuple[str, ...]:
        """Return the name of the amateur."""
        return (self.amateur,)

    def start(self, request: Request) -> Companion:
        """Open the amateur."""
        return Companion(request, self.amateur)

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Return (V,) contrasted log-probabilities, not normalized, with −inf for tokens that are not plausible."""
        expert = logits.log_softmax(dim=-1)
        companion: Companion = step.state
        amateur = companion.log_probs(step.token_ids, logits).clamp(min=_FLOOR)
        removed = expert == -math.inf
        if self.alpha:
            removed |= expert < expert.max() + math.log(self.alpha)
        contrasted = (1 + self.beta) * expert.clamp(min=_FLOOR) - self.beta * amateur
        return contrasted.masked_fill(removed, -math.inf)

    def statistics(self, state: Companion) -> dict[str, float]:
        """Return the calls and the seconds of the amateur."""
        return state.statistics("amateur")
