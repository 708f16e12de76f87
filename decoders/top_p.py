"""Top-p or nucleus sampling (Holtzman et al. 2020, "The curious case of neural text degeneration", 1904.09751).

Tokens stay, the likeliest first, until together they have the probability p. The others are removed: each of them is
unlikely, but together they are not. The number of tokens that stay follows the certainty of the model, from one token
to hundreds.
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
"""Up to this number of tokens, sorting all of them is as fast as finding the best ones."""
_N_BEST = 256
"""The last token that stays is among this number of the best tokens, unless the model is very uncertain."""


@dataclass(frozen=True)
class TopP(LogitsProcessor):
    """Keep the likeliest tokens that together reach the probability p."""

    name = "top-p"
    example = "top-p 0.9"
    takes_arrays = True
    p: float = option(
        gt=0, le=1, neutral=1, instead="leave the stage out", help="the probability that the kept tokens reach together"
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Keep the (V,) logits of the fewest tokens with a probability of at least p. Set the others to −inf.

        If several tokens equal the last one, the sort decides which of them stay, as in transformers. torch's sort
        depends on the processor; without torch, the tokens with the highest ids stay.
        """
        scores = logits.numpy(force=True)
        with np.errstate(invalid="ignore"):  # if all tokens are gone, the chain reports it
            if len(scores) > SMALL:
                least = worth_of_last(scores, np.exp(scores - scores.max()), self.p, doubt=1e-5)
                if least is not None:
                    return logits.masked_fill(logits < least, -math.inf)
            ascending = np.sort(scores)
            exps = np.exp(ascending - ascending[-1])
        # A sum from the smallest token up is exact for the tail. A token goes while the sum up to it fits into 1 − p.
        tails = np.cumsum(exps / exps.sum(), dtype=np.float64)[:-1].astype(np.float32)
        n_gone = int(np.count_nonzero(tails <= 1 - self.p))
        if n_gone == 0 or ascending[n_gone - 1] < ascending[n_gone]:
            return logits.masked_fill(logits < float(ascending[n_gone]), -math.inf)
        return logits.index_fill(0, logits.argsort()[:n_gone], -math.inf)


def worth_of_last(worth: NDArray[np.float32], exps: NDArray[np.float32], mass: float, *, doubt: float) -> float | None:
    """Return the worth of the last token that stays, if the tokens with the most worth stay until they reach a mass.

    Args:
        worth: (V,), V > 256.
        exps: (V,), the probabilities times any factor.
        mass: 0 to 1.
        doubt: the largest rounding error of a sum. If a sum is this near to the mass, the result is None.

    Returns:
        The worth. None if all tokens have to be sorted, because the last token is not among the best ones, equals
        the next one, or is in doubt.
    """
    best = np.argpartition(worth, -_N_BEST)[-_N_BEST:]
    best = best[np.argsort(worth[best])[::-1]]
    sums = np.cumsum(exps[best], dtype=np.float64) / exps.sum(dtype=np.float64)
    last = int(np.count_nonzero(sums < mass))
    if last >= _N_BEST - 1 or np.abs(sums - mass).min() <= doubt or worth[best[last]] == worth[best[last + 1]]:
        return None
    return float(worth[best[last]])
