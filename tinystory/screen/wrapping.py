"""Running text broken between words while it comes in pieces. Knows no terminal but its width."""

import re
from collections.abc import Callable
from typing import Generic, TypeVar

from prompt_toolkit.utils import get_cwidth

__all__ = ["Wrapping"]

S = TypeVar("S")
_PARTS = re.compile(r"\n|[ \t]+|[^ \t\n]+")
_LONGEST = 20
"""Cells of a word that is kept whole; text without spaces is longer and may break anywhere."""


class Wrapping(Generic[S]):
    """Says what to write of a text that comes piece by piece, and where to begin a new line.

    The end of a line takes no more than a newline in place of the spaces there: nothing that has been written is ever
    written over. So only near the edge a word is held back, until its end is known.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        """Begin at the start of a line.

        Args:
            width: of the terminal by now, in cells; at least 1.
        """
        self._width = width
        self._column = 0
        self._gap: list[tuple[str, S]] = []
        self._word: list[tuple[str, S]] = []

    def add(self, text: str, style: S) -> list[tuple[str, S]]:
        """The pieces to write now that this has come."""
        ready: list[tuple[str, S]] = []
        for part in _PARTS.findall(text):
            if part == "\n":
                ready += [*self.settle(), (part, style)]
                self._column = 0
            elif part.isspace():
                if self._word:
                    ready += self.settle()
                self._gap.append((part, style))
            else:
                self._word.append((part, style))
                n = _cells(self._word)
                if n > _LONGEST or self._column + _cells(self._gap) + n <= self._width() - _LONGEST:
                    ready += self.settle()
        return ready

    def settle(self) -> list[tuple[str, S]]:
        """The pieces that have been held back."""
        pieces = [*self._gap, *self._word]
        width = self._width()
        if self._gap and self._word and self._column + _cells(pieces) > width:
            pieces = [("\n", self._gap[0][1]), *self._word] if self._column else self._word
            self._column = 0
        self._column += _cells(pieces)
        if self._column > width:  # the terminal has broken it
            self._column = self._column % width or width
        self._gap, self._word = [], []
        return pieces

    @property
    def held(self) -> str:
        """What has been held back."""
        return "".join(text for text, _ in (*self._gap, *self._word))

    def restart(self) -> None:
        """A new line has begun."""
        self._column = 0


def _cells(pieces: list[tuple[str, S]]) -> int:
    return sum(get_cwidth(text) for text, _ in pieces if text != "\n")
