"""The story on the desk in pieces of text, each with its style. Knows no terminal."""

import math
from collections.abc import Callable
from typing import cast

from tinystory.decoding import Token
from tinystory.screen.colours import Style
from tinystory.story.tree import PathToken
from tinystory.studio.studio import Studio
from tinystory.studio.views import MEASURES, Tint
from tinystory.text.tokenizer import Detokenizer

__all__ = ["legend", "spans", "style_of"]


def spans(studio: Studio, style_at: Callable[[int, PathToken], Style] | None = None) -> list[tuple[str, Style]]:
    """Return the story on the desk in pieces of (text, style). The texts, joined, are the story.

    Args:
        studio: gives the desk.
        style_at: gives the style of the token at an index of the story. By default, typed tokens are bold, and the
            others have the studio's tint.
    """
    tree = studio.tree
    if tree.turn is None:
        return []
    if tree.turn.vocabulary != studio.backend.vocabulary:
        return [(studio.text, "")]
    parts: list[tuple[list[str], Style]] = []
    n_characters = 0
    detokenizer = Detokenizer(studio.backend.tokenizer)  # a character of several tokens comes with its last one
    for index, token in enumerate(tree.path(tree.current)):
        new = detokenizer.add(token.id)
        n_characters += len(new)
        style = style_at(index, token) if style_at else _tinted(studio, token)
        if new and parts and parts[-1][1] == style:
            parts[-1][0].append(new)
        elif new:
            parts.append(([new], style))
    pieces: list[tuple[str, Style]] = [("".join(texts), style) for texts, style in parts]
    rest = studio.text[n_characters:]
    return [*pieces, (rest, "")] if rest else pieces


def style_of(token: Token, tint: Tint) -> Style:
    """Return the style of a token; plain if tints are off or the measure is unknown."""
    if tint == "off":
        return ""
    measure, bounds, _ = MEASURES[tint]
    value = measure(token)
    if math.isnan(value) or (tint == "rank" and value < 0):
        return ""
    return cast(Style, f"heat{sum(value > bound for bound in bounds)}")


def legend(tint: Tint) -> tuple[tuple[str, Style], ...]:
    """Return what each colour means, in that colour."""
    if tint == "off":
        return (("colours are off", ""),)
    pieces: list[tuple[str, Style]] = [(f"{tint}: ", "")]
    for heat, name in enumerate(MEASURES[tint][2]):
        pieces += [(name, cast(Style, f"heat{heat}")), ("  ", "")]
    return tuple(pieces[:-1])


def _tinted(studio: Studio, token: PathToken) -> Style:
    return "bold" if token.token is None else style_of(token.token, studio.tint)
