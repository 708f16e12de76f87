"""The repetition penalty of CTRL (Keskar et al. 2019, arXiv 1909.05858).

The paper divides the logit of every seen token, but that would reward a negative logit. So negative logits are
multiplied, as in transformers. The prompt counts, with BOS. If a model ends its stories with this same token, the end
of the story is penalized, too, as in transformers. With a window, BOS stops counting when the story is longer.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RepetitionPenalty(LogitsProcessor):
    """Make every token that the story already has less likely by a factor."""

    name = "repetition-penalty"
    example = "repetition-penalty 1.1"
    r: float = option(
        gt=0,
        neutral=1,
        instead="leave the stage out",
        help="logits above 0 are divided by it, others are multiplied; below 1 it rewards repetition",
    )
    window: int = option(
        0, ge=0, instead="write 0 for all tokens", help="how many of the latest tokens count; 0 means all"
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Divide or multiply the (V,) logits of seen tokens by r."""
        import torch

        latest = step.token_ids[-self.window :]  # [-0:] is the whole story
        seen = torch.tensor(list(set(latest)), device=logits.device)
        r = min(max(self.r, 1e-30), 1e30)  # keeps float32 finite
        scores = logits[seen]
        return logits.index_copy(0, seen, torch.where(scores > 0, scores / r, scores * r))
