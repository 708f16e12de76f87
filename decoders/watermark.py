"""A watermark: tokens of a secret green list are favoured (Kirchenbauer et al. 2023, arXiv 2301.10226).

The previous token and the key seed a generator, which draws a share gamma of the vocabulary as green. Who has the key
counts green tokens: without a watermark their share is gamma, with it more. The lists are those of transformers
("lefthash", width 1) on a CPU, bit for bit; here they come from the CPU whatever the model runs on, so that a text can
be checked anywhere. torch seeds that generator with the lowest 32 bits of (key · previous id): keys that agree in them
are one key, and after token 0 the list is the same for all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor

KEY, GAMMA = 15485863, 0.25


def green_list(previous_id: int, vocab_size: int, key: int = KEY, gamma: float = GAMMA) -> "Tensor":
    """The ids favoured after a token; (⌊gamma · V⌋,), in no order."""
    import torch

    generator = torch.Generator().manual_seed(key * previous_id % (2**64 - 1))
    return torch.randperm(vocab_size, generator=generator)[: int(vocab_size * gamma)]


@dataclass(frozen=True)
class Watermark(LogitsProcessor):
    """Favour tokens of a secret list, so that the text can be recognised."""

    name = "watermark"
    key: int = option(KEY, ge=1, help="the secret; whoever has it can recognise the text")
    delta: float = option(2.0, ge=0, le=100, neutral=0, help="added to the logits of green tokens")
    gamma: float = option(GAMMA, gt=0, lt=1, help="share of the vocabulary that is green")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> those of green tokens raised by delta."""
        green = green_list(step.token_ids[-1], len(logits), self.key, self.gamma).to(logits.device)
        return logits.index_copy(0, green, logits[green] + self.delta)


@dataclass(frozen=True)
class Detection:
    """What a text tells of a watermark.

    Attributes:
        n_scored: pairs of neighbours in the text, repeated ones counted once.
        n_green: those whose second token is green after the first.
        z: how many standard deviations n_green is above what chance gives.
        p_value: how likely chance alone gives so many green tokens or more.
    """

    n_scored: int
    n_green: int
    z: float
    p_value: float


def detect(token_ids: Sequence[int], vocab_size: int, key: int = KEY, gamma: float = GAMMA) -> Detection:
    """Look for a watermark in token ids; key and gamma are those it was written with.

    A pair that comes again says nothing new, so it counts once. The p-value is the tail of the binomial distribution,
    summed: the normal approximation behind transformers' is off by orders of magnitude where p is small, the very place
    that matters. What pairs with the same first token share is a list drawn without putting back, which scatters less
    than the binomial: if anything p is too large.

    Raises:
        ValueError: there are fewer than two ids.
    """
    followers: dict[int, set[int]] = {}
    for previous_id, token_id in pairwise(token_ids):
        followers.setdefault(previous_id, set()).add(token_id)
    if not followers:
        raise ValueError(f"a watermark shows in pairs of tokens; of tokens there are {len(token_ids)}")
    n = sum(len(ids) for ids in followers.values())
    n_green = sum(len(ids.intersection(green_list(a, vocab_size, key, gamma).tolist())) for a, ids in followers.items())
    share = int(vocab_size * gamma) / vocab_size
    spread = math.sqrt(n * share * (1 - share))
    return Detection(n, n_green, (n_green - n * share) / spread if spread else 0.0, binomial_tail(n, n_green, share))


def binomial_tail(n: int, k: int, p: float) -> float:
    """The probability of k or more successes in n trials of probability p, 0 ≤ p < 1."""
    if k <= 0 or p == 0:
        return float(k <= 0)
    log_odds, log_factorial = math.log(p) - math.log1p(-p), [math.lgamma(i + 1) for i in range(n + 1)]
    terms = (log_factorial[n] - log_factorial[i] - log_factorial[n - i] + i * log_odds for i in range(k, n + 1))
    return min(1.0, math.fsum(math.exp(term + n * math.log1p(-p)) for term in terms))
