"""What the chat prints: story text as it comes, dim notices, tables. The only place that writes to the terminal.

Everything passes through `visible`, and no colour is set, only weights of the terminal's own: it stays readable on
any background.
"""

import inspect
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from shutil import get_terminal_size
from typing import Literal, TextIO

from prompt_toolkit.utils import get_cwidth

from tinystory.generate import Story
from tinystory.visible import visible

__all__ = ["Block", "Line", "Screen", "Style", "Table", "show_value", "statistics_line", "summary", "toolbar"]

Style = Literal["", "bold", "dim", "note"]
"""A note is what the program says between pieces of a story."""

_SGR = {"bold": "\x1b[1m", "dim": "\x1b[2m", "note": "\x1b[2m"}
_PLAIN_NOTE = "— "
"""Tells notes from stories where there is no dim."""
_RESET = "\x1b[0m"
_GAP = 2
_NARROWEST_COLUMN = 20

REASONS = {"eos": "the end", "length": "length", "stop": "stop text", "cancelled": "cancelled"}
"""Why a piece ended, for a writer."""


@dataclass(frozen=True)
class Line:
    """Text on lines of its own."""

    text: str
    style: Style = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells in columns; the last column takes what width is left, and wraps."""

    rows: tuple[tuple[str, ...], ...]
    indent: int = 0


Block = Line | Table


class Screen:
    """A terminal written to in order, by plain writes: nothing is ever painted over."""

    def __init__(self, stream: TextIO, *, color: bool) -> None:
        self._stream = stream
        self._color = color
        self._at_line_start = True
        self._written = False

    def story(self, text: str, style: Style = "") -> None:
        """Add story text where the last piece ended."""
        if text:
            # A style ends before each newline, so that nothing but letters is ever styled.
            self._write("\n".join(self._styled(visible(line), style) for line in text.split("\n")))
            self._at_line_start = text.endswith("\n")

    def fresh_line(self) -> None:
        """Begin a new line, unless there is one."""
        if not self._at_line_start:
            self._write("\n")
            self._at_line_start = True

    def gap(self) -> None:
        """Leave a line blank, but for the first of all."""
        self.fresh_line()
        if self._written:
            self._write("\n")

    def show(self, *blocks: Block) -> None:
        """Print lines and tables on lines of their own."""
        self.fresh_line()
        width = get_terminal_size().columns
        for block in blocks:
            style: Style = ""
            if isinstance(block, Line):
                style = block.style
                mark = _PLAIN_NOTE if style == "note" and not self._color else ""
                lines = _wrapped(mark + block.text, width)
            else:
                lines = _table_lines(block, width)
            self._write("".join(self._styled(visible(line), style) + "\n" for line in lines))

    def _styled(self, text: str, style: Style) -> str:
        return f"{_SGR[style]}{text}{_RESET}" if style and self._color and text else text

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
        self._written = True


def statistics_line(story: Story, spec: str) -> str:
    """The line under a piece: what it took, why it ended, and what it takes to write it again."""
    statistics = story.statistics
    n_tokens = len(story.tokens)
    return " · ".join(
        [
            f"{n_tokens} token{'' if n_tokens == 1 else 's'}",
            f"{statistics['tokens_per_second']:.0f} tokens/s",
            f"{statistics['bits_per_token']:.2f} bits/token",
            REASONS[story.finish_reason],
            spec,
            f"seed {story.request.seed}",
        ]
    )


def toolbar(pieces: Sequence[str], width: int) -> str:
    """As many of the pieces, the first ones first, as fit on one line."""
    text = ""
    for piece in map(visible, pieces):
        longer = f"{text} · {piece}" if text else f" {piece}"
        if get_cwidth(longer) + 1 > width:
            break
        text = longer
    return text.replace("\n", " ")


def show_value(value: object) -> str:
    """An option's value as it is written in a spec, quotes aside."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, tuple):
        return ",".join(map(show_value, value)) or ","
    if isinstance(value, Mapping):
        return " ".join(f"{key}={show_value(number)}" for key, number in value.items()) or ","
    return str(value)


def summary(cls: type) -> str:
    """The first sentence of a class's docstring, on one line."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def _wrapped(text: str, width: int) -> Iterable[str]:
    """Lines broken between words; a word longer than a line, such as a path, is left to the terminal."""
    for line in visible(text).split("\n"):
        if get_cwidth(line) <= width:
            yield line
        else:
            yield from textwrap.wrap(line, max(1, width - 1), break_long_words=False, break_on_hyphens=False)


def _table_lines(table: Table, width: int) -> Iterable[str]:
    """Lay a table out; the gaps between columns are spaces."""
    rows = [tuple(" ".join(visible(cell).split()) for cell in row) for row in table.rows]
    n_fixed = max((len(row) for row in rows), default=1) - 1
    widths = [max((get_cwidth(row[i]) for row in rows if len(row) > i + 1), default=0) for i in range(n_fixed)]
    for row in rows:
        start = " " * table.indent
        for cell, column in zip(row[:-1], widths, strict=False):
            start += cell + " " * (column - get_cwidth(cell) + _GAP)
        room = width - 1 - get_cwidth(start)
        if room < _NARROWEST_COLUMN:  # no room for columns
            yield from _wrapped("  ".join(filter(None, row)), width)
            continue
        lines = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
        yield (start + lines[0]).rstrip()
        yield from (" " * get_cwidth(start) + line for line in lines[1:])
