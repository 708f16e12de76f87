"""Eta sampling (Hewitt, Manning and Liang 2022, "Truncation sampling as desmoothing", arXiv 2210.15191).

A token goes if its probability is below e, or, where the model is undecided, below √e · exp(−H), H being the entropy
in nats; of both cut-offs the smaller one holds. So a flat distribution keeps its many small tokens, and a peaked one
loses its tail as with epsilon sampling. The likeliest always stays.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Eta(LogitsProcessor):
    """Keep tokens of at least a probability that falls where the model is undecided."""

    name = "eta"
    e: float = option(3e-4, gt=0, lt=1, help="the cut-off is the smaller of e and √e · exp(−entropy)")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> those of tokens that reach the cut-off, and the likeliest one; −inf elsewhere."""
        import torch

        log_probs = logits - logits.logsumexp(dim=-1)
        # The clamp makes 0 · −inf a zero, which is what a removed token adds to the entropy.
        entropy = -(log_probs.clamp(min=torch.finfo(logits.dtype).min) * log_probs.softmax(dim=-1)).sum()
        e = logits.new_tensor(self.e)
        cutoff = torch.minimum(e, e.sqrt() * (-entropy).exp())
        unlikely = logits.softmax(dim=-1) < cutoff
        return logits.masked_fill(unlikely & (logits < logits.max()), -math.inf)
