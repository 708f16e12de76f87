"""The repetition penalty of CTRL (Keskar et al. 2019, arXiv 1909.05858).

The paper divides every seen token's logit, which would reward it where the logit is negative; as in transformers,
negative ones are multiplied. The prompt counts, BOS with it: where a model ends its stories by that same token, the end
is penalised too, as it is in transformers. A window forgets BOS once the story is longer.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RepetitionPenalty(LogitsProcessor):
    """Make tokens that the story already has less likely."""

    name = "repetition-penalty"
    example = "repetition-penalty 1.1"
    r: float = option(gt=0, neutral=1, help="logits above 0 are divided by it, others multiplied; below 1 it rewards")
    window: int = option(0, ge=0, help="how many of the latest tokens count; 0 is all")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> those of seen tokens divided or multiplied by r, the others as they are."""
        import torch

        latest = step.token_ids[-self.window :]  # [-0:] is all of them
        seen = torch.tensor(list(set(latest)), device=logits.device)
        r = min(max(self.r, 1e-30), 1e30)  # keeps float32 finite
        scores = logits[seen]
        return logits.index_copy(0, seen, torch.where(scores > 0, scores / r, scores * r))
