"""A watermark: tokens of a secret green list are favoured (Kirchenbauer et al. 2023, arXiv 2301.10226).

The previous token and the key seed a generator, which draws a share gamma of the vocabulary as green tokens. Whoever
has the key can count the green tokens: without a watermark their share is gamma, with one it is larger. The lists equal
those of transformers ("lefthash", width 1) on a CPU bit for bit. They are always drawn on the CPU, so a text can be
checked on any machine. torch seeds this generator with the lowest 32 bits of (key · previous id). So keys that agree in
these bits are the same key, and after token 0 the list is the same for all keys.
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
    """Return the ids that are favoured after a token, (⌊gamma · V⌋,), in no order."""
    import torch

    generator = torch.Generator().manual_seed(key * previous_id % (2**64 - 1))
    return torch.randperm(vocab_size, generator=generator)[: int(vocab_size * gamma)]


@dataclass(frozen=True)
class Watermark(LogitsProcessor):
    """Raise the logits of tokens on a secret list, so that the text can be recognized later."""

    name = "watermark"
    key: int = option(KEY, ge=1, help="the secret; whoever has it can recognize the text")
    delta: float = option(2.0, ge=0, le=100, neutral=0, help="number added to the logits of green tokens")
    gamma: float = option(
        GAMMA, gt=0, lt=1, instead="leave the stage out", help="share of the vocabulary that is green"
    )

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Add delta to the (V,) logits of green tokens."""
        green = green_list(step.token_ids[-1], len(logits), self.key, self.gamma).to(logits.device)
        return logits.index_copy(0, green, logits[green] + self.delta)


@dataclass(frozen=True)
class Detection:
    """The result of the search for a watermark in a text.

    Attributes:
        n_scored: the number of different pairs of neighbours in the text.
        n_green: the number of these pairs whose second token is green after the first.
        z: how many standard deviations n_green is above the mean of texts without a watermark.
        p_value: the probability that a text without a watermark has n_green or more.
    """

    n_scored: int
    n_green: int
    z: float
    p_value: float


def detect(token_ids: Sequence[int], vocab_size: int, key: int = KEY, gamma: float = GAMMA) -> Detection:
    """Look for a watermark in token ids. `key` and `gamma` are those of the decoder that wrote it.

    A pair that comes again counts once, because it gives no new information. The p-value is the exact sum of the tail
    of the binomial distribution. The normal approximation of transformers is wrong by orders of magnitude for the small
    p-values that matter here. Pairs with the same first token share a list that is drawn without replacement, which
    scatters less than the binomial distribution. So the p-value may be too large, but it is not too small.

    Raises:
        ValueError: there are fewer than two ids.
    """
    followers: dict[int, set[int]] = {}
    for previous_id, token_id in pairwise(token_ids):
        followers.setdefault(previous_id, set()).add(token_id)
    if not followers:
        raise ValueError(
            f"a watermark shows in pairs of tokens, so two tokens are needed; the text has {len(token_ids)}"
        )
    n = sum(len(ids) for ids in followers.values())
    n_green = sum(len(ids.intersection(green_list(a, vocab_size, key, gamma).tolist())) for a, ids in followers.items())
    share = int(vocab_size * gamma) / vocab_size
    spread = math.sqrt(n * share * (1 - share))
    return Detection(n, n_green, (n_green - n * share) / spread if spread else 0.0, binomial_tail(n, n_green, share))


def binomial_tail(n: int, k: int, p: float) -> float:
    """Return the probability of k or more successes in n trials with probability p, 0 ≤ p < 1."""
    if k <= 0 or p == 0:
        return float(k <= 0)
    log_odds, log_factorial = math.log(p) - math.log1p(-p), [math.lgamma(i + 1) for i in range(n + 1)]
    terms = (log_factorial[n] - log_factorial[i] - log_factorial[n - i] + i * log_odds for i in range(k, n + 1))
    return min(1.0, math.fsum(math.exp(term + n * math.log1p(-p)) for term in terms))
