"""Eta sampling (Hewitt, Manning and Liang 2022, "Truncation sampling as desmoothing", arXiv 2210.15191).

A token is removed if its probability is below the smaller of two numbers: e, and √e · exp(−H). Here H is the entropy
in nats. So a flat distribution keeps its many unlikely tokens, and a peaked one loses its tail as with epsilon
sampling. The likeliest token always stays.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Eta(LogitsProcessor):
    """Keep the tokens that have at least some probability, which is lower if the model is uncertain."""

    name = "eta"
    e: float = option(
        3e-4,
        gt=0,
        lt=1,
        instead="leave the stage out",
        help="the smallest probability that stays is the smaller of e and √e · exp(−entropy)",
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Set the (V,) logits of tokens below the cut-off to −inf, but not that of the likeliest one."""
        import torch

        log_probs = logits - logits.logsumexp(dim=-1)
        # The clamp makes 0 · −inf a zero, because a removed token adds nothing to the entropy.
        entropy = -(log_probs.clamp(min=torch.finfo(logits.dtype).min) * log_probs.softmax(dim=-1)).sum()
        e = logits.new_tensor(self.e)
        cutoff = torch.minimum(e, e.sqrt() * (-entropy).exp())
        unlikely = logits.softmax(dim=-1) < cutoff
        return logits.masked_fill(unlikely & (logits < logits.max()), -math.inf)
