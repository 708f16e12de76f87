"""XXX-DOC."""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from prompt_toolkit.utils import get_cwidth

from tinystory.safe.showing import visible

__all__ = [
    "HEAT",
    "Bars",
    "DeskStory",
    "Line",
    "Outline",
    "Printable",
    "Spans",
    "Style",
    "Table",
    "Theme",
    "draft_line",
]


Style = Literal["", "bold", "dim", "note", "good", "heat0", "heat1", "heat2", "heat3", "heat4", "mark"]
"""A note is what the program says between pieces of a story; heat goes from expected to surprising; a mark is red, and
in brackets where there is no colour."""


Theme = Literal["dark", "light", "any"]
"""What the terminal's background is; any where it does not tell."""


HEAT: Mapping[Theme, tuple[int, ...]] = {
    "dark": (114, 150, 222, 215, 203),
    "light": (22, 64, 94, 130, 160),
    "any": (28, 64, 136, 166, 196),
}
"""Of the 256 colours, from green to red; each has a contrast of at least 4 with its background, of at least 3 with
black and white where that is not known."""


_GAP = 2


_NARROWEST_COLUMN = 20


_NARROWEST_FACT = 8


@dataclass(frozen=True)
class Line:
    """Text on lines of its own."""

    text: str
    style: Style = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells in columns; the last column takes what width is left, and wraps.

    Of two columns, the first has at most two fifths of the width: what is longer stands on a line of its own.
    """

    rows: tuple[tuple[str, ...], ...]
    indent: int = 0


@dataclass(frozen=True)
class Outline:
    """Rows of branch, text, facts, style: the text is cut so that every row stays on one line."""

    rows: tuple[tuple[str, str, str, Style], ...]


@dataclass(frozen=True)
class Bars:
    """Rows of label, share from 0 to 1, text, style: a line each, with a bar beside the text."""

    rows: tuple[tuple[str, float, str, Style], ...]


@dataclass(frozen=True)
class Spans:
    """Running text in pieces of their own style, shown as it is."""

    pieces: tuple[tuple[str, Style], ...]


@dataclass(frozen=True)
class DeskStory:
    """The story on the desk, which the chat knows how to show."""


Printable = Line | Table | Outline | Bars | Spans


def wrapped(text: str, width: int) -> Iterable[str]:
    """Lines broken between words; a word longer than a line, such as a path, is left to the terminal."""
    for line in visible(text).split("\n"):
        if get_cwidth(line) <= width:
            yield line
        else:
            yield from textwrap.wrap(line, max(1, width - 1), break_long_words=False, break_on_hyphens=False)


def outline_lines(outline: Outline, width: int) -> Iterable[tuple[str, Style]]:
    """Branch, as much of the text as there is room for, facts; of those the first is cut where there is not enough."""
    for branch, text, facts, style in outline.rows:
        room = width - 1 - get_cwidth(branch) - _GAP
        facts = _fitting(facts, room - _NARROWEST_COLUMN - _GAP)
        with_facts = room - get_cwidth(facts) - _GAP if facts else 0
        if with_facts >= _NARROWEST_COLUMN:
            text = shorten(visible(text), with_facts)
            text += " " * (with_facts - get_cwidth(text) + _GAP) + facts
        yield f"{branch}{' ' * _GAP}{shorten(visible(text), max(room, 1))}", style


def _fitting(facts: str, room: int) -> str:
    """The facts, or as many of the last ones as fit, with what is left of the one before."""
    if get_cwidth(facts) <= room:
        return facts
    first, joint, rest = facts.partition(" · ")
    for_first = room - get_cwidth(joint + rest)
    if for_first >= _NARROWEST_FACT:
        return shorten(first, for_first) + joint + rest
    return _fitting(rest, room) if rest else ""


def bar_lines(bars: Bars, width: int) -> Iterable[tuple[str, Style]]:
    """Label, percent, text, and a bar of what width is left: the longest for the largest share."""
    shown = [(visible(label), f"{share:.1%}", visible(text)) for label, share, text, _ in bars.rows]
    widths = [max((get_cwidth(row[column]) for row in shown), default=0) for column in range(3)]
    largest = max((share for _, share, _, _ in bars.rows), default=0.0) or 1.0
    for (label, percent, text), (_, share, _, style) in zip(shown, bars.rows, strict=True):
        line = f"{_padded(label, widths[0])}  {percent:>{widths[1]}}  "
        n_text = min(widths[2], max(1, (width - get_cwidth(line)) * 2 // 3))
        line += _padded(shorten(text, n_text), n_text) + " " * _GAP
        yield (line + _bar(share / largest, width - 1 - get_cwidth(line))).rstrip(), style


def _bar(share: float, width: int) -> str:
    """So much of a width, to an eighth of a cell; something of whatever is not nothing."""
    eighths = max(round(share * 8 * width), 1 if share else 0) if width > 0 else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _padded(text: str, width: int) -> str:
    return text + " " * (width - get_cwidth(text))


def shorten(text: str, width: int) -> str:
    """The text, or as much as fits with a mark that more was there; width in cells."""
    if get_cwidth(text) <= width:
        return text
    while text and get_cwidth(text) > width - 1:
        text = text[: max(0, min(len(text) - 1, width))]
    return text.rstrip() + "…"


def table_lines(table: Table, width: int) -> Iterable[str]:
    """Lay a table out; the gaps between columns are spaces."""
    rows = [tuple(" ".join(visible(cell).split()) for cell in row) for row in table.rows]
    n_fixed = max((len(row) for row in rows), default=1) - 1
    most = max(width * 2 // 5, _NARROWEST_COLUMN) if n_fixed == 1 else width
    widths = [
        max((cells for row in rows if len(row) > i + 1 and (cells := get_cwidth(row[i])) <= most), default=0)
        for i in range(n_fixed)
    ]
    for row in rows:
        start = " " * table.indent
        for cell, column in zip(row[:-1], widths, strict=False):
            start += cell + " " * (column - get_cwidth(cell) + _GAP)
        planned = table.indent + sum(column + _GAP for column in widths)
        if n_fixed == 1 and planned < get_cwidth(start) < width - _NARROWEST_COLUMN:
            yield start.rstrip()
            start = " " * planned
        room = width - 1 - get_cwidth(start)
        if room < _NARROWEST_COLUMN:  # no room for columns
            yield from wrapped("  ".join(filter(None, row)), width)
            continue
        lines = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
        yield (start + lines[0]).rstrip()
        yield from (" " * get_cwidth(start) + line for line in lines[1:])


_SHORTEST_DRAFT = 8


def draft_line(text: str, room: int) -> str:
    """A draft in so many cells: its beginning, and its latest words where it is longer; nothing where cells are few."""
    if room < _SHORTEST_DRAFT:
        return ""
    if get_cwidth(text) <= room:
        return text
    end = text[len(text) - room // 3 :]
    end = end[end.find(" ") + 1 :]
    while get_cwidth(end) > room // 3:
        end = end[1:]
    return shorten(text, room - 1 - get_cwidth(end)) + " " + end
