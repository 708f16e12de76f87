"""The cells that text takes on a terminal: text that is cut or filled to a number of cells.

A *cluster* is what a reader sees as one character: a letter with its accents, an emoji joined from several, a flag.
Cells are counted character by character, as prompt_toolkit does; a terminal that joins emoji needs fewer, never more.
"""

from collections.abc import Iterable, Iterator

from prompt_toolkit.utils import get_cwidth

__all__ = ["clusters", "continues", "padded", "shorten", "shorten_start"]

_JOINER = "\u200d"
_FIRST_REGIONAL, _LAST_REGIONAL = "\U0001f1e6", "\U0001f1ff"
_FIRST_TONE, _LAST_TONE = "\U0001f3fb", "\U0001f3ff"
_ELLIPSIS = "…"


def continues(cluster: str, character: str) -> bool:
    """Return whether a character belongs to the cluster before it."""
    if not cluster or character.isspace():
        return False
    if _regional(character):
        return len(cluster) == 1 and _regional(cluster)
    tone = _FIRST_TONE <= character <= _LAST_TONE and get_cwidth(cluster) > 1
    return tone or get_cwidth(character) == 0 or cluster[-1] == _JOINER


def clusters(text: str) -> Iterator[str]:
    """Yield the clusters of a text, in order."""
    cluster = ""
    for character in text:
        if continues(cluster, character):
            cluster += character
        else:
            if cluster:
                yield cluster
            cluster = character
    if cluster:
        yield cluster


def shorten(text: str, width: int) -> str:
    """Return the text, or its beginning and an ellipsis if it takes more than `width` cells."""
    if get_cwidth(text) <= width:
        return text
    return "".join(_fitting(clusters(text), width - 1)).rstrip() + _ELLIPSIS


def shorten_start(text: str, width: int) -> str:
    """Return the text, or an ellipsis and its end if it takes more than `width` cells."""
    if get_cwidth(text) <= width:
        return text
    return _ELLIPSIS + "".join(reversed(_fitting(reversed(list(clusters(text))), width - 1)))


def padded(text: str, width: int) -> str:
    """Return the text with spaces after it, up to `width` cells."""
    return text + " " * (width - get_cwidth(text))


def _fitting(parts: Iterable[str], room: int) -> list[str]:
    """Return the first parts that take at most `room` cells together."""
    kept = []
    for part in parts:
        room -= get_cwidth(part)
        if room < 0:
            break
        kept.append(part)
    return kept


def _regional(character: str) -> bool:
    """Return whether a character is a regional indicator; two of them make a flag."""
    return _FIRST_REGIONAL <= character <= _LAST_REGIONAL
