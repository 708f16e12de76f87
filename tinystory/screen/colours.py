"""The styles of text on a terminal: weights, colours, and the colours that fit its background. Knows no text."""

import os
from collections.abc import Mapping
from typing import Literal

__all__ = ["BOLD", "DIM", "HEAT", "RESET", "Style", "Theme", "background", "rgb", "sgr", "styled"]

Style = Literal["", "bold", "dim", "note", "good", "heat0", "heat1", "heat2", "heat3", "heat4", "mark"]
"""`note` is a message of the program between turns. `heat0` is an expected token, `heat4` a surprising one. `mark` is
red; where there is no colour, it stands in brackets."""

Theme = Literal["dark", "light", "any"]
"""The background of the terminal; `any` if the terminal does not tell."""

BOLD, DIM, RESET = "\x1b[1m", "\x1b[2m", "\x1b[0m"

HEAT: Mapping[Theme, tuple[int, ...]] = {
    "dark": (114, 150, 222, 215, 203),
    "light": (22, 64, 94, 130, 160),
    "any": (28, 64, 136, 166, 196),
}
"""Five of the 256 colours for each theme, from green to red. Their contrast with the background is at least 4. For
`any`, their contrast with black and with white is at least 3."""

_LEVELS = (0, 95, 135, 175, 215, 255)
"""The levels of red, green and blue in the 256 colours."""

_LIGHT_COLOURS = ("7", "15")


def rgb(number: int) -> str:
    """Return one of the 256 colours, from 16 to 231, as hex.

    >>> rgb(196)
    '#ff0000'
    """
    red, green, blue = (_LEVELS[(number - 16) // step % 6] for step in (36, 6, 1))
    return f"#{red:02x}{green:02x}{blue:02x}"


def sgr(theme: Theme) -> dict[str, str]:
    """Return the escape sequence that begins each style, by its name; the plain style has none."""
    heat = {f"heat{n}": f"\x1b[38;5;{number}m" for n, number in enumerate(HEAT[theme])}
    return {"bold": BOLD, "dim": DIM, "note": DIM, "good": BOLD, "mark": heat["heat4"], **heat}


def styled(text: str, sequence: str) -> str:
    """Return the text with an escape sequence before it and a reset after it; unchanged if either is empty."""
    return f"{sequence}{text}{RESET}" if sequence and text else text


def background(theme: str, environment: Mapping[str, str] = os.environ) -> Theme:
    """Return the theme for the setting `theme`; for `auto`, the background that COLORFGBG names."""
    if theme != "auto":
        return "light" if theme == "light" else "dark"
    colour = environment.get("COLORFGBG", "").split(";")[-1]
    return "light" if colour in _LIGHT_COLOURS else "dark" if colour.isdecimal() else "any"
