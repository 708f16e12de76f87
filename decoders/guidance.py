"""Classifier-free guidance for text (Sanchez et al. 2023, arXiv 2306.17806).

The model is asked twice, once with the prompt and once without it or with another one, and the difference is enlarged.
What the prompt makes likelier is raised, so the story holds on to it; what the negative prompt makes likelier is
lowered. Each token costs two steps of the model.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tinystory.decoding import LogitsProcessor, Request, Step, option
from tinystory.decoding.companion import Companion

if TYPE_CHECKING:
    from torch import Tensor

_FLOOR = -1e4
"""Log-probabilities below are as good as impossible; the bound keeps differences of them finite."""


class _Aside(NamedTuple):
    """The model without the prompt, and what it reads instead."""

    companion: Companion
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Guidance(LogitsProcessor):
    """Hold the story closer to its prompt, and away from another one.

    The model is asked twice for each token: after the story, l, and after the negative prompt and what was generated,
    l_neg, both log-probabilities. The result is l_neg + scale · (l − l_neg). Without a negative prompt, what was
    generated stands behind the begin of a story alone; where the model has none, behind the prompt's last token.
    """

    name = "guidance"
    example = 'guidance 1.5 negative="A sad story."'
    scale: float = option(ge=1, le=100, neutral=1, help="how much the prompt counts; 1 is as ever, above 3 is a lot")
    negative: str = option("", help="a prompt to stay away from")

    def start(self, request: Request) -> _Aside:
        """Open the second session."""
        companion = Companion(request)
        ids = request.require_vocabulary().encode(self.negative) if self.negative else []
        if not ids:
            n_prompt = len(request.prompt_ids) if request.n_prompt is None else request.n_prompt
            ids = [request.prompt_ids[n_prompt - 1] if companion.bos_id is None else companion.bos_id]
        return _Aside(companion, tuple(ids))

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> guided log-probabilities, not normalised; removed tokens stay removed."""
        aside: _Aside = step.state
        negative = aside.companion.log_probs([*aside.token_ids, *step.token_ids[step.n_prompt :]], logits)
        own, negative = logits.log_softmax(dim=-1).clamp(min=_FLOOR), negative.clamp(min=_FLOOR)
        guided = negative + self.scale * (own - negative)
        return guided.masked_fill(logits == -math.inf, -math.inf)

    def statistics(self, state: _Aside) -> dict[str, float]:
        """What the second look took."""
        return state.companion.statistics(self.name)
