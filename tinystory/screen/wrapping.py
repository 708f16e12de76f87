"""Text broken into lines between words, measured in cells. Knows nothing of a terminal but its width.

`wrap` and `LineBreaker` give whole lines. `Wrapping` gives running text while it still arrives.
"""

import re
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from prompt_toolkit.utils import get_cwidth

from tinystory.safe.showing import visible
from tinystory.screen.cells import continues

__all__ = ["LineBreaker", "Wrapping", "wrap"]

S = TypeVar("S")
_PARTS = re.compile(r"\n|[ \t]+|[^ \t\n]+")
_TAB = 8
"""Cells from one tab stop to the next."""
_LONGEST = 20
"""Cells of the longest word that is kept whole. Text without spaces is longer and may break anywhere."""


def wrap(text: str, width: int, *, break_words: bool = False) -> list[str]:
    """Return the lines of a text, made visible and broken between words.

    Args:
        text: any text.
        width: cells of a line, at least 1.
        break_words: break a word that is longer than a line. If false, such a word stands on a line of its own, which
            is then wider than `width`; the terminal breaks it, and it can still be copied in one.

    >>> wrap("Once upon a time", 9)
    ['Once upon', 'a time']
    >>> wrap("a xylophone", 6)
    ['a', 'xylophone']
    >>> wrap("a xylophone", 6, break_words=True)
    ['a', 'xyloph', 'one']
    """
    breaker = LineBreaker(width, break_words=break_words)
    return [*breaker.add(text), *breaker.finish()]


class LineBreaker:
    """Text in, lines out. Each line comes as soon as nothing more fits on it.

    The lines depend on the text alone, not on the parts in which it arrives. No line is wider than the width, except a
    word that may not break, and a single character that is wider than the width.
    """

    def __init__(self, width: int, *, break_words: bool = False) -> None:
        """Begin an empty line; the arguments are those of `wrap`."""
        self._width = width
        self._break_words = break_words
        self._line = ""  # whole words
        self._line_cells = 0
        self._gap = 0  # spaces between the line and the word that has begun
        self._word: list[str] = []  # clusters
        self._word_cells = 0

    def add(self, text: str) -> Iterator[str]:
        """Yield the lines that this text completes. Use all of them before the next call."""
        for character in visible(text):
            if character == "\n":
                yield self._end_line()
            elif character in " \t":  # a tab has no width of its own inside a column
                self._end_word()
                self._gap += 1
            else:
                yield from self._add_to_word(character)

    def finish(self) -> Iterator[str]:
        """Yield the last line, if one has begun."""
        line = self._end_line()
        if line:
            yield line

    def _add_to_word(self, character: str) -> Iterator[str]:
        n_cells = get_cwidth(character)
        if self._word and continues(self._word[-1], character):
            self._word[-1] += character
        else:
            self._word.append(character)
        self._word_cells += n_cells
        if self._line_cells + self._gap + self._word_cells <= self._width:
            return
        if self._line:
            yield self._line
        self._line, self._line_cells, self._gap = "", 0, 0
        if self._break_words and n_cells and self._word_cells > self._width:
            yield from self._break_word()

    def _break_word(self) -> Iterator[str]:
        """Yield the clusters of the word but the last one, which goes on the next line."""
        *clusters, last = self._word
        if clusters:
            yield "".join(clusters)
        if len(last) > 1 and get_cwidth(last) > self._width:  # a cluster that is wider than a line breaks, too
            yield last[:-1]
            last = last[-1]
        self._word, self._word_cells = [last], get_cwidth(last)

    def _end_word(self) -> None:
        if self._word:
            self._line += " " * self._gap + "".join(self._word)
            self._line_cells += self._gap + self._word_cells
            self._gap, self._word, self._word_cells = 0, [], 0

    def _end_line(self) -> str:
        self._end_word()
        line, self._line, self._line_cells, self._gap = self._line, "", 0, 0
        return line


class Wrapping(Generic[S]):
    """Running text that is broken between words while it arrives in pieces.

    Where a line ends, a newline replaces the spaces. Nothing that has been written is written over. A word is
    therefore held back only near the edge of the screen, until its end has come.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        """Begin at the start of a line.

        Args:
            width: gives the present width of the terminal in cells, at least 1.
        """
        self._width = width
        self._column = 0
        self._gap: list[tuple[str, S]] = []
        self._word: list[tuple[str, S]] = []

    def add(self, text: str, style: S) -> list[tuple[str, S]]:
        """Add text; return the pieces that can be written now."""
        ready: list[tuple[str, S]] = []
        for part in _PARTS.findall(text):
            if part == "\n":
                ready += [*self.settle(), (part, style)]
                self._column = 0
            elif part.isspace():
                if self._word:
                    ready += self.settle()
                self._gap.append((self._without_tabs(part), style))
            else:
                self._word.append((part, style))
                n = _cells(self._word)
                if n > _LONGEST or self._column + _cells(self._gap) + n <= self._width() - _LONGEST:
                    ready += self.settle()
        return ready

    def _without_tabs(self, space: str) -> str:
        """Return white space with spaces for its tabs, up to the columns that a terminal goes to."""
        column, expanded = self._column + _cells(self._gap), ""
        for character in space:
            expanded += " " * (_TAB - (column + len(expanded)) % _TAB) if character == "\t" else " "
        return expanded

    def settle(self) -> list[tuple[str, S]]:
        """Return the pieces that have been held back, and hold nothing back any more."""
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
        """The text that has been held back."""
        return "".join(text for text, _ in (*self._gap, *self._word))

    def restart(self) -> None:
        """Note that a new line has begun."""
        self._column = 0


def _cells(pieces: list[tuple[str, S]]) -> int:
    return sum(get_cwidth(text) for text, _ in pieces if text != "\n")
