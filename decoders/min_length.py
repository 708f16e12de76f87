"""A least length: no end of the story before so many new tokens (transformers' `min_new_tokens`).

As long as the story has fewer than n new tokens, the tokens that end a story are removed. Where nothing else is left
they stay. New are those after the writer's own text, however often the story was stopped and continued.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MinLength(LogitsProcessor):
    """Do not let the story end before it has n new tokens."""

    name = "min-length"
    example = "min-length 100"
    n: int = option(ge=0, neutral=0, help="how many tokens have to be written, the prompt not counted")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> −inf for the tokens that end a story; where only those are left, they stay."""
        import torch

        if len(step.token_ids) - step.n_prompt >= self.n:
            return logits
        ends = torch.tensor([i for i in step.eos_ids if i < len(logits)], dtype=torch.long, device=logits.device)
        output = logits.index_fill(0, ends, -math.inf)
        return output if output.max() > -math.inf else logits
