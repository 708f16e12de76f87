"""What a token's tint says: how expected it was."""

import math
from collections.abc import Callable, Mapping
from typing import Literal, cast

from tinystory.decoding import Token
from tinystory.repl.render import Style

__all__ = ["TINTS", "TINT_HELP", "Tint", "legend", "style_of"]

Tint = Literal["off", "prob", "surprise", "rank", "entropy"]

_BITS = 1 / math.log(2)
_MEASURES: Mapping[str, tuple[Callable[[Token], float], tuple[float, ...], tuple[str, ...]]] = {
    "prob": (
        lambda token: -math.exp(token.logprob), (-0.5, -0.2, -0.05, -0.01), ("≥ 50 %", "20", "5", "1", "below 1 %")
    ),
    "surprise": (
        lambda token: -token.logprob * _BITS, (1.0, 2.5, 4.5, 7.0), ("≤ 1 bit", "2.5", "4.5", "7", "above 7 bits")
    ),
    "rank": (lambda token: token.rank, (0, 2, 9, 39), ("1st", "3rd", "10th", "40th", "below")),
    "entropy": (lambda token: token.entropy, (0.5, 1.5, 3.0, 4.5), ("≤ ½ bit", "1.5", "3", "4.5", "above 4.5 bits")),
}  # fmt: skip
"""Of each tint: the measure, small for what was expected; the four bounds between five heats; their names."""

TINT_HELP: Mapping[str, str] = {
    "off": "no colours",
    "prob": "how likely the model held it",
    "surprise": "the same, in bits",
    "rank": "its place among all tokens",
    "entropy": "how open the choice was",
}

TINTS = tuple(TINT_HELP)


def style_of(token: Token, tint: Tint) -> Style:
    """The style of a token; plain where tints are off or the measure is not known."""
    if tint == "off":
        return ""
    measure, bounds, _ = _MEASURES[tint]
    value = measure(token)
    if math.isnan(value) or (tint == "rank" and value < 0):
        return ""
    return cast(Style, f"heat{sum(value > bound for bound in bounds)}")


def legend(tint: Tint) -> tuple[tuple[str, Style], ...]:
    """What the colours mean, in them."""
    if tint == "off":
        return (("colours are off", ""),)
    pieces: list[tuple[str, Style]] = [(f"{tint}: ", "")]
    for heat, name in enumerate(_MEASURES[tint][2]):
        pieces += [(name, cast(Style, f"heat{heat}")), ("  ", "")]
    return tuple(pieces[:-1])
