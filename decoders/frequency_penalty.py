"""The frequency penalty of OpenAI's API and of vLLM: it counts the generated tokens, and not the prompt.

A token loses c for each time that it has been generated in the story. Tokens that come often become rare, also commas
and articles, so a large c makes the language strange. A negative c favours tokens that have been generated.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FrequencyPenalty(LogitsProcessor):
    """Lower the logit of a token by c for each time that it was generated."""

    name = "frequency-penalty"
    example = "frequency-penalty 0.3"
    c: float = option(
        ge=-100, le=100, neutral=0, help="subtracted from the logit of a token for each time that it was generated"
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Return (V,) logits − c · n, where n says how often each token was generated."""
        import torch

        written = torch.tensor(step.token_ids[step.n_prompt :], dtype=torch.long, device=logits.device)
        counts = written.bincount(minlength=len(logits))
        return logits - self.c * counts.to(logits.dtype)
