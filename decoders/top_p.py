"""Top-p or nucleus sampling (Holtzman et al. 2020, "The curious case of neural text degeneration", 1904.09751).

Tokens stay, the likeliest first, until together they have probability p; the long tail, each of whose tokens is
unlikely but which as a whole is not, goes. How many stay follows the model's own certainty, from one to hundreds.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 4096
"""Tokens up to which sorting them all is as fast as finding the best of them."""
_MANY = 256
"""Of the best; unless a model is quite undecided, the cut is among them."""


@dataclass(frozen=True)
class TopP(LogitsProcessor):
    """Keep the likeliest tokens that together reach a share of the probability."""

    name = "top-p"
    example = "top-p 0.9"
    takes_arrays = True
    p: float = option(gt=0, le=1, neutral=1, help="probability the kept tokens reach together")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> the smallest set of likeliest tokens with mass of at least p, −inf elsewhere.

        Which of several equal tokens stay at the cut is up to torch's sort, as it is in transformers.
        """
        scores = logits.numpy(force=True)
        with np.errstate(invalid="ignore"):  # where no number is left the chain says so
            if len(scores) > SMALL:
                least = worth_of_last(scores, np.exp(scores - scores.max()), self.p, doubt=1e-5)
                if least is not None:
                    return logits.masked_fill(logits < least, -math.inf)
            ascending = np.sort(scores)
            exps = np.exp(ascending - ascending[-1])
        # Summing from the small end keeps the tail exact: a token goes while all up to it fit in 1 − p.
        tails = np.cumsum(exps / exps.sum(), dtype=np.float64)[:-1].astype(np.float32)
        n_gone = int(np.count_nonzero(tails <= 1 - self.p))
        if n_gone == 0 or ascending[n_gone - 1] < ascending[n_gone]:
            return logits.masked_fill(logits < float(ascending[n_gone]), -math.inf)
        import torch

        gone = torch.from_numpy(np.array(scores)).sort().indices[:n_gone]
        return logits.index_fill(0, gone.to(logits.device), -math.inf)


def worth_of_last(worth: NDArray[np.float32], exps: NDArray[np.float32], mass: float, *, doubt: float) -> float | None:
    """Of tokens that are taken, those worth most first, until together they hold a mass: what the last one is worth.

    Args:
        worth: (V,), V > 256.
        exps: (V,) probabilities, times any factor.
        mass: 0 to 1.
        doubt: how near the mass two ways of summing may fall on either side of it.

    Returns:
        None where all tokens have to be sorted: the last one is not among the best, it has equals, or is in doubt.
    """
    best = np.argpartition(worth, -_MANY)[-_MANY:]
    best = best[np.argsort(worth[best])[::-1]]
    sums = np.cumsum(exps[best], dtype=np.float64) / exps.sum(dtype=np.float64)
    last = int(np.count_nonzero(sums < mass))
    if last >= _MANY - 1 or np.abs(sums - mass).min() <= doubt or worth[best[last]] == worth[best[last + 1]]:
        return None
    return float(worth[best[last]])
