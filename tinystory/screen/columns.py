"""Texts that stream side by side by plain writes alone: nothing that has been written is written over.

Pure: it takes text and gives back what can be written now. Where the terminal is too narrow for columns, the texts
stand one under the other.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from prompt_toolkit.utils import get_cwidth

from tinystory.screen.colours import BOLD, DIM, styled
from tinystory.screen.wrapping import LineBreaker, wrap

__all__ = ["NARROWEST", "Columns"]

NARROWEST = 24
"""Cells of the narrowest column that can still be read."""

_GUTTER = " │ "
_CROSSING = "─┼─"


class Columns:
    """Texts under their titles, each with a footer.

    The texts that `add`, `end` and `finish` return, joined, do not depend on the order in which the parts arrive. No
    line is wider than the terminal, unless a single character is.

    Attributes:
        stacked: whether the texts stand one under the other.
    """

    def __init__(self, titles: Sequence[str], width: int, *, color: bool = False) -> None:
        """Begin. The titles are written with the first text.

        Args:
            titles: a title for each text, at least one.
            width: cells of a line, at least 1.
            color: whether titles are bold and footers dim.
        """
        across = (width - get_cwidth(_GUTTER) * (len(titles) - 1)) // len(titles)
        self.stacked = across < NARROWEST
        self._columns = [_Column(title, width if self.stacked else across) for title in titles]
        self._layout = (_Stack if self.stacked else _Rows)(self._columns, color)

    def add(self, index: int, text: str) -> str:
        """Add text to a column; return what can be written now."""
        self._columns[index].add(text)
        return "".join(self._layout.ready())

    def end(self, index: int, footer: Sequence[str] = ()) -> str:
        """End a column with the items of its footer; return what can be written now."""
        self._columns[index].end(footer)
        return "".join(self._layout.ready())

    def finish(self) -> str:
        """End the columns that have not ended; return all that is left to write."""
        for column in self._columns:
            if not column.ended:
                column.end(())
        return "".join([*self._layout.ready(), *self._layout.rest()])


class _Column:
    """A text that becomes lines.

    Attributes:
        title: the line above the text.
        width: cells of a line.
        lines: the complete lines that have not been written yet.
        ended: whether all of the text has come.
        footer: the items under the text.
    """

    def __init__(self, title: str, width: int) -> None:
        self.title = title
        self.width = width
        self.lines: deque[str] = deque()
        self.ended = False
        self.footer: tuple[str, ...] = ()
        self._breaker = LineBreaker(width, break_words=True)

    def add(self, text: str) -> None:
        assert not self.ended
        self.lines += self._breaker.add(text)

    def end(self, footer: Sequence[str]) -> None:
        self.lines += self._breaker.finish()
        self.ended = True
        self.footer = tuple(footer)


class _Rows:
    """Columns of one width side by side. A row is written when each column has completed its line."""

    def __init__(self, columns: Sequence[_Column], color: bool) -> None:
        self._columns = columns
        self._width = columns[0].width
        self._bold, self._dim = (BOLD, DIM) if color else ("", "")
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
        """Yield the footers; an item begins on the same row in every column."""
        items = list(zip_longest(*(column.footer for column in self._columns), fillvalue=""))
        if items:
            yield self._rule()
        for cells in items:
            yield from self._across(cells, self._dim)

    def _across(self, cells: Sequence[str], style: str) -> Iterator[str]:
        for lines in zip_longest(*(wrap(cell, self._width, break_words=True) for cell in cells), fillvalue=""):
            yield self._row(lines, style)

    def _row(self, lines: Sequence[str], style: str = "") -> str:
        cells = [styled(line, style) + " " * (self._width - get_cwidth(line)) for line in lines]
        return _GUTTER.join(cells).rstrip(" ") + "\n"

    def _rule(self) -> str:
        return _CROSSING.join(["─" * self._width] * len(self._columns)) + "\n"


class _Stack:
    """Columns one under the other. The first one streams; each of the others waits until those before it have ended."""

    def __init__(self, columns: Sequence[_Column], color: bool) -> None:
        self._columns = columns
        self._bold, self._dim = (BOLD, DIM) if color else ("", "")
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
        """Yield nothing: each footer has been written under its text."""
        return iter(())

    @staticmethod
    def _lines(column: _Column, text: str, style: str) -> Iterator[str]:
        return (styled(line, style) + "\n" for line in wrap(text, column.width, break_words=True))
