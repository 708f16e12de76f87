"""Classifier-free guidance for text (Sanchez et al. 2023, arXiv 2306.17806).

The model is asked twice: with the prompt, and without it or with a negative prompt. The difference is enlarged. Tokens
that the prompt makes likelier gain, so the story follows its prompt more closely. Tokens that the negative prompt makes
likelier lose. Each token costs two steps of the model.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tinystory.decoding import Companion, LogitsProcessor, Request, Step, option

if TYPE_CHECKING:
    from torch import Tensor

_FLOOR = -1e4
"""A lower log-probability means impossible in practice. The bound keeps differences finite."""


class _Unprompted(NamedTuple):
    """The second session, and the token ids that it reads instead of the prompt."""

    companion: Companion
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Guidance(LogitsProcessor):
    """Raise tokens that the prompt makes likelier, and lower those that a negative prompt makes likelier.

    The model is asked twice for each token. Its log-probabilities are l after the story, and l_neg after the negative
    prompt and the generated tokens. The result is l_neg + scale · (l − l_neg). Without a negative prompt, l_neg follows
    BOS and the generated tokens; if the model has no BOS, the last token of the prompt replaces it.
    """

    name = "guidance"
    example = 'guidance 1.5 negative="A sad story."'
    scale: float = option(
        ge=1,
        le=100,
        neutral=1,
        instead="leave the stage out",
        help="how strongly the prompt counts; 1 changes nothing, and more than 3 is very strong",
    )
    negative: str = option("", help="a prompt that the story should not be like")

    def start(self, request: Request) -> _Unprompted:
        """Open the second session."""
        companion = Companion(request)
        ids = request.require_vocabulary().encode(self.negative) if self.negative else []
        if not ids:
            n_prompt = len(request.prompt_ids) if request.n_prompt is None else request.n_prompt
            ids = [request.prompt_ids[n_prompt - 1] if companion.bos_id is None else companion.bos_id]
        return _Unprompted(companion, tuple(ids))

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Return (V,) guided log-probabilities, not normalized. Removed tokens stay removed."""
        unprompted: _Unprompted = step.state
        generated = step.token_ids[step.n_prompt :]
        negative = unprompted.companion.log_probs([*unprompted.token_ids, *generated], logits).clamp(min=_FLOOR)
        prompted = logits.log_softmax(dim=-1).clamp(min=_FLOOR)
        guided = negative + self.scale * (prompted - negative)
        return guided.masked_fill(logits == -math.inf, -math.inf)

    def statistics(self, state: _Unprompted) -> dict[str, float]:
        """Return the calls and the seconds of the second session."""
        return state.companion.statistics(self.name)
