"""Mirostat (Basu et al. 2021, arXiv 2007.14966): sampling that holds a chosen surprise, by feedback.

`mu`, the most surprise a token may have, starts at 2 · tau and moves against the error after each token. So the mean
over n tokens is off by the way that mu has come, divided by eta · n: a few tenths of a bit over a story, nothing in the
long run. A target above what the model itself would reach cannot be held: then nothing is removed.

The surprise is that of the distribution which reaches this stage, as in the paper; llama.cpp takes it after
truncation, where it is smaller. Version 1 looks for a cut among ranks by way of Zipf's law; N is the number of tokens
left, and as many as llama.cpp keeps are kept, equals of the last one too. A story that is continued starts anew at
2 · tau.

The default of 1.6 bits is the mean surprise of `sample 0.8`, the default decoder, with the shipped model: 1.60 over 100
stories from BOS; greedy has 0.79, `sample 1.0` has 2.77 (scripts/measure_surprise.py). llama.cpp's 5.0 is far above.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinystory.decoding import Request, Sampler, Step, draw, option

if TYPE_CHECKING:
    from torch import Tensor

_M = 100  # of the likeliest tokens, for the exponent; the paper's number
_MOST_BITS = 100.0


@dataclass(frozen=True)
class Mirostat(Sampler):
    """Draw tokens so that their mean surprise stays at a target."""

    name = "mirostat"
    tau: float = option(1.6, gt=0, help="the surprise to hold, in bits a token; a story model's own is 1 to 3")
    eta: float = option(0.1, gt=0, help="how much of each error is corrected at once")
    version: int = option(2, ge=1, le=2, help="2 removes tokens by their surprise, 1 by an estimated rank")

    def start(self, request: Request) -> float:
        """The first mu, in bits."""
        return 2 * self.tau

    def observe(self, state: float, token_id: int, logits: "Tensor") -> float:
        """Mu after a token."""
        surprise = -float(logits.log_softmax(dim=-1)[token_id]) / math.log(2)
        # A token forced from outside may have no probability at all; mu must find back from it.
        return state - self.eta * (min(surprise, _MOST_BITS) - self.tau)

    def __call__(self, logits: "Tensor", step: Step) -> int:
        """(V,) logits -> a draw from the tokens that mu allows."""
        return draw(self._allowed(logits, step.state), step.noise())

    def log_probs(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> the log-softmax of those that mu allows."""
        return self._allowed(logits, step.state).log_softmax(dim=-1)

    def _allowed(self, logits: "Tensor", mu: float) -> "Tensor":
        """The likeliest token stays, whatever mu is."""
        if self.version == 1:
            smallest_kept = logits.topk(rank_for(logits, mu)).values[-1]
            return logits.masked_fill(logits < smallest_kept, -math.inf)
        surprising = logits.log_softmax(dim=-1) < -mu * math.log(2)
        return logits.masked_fill(surprising & (logits < logits.max()), -math.inf)


def rank_for(logits: "Tensor", mu: float) -> int:
    """How many of the likeliest tokens to keep for a surprise of mu bits, if their probabilities follow Zipf's law.

    The exponent s is the least-squares one over the ratios of neighbours; then k = (ε · 2^mu / (1 − N^−ε))^(1/s) with
    ε = s − 1, here in logarithms, which do not overflow.

    Returns:
        1 to the number of tokens left.
    """
    n = int((logits > -math.inf).sum())
    if n == 1:
        return 1
    top = logits.topk(min(_M, n)).values.numpy(force=True).astype(np.float64)
    steps = np.log1p(1 / np.arange(1, len(top)))  # ln((i + 1) / i)
    s = max(float(steps.dot(-np.diff(top)) / steps.dot(steps)), 1e-9)
    epsilon = s - 1
    near_one = abs(epsilon) < 1e-9  # there ε / (1 − N^−ε) is near its limit, 1 / ln N
    scale = 1 / math.log(n) if near_one else epsilon / -math.expm1(-epsilon * math.log(n))
    log_k = (math.log(scale) + mu * math.log(2)) / s
    return n if log_k >= math.log(n) else max(1, int(math.exp(log_k)))
