"""Texts that stream side by side, by plain writes alone: what is written is never painted over.

Pure: takes text, gives back what can be written now. Where the terminal is too narrow for columns that can be read,
the texts stand one under the other.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from prompt_toolkit.utils import get_cwidth

from tinystory.safe.showing import visible

__all__ = ["NARROWEST", "Columns", "wrap"]

NARROWEST = 24
"""Cells of a column that can still be read."""

_GUTTER = " │ "
_CROSSING = "─┼─"
_BOLD, _DIM, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[0m"


class Columns:
    """Texts under their titles, each with a footer.

    What `add`, `end` and `finish` return, joined, depends on the texts alone, not on the order in which they arrive.
    No line of it is wider than the terminal, unless that is narrower than a single character.

    Attributes:
        stacked: the texts stand one under the other.
    """

    def __init__(self, titles: Sequence[str], width: int, *, color: bool = False) -> None:
        """Begin; the titles are written with the first text.

        Args:
            titles: one for each text, at least one.
            width: cells of a line, at least 1.
            color: whether titles are bold and footers dim.
        """
        across = (width - get_cwidth(_GUTTER) * (len(titles) - 1)) // len(titles)
        self.stacked = across < NARROWEST
        self._columns = [_Column(title, width if self.stacked else across) for title in titles]
        self._layout = (_Stack if self.stacked else _Rows)(self._columns, color)

    def add(self, index: int, text: str) -> str:
        """Add text to a column; what can be written now."""
        self._columns[index].add(text)
        return "".join(self._layout.ready())

    def end(self, index: int, footer: Sequence[str] = ()) -> str:
        """End a column, with what stands under it; what can be written now."""
        self._columns[index].end(footer)
        return "".join(self._layout.ready())

    def finish(self) -> str:
        """End the columns that have not ended; all that is left to write."""
        for column in self._columns:
            if not column.ended:
                column.end(())
        return "".join([*self._layout.ready(), *self._layout.rest()])


class _Column:
    """A text on its way to lines.

    Attributes:
        title: above it.
        width: cells of a line.
        lines: complete, and not yet written.
        ended: nothing more comes.
        footer: what stands under it, item by item.
    """

    def __init__(self, title: str, width: int) -> None:
        self.title = title
        self.width = width
        self.lines: deque[str] = deque()
        self.ended = False
        self.footer: tuple[str, ...] = ()
        self._wrapper = _Wrapper(width)

    def add(self, text: str) -> None:
        assert not self.ended
        self.lines += self._wrapper.add(text)

    def end(self, footer: Sequence[str]) -> None:
        self.lines += self._wrapper.finish()
        self.ended = True
        self.footer = tuple(footer)


class _Rows:
    """Columns side by side, all of one width: a row is written once each of them has completed its line."""

    def __init__(self, columns: Sequence[_Column], color: bool) -> None:
        self._columns = columns
        self._width = columns[0].width
        self._bold, self._dim = (_BOLD, _DIM) if color else ("", "")
        self._headed = False

    def ready(self) -> Iterator[str]:
        columns = self._columns
        if not self._headed:
            self._headed = True
            yield from self._across([column.title for column in columns], self._bold)
            yield self._rule()
        while any(column.lines for column in columns) and all(column.lines or column.ended for column in columns):
            yield self._row([column.lines.popleft() if column.lines else "" for column in columns])

    def rest(self) -> Iterator[str]:
        """The footers; the same item of each stands at one height, however the others wrap."""
        items = list(zip_longest(*(column.footer for column in self._columns), fillvalue=""))
        if items:
            yield self._rule()
        for cells in items:
            yield from self._across(cells, self._dim)

    def _across(self, cells: Sequence[str], style: str) -> Iterator[str]:
        for lines in zip_longest(*(wrap(cell, self._width) for cell in cells), fillvalue=""):
            yield self._row(lines, style)

    def _row(self, lines: Sequence[str], style: str = "") -> str:
        cells = [_styled(line, style) + " " * (self._width - get_cwidth(line)) for line in lines]
        return _GUTTER.join(cells).rstrip(" ") + "\n"

    def _rule(self) -> str:
        return _CROSSING.join(["─" * self._width] * len(self._columns)) + "\n"


class _Stack:
    """Columns one under the other: the first streams, and each of the others follows when those before have ended."""

    def __init__(self, columns: Sequence[_Column], color: bool) -> None:
        self._columns = columns
        self._bold, self._dim = (_BOLD, _DIM) if color else ("", "")
        self._n_ended = 0
        self._titled = -1

    def ready(self) -> Iterator[str]:
        for index in range(self._n_ended, len(self._columns)):
            column = self._columns[index]
            if index > self._titled:
                self._titled = index
                yield "\n" if index else ""
                yield from self._lines(column, f"== {column.title}", self._bold)
            while column.lines:
                yield column.lines.popleft() + "\n"
            if not column.ended:
                return
            yield from self._lines(column, " · ".join(column.footer), self._dim)
            self._n_ended = index + 1

    def rest(self) -> Iterator[str]:
        """Nothing: every footer stands under its text."""
        return iter(())

    @staticmethod
    def _lines(column: _Column, text: str, style: str) -> Iterator[str]:
        return (_styled(line, style) + "\n" for line in wrap(text, column.width))


def _styled(line: str, style: str) -> str:
    return f"{style}{line}{_RESET}" if style and line else line


def wrap(text: str, width: int) -> list[str]:
    """The lines of a text, made visible: broken between words, and a word longer than a line anywhere.

    Args:
        text: any.
        width: cells of a line, at least 1. A character that is wider has a line of its own.

    >>> wrap("Once upon a time", 9)
    ['Once upon', 'a time']
    """
    wrapper = _Wrapper(width)
    return [*wrapper.add(text), *wrapper.finish()]


class _Wrapper:
    """Text in, lines out, each as soon as it is known that nothing more fits."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._line = ""  # whole words
        self._gap = ""  # between them and the word that has begun
        self._word = ""

    def add(self, text: str) -> Iterator[str]:
        """The lines that this text completes; to be used up before the next call."""
        for character in visible(text):
            if character == "\n":
                yield self._end_line()
            elif character in " \t":  # a tab has no width of its own inside a column
                self._end_word()
                self._gap += " "
            else:
                yield from self._make_room(character)
                self._word += character

    def finish(self) -> Iterator[str]:
        """The last line, where one has begun."""
        last = self._end_line()
        if last:
            yield last

    def _make_room(self, character: str) -> Iterator[str]:
        if get_cwidth(self._line + self._gap + self._word + character) <= self._width:
            return
        if self._line:
            yield self._line
        self._line = self._gap = ""
        if self._word and get_cwidth(self._word + character) > self._width:
            yield self._word
            self._word = ""

    def _end_word(self) -> None:
        if self._word:
            self._line += self._gap + self._word
            self._gap = self._word = ""

    def _end_line(self) -> str:
        self._end_word()
        line, self._line, self._gap = self._line, "", ""
        return line
