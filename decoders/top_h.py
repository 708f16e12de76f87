"""Top-H sampling (Baghaei Potraghloo et al. 2025, "Top-H decoding", arXiv 2509.02510).

Tokens are kept, the likeliest first, while their share of the entropy is at most h. The others are removed, and the
likeliest always stays. So few tokens of a peaked distribution stay, and many of a flat one. As in transformers, only
the 100 likeliest tokens count, and their probabilities are normalized first. For this reason, and because the shares
seldom add up to h exactly, even h = 1 removes something: no value is neutral.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TopH(LogitsProcessor):
    """Keep the likeliest tokens that together have at most a share h of the entropy."""

    name = "top-h"
    h: float = option(
        0.4, gt=0, le=1, instead="leave the stage out", help="share of the entropy that the kept tokens may have"
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Keep (V,) logits, likeliest first, while the sum of −p ln p is at most h · H. Set the others to −inf."""
        import torch

        top, token_ids = logits.topk(min(100, len(logits)))
        log_probs = top - top.logsumexp(dim=-1)
        probs = log_probs.softmax(dim=-1)
        entropy = -(log_probs.clamp(min=torch.finfo(logits.dtype).min) * probs).sum()
        # A probability of 0 gives NaN here, and NaN compares as false, so such a token is removed.
        stays = (-probs * probs.log()).cumsum(dim=-1) <= self.h * entropy
        stays[0] = True
        kept = token_ids[stays]
        return torch.full_like(logits, -math.inf).index_copy(0, kept, logits[kept])
