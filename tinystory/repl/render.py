"""What the chat prints: story text as it comes, dim notices, tables. The only place that writes to the terminal.

Everything passes through `visible`. But for the tints of tokens no colour is set, only weights of the terminal's own:
it stays readable on any background.
"""

import inspect
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from shutil import get_terminal_size
from typing import Literal, TextIO

from prompt_toolkit.utils import get_cwidth

from tinystory import generate
from tinystory.repl.wrapping import Wrapping
from tinystory.spec import format_spec
from tinystory.visible import visible

__all__ = [
    "HEAT", "Bars", "Block", "Line", "Outline", "Screen", "Spans", "Story", "Style", "Table", "Theme", "background",
    "show_value", "statistics_line", "summary", "toolbar",
]  # fmt: skip

Style = Literal["", "bold", "dim", "note", "good", "heat0", "heat1", "heat2", "heat3", "heat4", "mark"]
"""A note is what the program says between pieces of a story; heat goes from expected to surprising; a mark is red, and
in brackets where there is no colour."""

Theme = Literal["dark", "light", "any"]
"""What the terminal's background is; any where it does not tell."""

_SGR = {"bold": "\x1b[1m", "dim": "\x1b[2m", "note": "\x1b[2m", "good": "\x1b[1m"}
HEAT: Mapping[Theme, tuple[int, ...]] = {
    "dark": (114, 150, 222, 215, 203),
    "light": (22, 64, 94, 130, 160),
    "any": (28, 64, 136, 166, 196),
}
"""Of the 256 colours, from green to red; each has a contrast of at least 4 with its background, of at least 3 with
black and white where that is not known."""
_LIGHT_COLORS = ("7", "15")
_PLAIN_NOTE = "— "
"""Tells notes from stories where there is no dim."""
_RESET = "\x1b[0m"
_SAVE, _RESTORE, _ERASE = "\x1b7", "\x1b8", "\x1b[K"
"""Of the cursor's place; of the rest of its line."""
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_SHORTEST_DRAFT = 8
_GAP = 2
_NARROWEST_COLUMN = 20
_NARROWEST_FACT = 8

REASONS = {"eos": "the end", "length": "length", "stop": "stop text", "cancelled": "cancelled"}
"""Why a piece ended, for a writer."""


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
class Story:
    """The story on the desk, which the chat knows how to show."""


Block = Line | Table | Outline | Bars | Spans


class Screen:
    """A terminal written to in order, by plain writes: nothing is ever painted over but a draft, the rest of a line."""

    def __init__(self, stream: TextIO, *, color: bool, theme: Theme = "dark") -> None:
        self._stream = stream
        self.color = color
        self._sgr = _SGR | {f"heat{n}": f"\x1b[38;5;{number}m" for n, number in enumerate(HEAT[theme])}
        self._sgr["mark"] = self._sgr["heat4"]
        self._at_line_start = True
        self._written = False
        self._column = 0
        self._has_draft = False
        self._wrapping: Wrapping[Style] = Wrapping(lambda: max(1, get_terminal_size().columns))

    def story(self, text: str, style: Style = "") -> None:
        """Add story text where the last piece ended; near the edge a word waits until it is known to fit."""
        if text:
            self._put(self._wrapping.add(visible(text), style))
            self._at_line_start = text.endswith("\n")

    def draft(self, text: str) -> None:
        """Show how a story may go on, dim, as far as the line reaches; whatever is written next takes its place.

        The cursor stays where the story ends. Where there is no dim, a draft could be taken for the story: there it is
        not shown.
        """
        if self.color:
            width = get_terminal_size().columns
            at = self._column % width
            # A full line leaves the cursor on its last letter, which erasing would take.
            whole = self._wrapping.held + visible(text.replace("\n", " "))
            shown = "" if self._column and not at else _draft_line(whole, width - 1 - at)
            erased = _ERASE if self._has_draft else ""
            self._stream.write(erased + (_SAVE + self._styled(shown, "dim") + _RESTORE if shown else ""))
            self._stream.flush()
            self._has_draft = bool(shown)

    def written(self, text: str) -> None:
        """Pass on what has been laid out, and made visible, already."""
        if text:
            self._write(text)
            self._at_line_start = text.endswith("\n")

    def control(self, sequence: str) -> None:
        """Send the terminal a sequence that moves nothing."""
        self._stream.write(sequence)
        self._stream.flush()

    def fresh_line(self) -> None:
        """Begin a new line, unless there is one."""
        if not self._at_line_start:
            self._put(self._wrapping.settle())
            self._write("\n")
            self._at_line_start = True
        self._wrapping.restart()

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
            if isinstance(block, Spans):
                for text, own in block.pieces:
                    self.story(text, own)
                self.fresh_line()
                continue
            if isinstance(block, Outline | Bars):
                rows = _outline_lines(block, width) if isinstance(block, Outline) else _bar_lines(block, width)
                for line, own in rows:
                    self._write(self._styled(visible(line), own) + "\n")
                continue
            if isinstance(block, Line):
                style = block.style
                mark = _PLAIN_NOTE if style == "note" and not self.color else ""
                lines = _wrapped(mark + block.text, width)
            else:
                lines = _table_lines(block, width)
            self._write("".join(self._styled(visible(line), style) + "\n" for line in lines))

    def _put(self, pieces: Iterable[tuple[str, Style]]) -> None:
        """Write pieces of a story."""
        text = ""
        for style, alike in groupby(pieces, key=lambda piece: piece[1]):
            # A style ends before each newline, so that nothing but letters is ever styled.
            lines = "".join(piece for piece, _ in alike).split("\n")
            text += "\n".join(self._styled(line, style) for line in lines)
        if text:
            self._write(text)

    def _styled(self, text: str, style: Style) -> str:
        if style == "mark" and text and not self.color:
            return f"[{text}]"
        return f"{self._sgr[style]}{text}{_RESET}" if style and self.color and text else text

    def _write(self, text: str) -> None:
        self._stream.write(_ERASE + text if self._has_draft else text)
        self._stream.flush()
        self._written, self._has_draft = True, False
        _, newline, line = text.rpartition("\n")
        self._column = (0 if newline else self._column) + get_cwidth(_ESCAPES.sub("", line))


def background(theme: str, environment: Mapping[str, str] = os.environ) -> Theme:
    """The theme to use for a wish: for `auto`, what COLORFGBG says of the background."""
    if theme != "auto":
        return "light" if theme == "light" else "dark"
    told = environment.get("COLORFGBG", "").split(";")[-1]
    return "light" if told in _LIGHT_COLORS else "dark" if told.isdecimal() else "any"


def statistics_line(story: generate.Story) -> str:
    """The line under a piece: what it took, why it ended, and what it takes to write it again."""
    statistics = story.statistics
    n_tokens = len(story.tokens)
    return " · ".join(
        [
            f"{n_tokens} token{'' if n_tokens == 1 else 's'}",
            f"{statistics['tokens_per_second']:.0f} tokens/s",
            f"{statistics['bits_per_token']:.2f} bits/token",
            REASONS[story.finish_reason],
            format_spec(story.request.decoder),
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


def _outline_lines(outline: Outline, width: int) -> Iterable[tuple[str, Style]]:
    """Branch, as much of the text as there is room for, facts; of those the first is cut where there is not enough."""
    for branch, text, facts, style in outline.rows:
        room = width - 1 - get_cwidth(branch) - _GAP
        facts = _fitting(facts, room - _NARROWEST_COLUMN - _GAP)
        with_facts = room - get_cwidth(facts) - _GAP if facts else 0
        if with_facts >= _NARROWEST_COLUMN:
            text = _cut(visible(text), with_facts)
            text += " " * (with_facts - get_cwidth(text) + _GAP) + facts
        yield f"{branch}{' ' * _GAP}{_cut(visible(text), max(room, 1))}", style


def _fitting(facts: str, room: int) -> str:
    """The facts, or as many of the last ones as fit, with what is left of the one before."""
    if get_cwidth(facts) <= room:
        return facts
    first, joint, rest = facts.partition(" · ")
    for_first = room - get_cwidth(joint + rest)
    if for_first >= _NARROWEST_FACT:
        return _cut(first, for_first) + joint + rest
    return _fitting(rest, room) if rest else ""


def _bar_lines(bars: Bars, width: int) -> Iterable[tuple[str, Style]]:
    """Label, percent, text, and a bar of what width is left: the longest for the largest share."""
    shown = [(visible(label), f"{share:.1%}", visible(text)) for label, share, text, _ in bars.rows]
    widths = [max((get_cwidth(row[column]) for row in shown), default=0) for column in range(3)]
    largest = max((share for _, share, _, _ in bars.rows), default=0.0) or 1.0
    for (label, percent, text), (_, share, _, style) in zip(shown, bars.rows, strict=True):
        line = f"{_padded(label, widths[0])}  {percent:>{widths[1]}}  "
        n_text = min(widths[2], max(1, (width - get_cwidth(line)) * 2 // 3))
        line += _padded(_cut(text, n_text), n_text) + " " * _GAP
        yield (line + _bar(share / largest, width - 1 - get_cwidth(line))).rstrip(), style


def _bar(share: float, width: int) -> str:
    """So much of a width, to an eighth of a cell; something of whatever is not nothing."""
    eighths = max(round(share * 8 * width), 1 if share else 0) if width > 0 else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _draft_line(text: str, room: int) -> str:
    """A draft in so many cells: its beginning, and its latest words where it is longer; nothing where cells are few."""
    if room < _SHORTEST_DRAFT:
        return ""
    if get_cwidth(text) <= room:
        return text
    end = text[len(text) - room // 3 :]
    end = end[end.find(" ") + 1 :]
    while get_cwidth(end) > room // 3:
        end = end[1:]
    return _cut(text, room - 1 - get_cwidth(end)) + " " + end


def _padded(text: str, width: int) -> str:
    return text + " " * (width - get_cwidth(text))


def _cut(text: str, width: int) -> str:
    """The text, or as much as fits with a mark that more was there; width in cells."""
    if get_cwidth(text) <= width:
        return text
    while text and get_cwidth(text) > width - 1:
        text = text[: max(0, min(len(text) - 1, width))]
    return text.rstrip() + "…"


def _table_lines(table: Table, width: int) -> Iterable[str]:
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
            yield from _wrapped("  ".join(filter(None, row)), width)
            continue
        lines = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
        yield (start + lines[0]).rstrip()
        yield from (" " * get_cwidth(start) + line for line in lines[1:])
