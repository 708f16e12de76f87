"""Mirostat (Basu et al. 2021, arXiv 2007.14966): sampling that holds a target surprise by feedback.

`mu` is the largest surprise that a token may have. It starts at 2 · tau and moves against the error after each token.
So the mean surprise over n tokens misses the target by (change of mu) / (eta · n): a few tenths of a bit for a story,
and nothing in the long run. A target above the surprise of the model itself cannot be held; then nothing is removed.
Where even the likeliest token is more surprising than the target, only this token is left.

The paper and llama.cpp let mu fall and rise without end while the target cannot be held. It then needs as many tokens
to come back, in which only the likeliest token is left, or none is removed. Here mu stays between 0 and 40 bits (or
2 · tau, if this is more). Beyond these bounds it would remove the same tokens, because no surprise is below 0, and a
token of 40 bits comes once in 10^12. The surprise of the least likely token would be too low a bound: it is 0 if one
token is left.

The surprise is that of the distribution which reaches this stage, as in the paper. llama.cpp computes it after the
truncation, where it is smaller. Version 1 estimates a rank from Zipf's law. N is the number of tokens left. The
same number of tokens stays as in llama.cpp, and tokens equal to the last one stay, too. A story that is continued
begins again at 2 · tau.

The default of 1.6 bits is the mean surprise of `sample 0.8`, the default decoder, with the shipped model: 1.60 over 100
stories from BOS. greedy has 0.79 and `sample 1.0` has 2.77 (scripts/measure_surprise.py). llama.cpp has 5.0, which is
far higher.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinystory.decoding import Request, Sampler, Step, draw, option

if TYPE_CHECKING:
    from torch import Tensor

_N_FOR_EXPONENT = 100  # likeliest tokens from which the exponent is estimated, as in the paper
_MOST_BITS = 40.0


@dataclass(frozen=True)
class Mirostat(Sampler):
    """Draw tokens so that their mean surprise stays near a target: tokens that are too surprising are removed."""

    name = "mirostat"
    tau: float = option(
        1.6,
        gt=0,
        instead="write `greedy`",
        help="the target surprise in bits per token; a story model itself has 1 to 3",
    )
    eta: float = option(0.1, gt=0, help="the share of each error that is corrected at once")
    version: int = option(
        2, ge=1, le=2, instead="leave the stage out", help="2 removes tokens by their surprise, 1 by an estimated rank"
    )

    def start(self, request: Request) -> float:
        """Return the first mu, in bits."""
        return 2 * self.tau

    def observe(self, state: float, token_id: int, logits: "Tensor") -> float:
        """Return mu after a token, in bits: 0 or more."""
        surprise = -float(logits.log_softmax(dim=-1)[token_id]) / math.log(2)
        # A forced token may have a probability of 0, and mu must recover from it.
        mu = state - self.eta * (min(surprise, _MOST_BITS) - self.tau)
        return min(max(mu, 0.0), max(_MOST_BITS, 2 * self.tau))

    def __call__(self, logits: "Tensor", step: Step) -> int:
        """Draw one of the tokens that mu allows, from (V,) logits."""
        return draw(self._allowed(logits, step.state), step.noise())

    def log_probs(self, logits: "Tensor", step: Step) -> "Tensor":
        """Return the (V,) log-softmax of the tokens that mu allows."""
        return self._allowed(logits, step.state).log_softmax(dim=-1)

    def _allowed(self, logits: "Tensor", mu: float) -> "Tensor":
        """Set the (V,) logits of tokens that are too surprising to −inf. The likeliest token always stays."""
        if self.version == 1:
            smallest_kept = logits.topk(rank_for(logits, mu)).values[-1]
            return logits.masked_fill(logits < smallest_kept, -math.inf)
        surprising = logits.log_softmax(dim=-1) < -mu * math.log(2)
        return logits.masked_fill(surprising & (logits < logits.max()), -math.inf)


def rank_for(logits: "Tensor", mu: float) -> int:
    """Return how many of the likeliest tokens to keep for a surprise of mu bits, by Zipf's law.

    The exponent s fits the ratios of neighbours with least squares. Then k = (ε · 2^mu / (1 − N^−ε))^(1/s) with
    ε = s − 1. It is computed with logarithms, which do not overflow.

    Returns:
        A number from 1 to the number of tokens left.
    """
    n = int((logits > -math.inf).sum())
    if n == 1:
        return 1
    top = logits.topk(min(_N_FOR_EXPONENT, n)).values.numpy(force=True).astype(np.float64)
    steps = np.log1p(1 / np.arange(1, len(top)))  # ln((i + 1) / i)
    s = max(float(steps.dot(-np.diff(top)) / steps.dot(steps)), 1e-9)
    epsilon = s - 1
    near_one = abs(epsilon) < 1e-9  # then ε / (1 − N^−ε) is near its limit, 1 / ln N
    scale = 1 / math.log(n) if near_one else epsilon / -math.expm1(-epsilon * math.log(n))
    log_k = (math.log(scale) + mu * math.log(2)) / s
    return n if log_k >= math.log(n) else max(1, int(math.exp(log_k)))
