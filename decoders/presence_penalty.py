"""The presence penalty of OpenAI's API and of vLLM: it counts the generated tokens, and not the prompt.

A token that has been generated before loses c, no matter how often it was generated. So the story moves on to new
words, and a word is not punished more for each use, as with the frequency penalty. A negative c favours tokens that
have been generated.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PresencePenalty(LogitsProcessor):
    """Lower the logit of each token that was generated before by c, once for all of its uses."""

    name = "presence-penalty"
    example = "presence-penalty 0.5"
    c: float = option(ge=-100, le=100, neutral=0, help="subtracted from the logit of each token that was generated")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Subtract c from the (V,) logits of the tokens that were generated."""
        import torch

        written = torch.tensor(list(set(step.token_ids[step.n_prompt :])), dtype=torch.long, device=logits.device)
        return logits.index_copy(0, written, logits[written] - self.c)
