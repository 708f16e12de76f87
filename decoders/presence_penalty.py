"""The presence penalty of OpenAI's interface, which vLLM shares: only generated tokens count, not the prompt.

A token that has been generated before loses c, however often it was. It pushes on to new words without punishing a
word more for each use, as the frequency penalty does. Below 0 it favours what was there.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PresencePenalty(LogitsProcessor):
    """Make tokens that were written less likely, once and for all."""

    name = "presence-penalty"
    example = "presence-penalty 0.5"
    c: float = option(ge=-100, le=100, neutral=0, help="taken from the logit of each token that was written")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> logits − c for the tokens generated so far."""
        import torch

        written = torch.tensor(list(set(step.token_ids[step.n_prompt :])), dtype=torch.long, device=logits.device)
        return logits.index_copy(0, written, logits[written] - self.c)
