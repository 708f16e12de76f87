"""The frequency penalty of OpenAI's interface, which vLLM shares: only generated tokens count, not the prompt.

A token loses c for every time it has been generated so far. What is repeated often becomes rare, commas and articles
too: a large c makes the language strange. Below 0 it favours what was there.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FrequencyPenalty(LogitsProcessor):
    """Make tokens less likely each time they are written."""

    name = "frequency-penalty"
    example = "frequency-penalty 0.3"
    c: float = option(ge=-100, le=100, neutral=0, help="taken from a token's logit for each time it was written")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> logits − c · how often each token was generated."""
        import torch

        written = torch.tensor(step.token_ids[step.n_prompt :], dtype=torch.long, device=logits.device)
        counts = written.bincount(minlength=len(logits))
        return logits - self.c * counts.to(logits.dtype)
