"""Tints: the measures by which tokens are coloured. They say how expected a token was."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

from tinystory.decoding import Token

__all__ = ["MEASURES", "TINTS", "TINT_HELP", "Tint"]

Tint = Literal["off", "prob", "surprise", "rank", "entropy"]

_BITS = 1 / math.log(2)
MEASURES: Mapping[str, tuple[Callable[[Token], float], tuple[float, ...], tuple[str, ...]]] = {
    "prob": (
        lambda token: -math.exp(token.logprob), (-0.5, -0.2, -0.05, -0.01), ("≥ 50 %", "20", "5", "1", "below 1 %")
    ),
    "surprise": (
        lambda token: -token.logprob * _BITS, (1.0, 2.5, 4.5, 7.0), ("≤ 1 bit", "2.5", "4.5", "7", "above 7 bits")
    ),
    "rank": (lambda token: token.rank, (0, 2, 9, 39), ("1st", "3rd", "10th", "40th", "below")),
    "entropy": (lambda token: token.entropy, (0.5, 1.5, 3.0, 4.5), ("≤ ½ bit", "1.5", "3", "4.5", "above 4.5 bits")),
}  # fmt: skip
"""For each tint: the measure (small for an expected token), the four bounds between five colours, and their names."""

TINT_HELP: Mapping[str, str] = {
    "off": "no colours",
    "prob": "the model's probability of the token",
    "surprise": "the model's surprise at the token, in bits",
    "rank": "the token's place among all tokens",
    "entropy": "how unsure the model was before the token",
}

TINTS = tuple(TINT_HELP)
