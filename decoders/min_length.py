"""A minimum length: the story cannot end before it has n new tokens (transformers' `min_new_tokens`).

As long as the story has fewer than n new tokens, the EOS tokens are removed. If no other token is left, they stay. New
tokens are those after the text that the user wrote, no matter how often the story was stopped and continued.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MinLength(LogitsProcessor):
    """Remove the EOS tokens until the story has n new tokens."""

    name = "min-length"
    example = "min-length 100"
    n: int = option(
        ge=0,
        neutral=0,
        instead="leave the stage out",
        help="the smallest number of new tokens; the prompt does not count",
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Set the (V,) logits of the EOS tokens to −inf, unless no other token is left."""
        import torch

        if len(step.token_ids) - step.n_prompt >= self.n:
            return logits
        ends = torch.tensor([i for i in step.eos_ids if i < len(logits)], dtype=torch.long, device=logits.device)
        output = logits.index_fill(0, ends, -math.inf)
        return output if output.max() > -math.inf else logits
