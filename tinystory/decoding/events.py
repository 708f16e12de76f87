"""The events that a decoder yields while it writes: final tokens, drafts, and one end."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Commit", "Draft", "Event", "Finish", "FinishReason", "Token"]

FinishReason = Literal["eos", "length", "stop", "cancelled"]


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was picked.

    Attributes:
        id: the token id.
        logprob: its natural log-probability in nats under the model's own softmax, before any processor.
        rank: its place in that distribution. 0 is the likeliest token, equal tokens share a place, −1 is unknown.
        entropy: the entropy of that distribution in bits, 0 to log2(V); NaN if unknown.
    """

    id: int
    logprob: float
    rank: int = -1
    entropy: float = math.nan

    @classmethod
    def of(cls, logits: "Tensor", token_id: int) -> "Token":
        """Return a token with its figures under the model's own (V,) float32 logits.

        NumPy computes them, because it is faster than torch for a single row.
        """
        scores = logits.numpy(force=True)
        with np.errstate(invalid="ignore"):
            above = scores - scores.max()
            exps = np.exp(above)
            total, weighted = float(exps.sum()), float(exps.dot(above))
            if math.isnan(weighted):  # 0 · −inf is NaN, but a removed token adds nothing
                weighted = float(exps.dot(np.maximum(above, -200)))
            log_total = math.log(total)
            rank = int(np.count_nonzero(scores > scores[token_id]))
            return cls(token_id, float(above[token_id]) - log_total, rank, (log_total - weighted / total) / math.log(2))


@dataclass(frozen=True, slots=True)
class Commit:
    """Tokens that are final."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may follow the committed ones. The next Draft or Commit replaces them."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a story. An EOS token is never committed; the reason "eos" stands for it."""

    reason: FinishReason
    statistics: Mapping[str, float] = field(default_factory=dict)


Event = Commit | Draft | Finish
