"""What the chat prints: story text as it comes, dim notices, tables. The only place that writes to the terminal.

Everything passes through `visible`. But for the tints of tokens no colour is set, only weights of the terminal's own:
it stays readable on any background.
"""

import os
import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from shutil import get_terminal_size
from typing import TextIO

from prompt_toolkit.utils import get_cwidth

from tinystory.safe.showing import visible
from tinystory.screen.blocks import (
    HEAT,
    Bars,
    Line,
    Outline,
    Printable,
    Spans,
    Style,
    Theme,
    bar_lines,
    draft_line,
    outline_lines,
    table_lines,
    wrapped,
)
from tinystory.screen.wrapping import Wrapping

__all__ = ["Screen", "background"]


_SGR = {"bold": "\x1b[1m", "dim": "\x1b[2m", "note": "\x1b[2m", "good": "\x1b[1m"}
_LIGHT_COLORS = ("7", "15")
_PLAIN_NOTE = "— "
"""Tells notes from stories where there is no dim."""
_RESET = "\x1b[0m"
_SAVE, _RESTORE, _ERASE = "\x1b7", "\x1b8", "\x1b[K"
"""Of the cursor's place; of the rest of its line."""
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


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
            shown = "" if self._column and not at else draft_line(whole, width - 1 - at)
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

    def show(self, *blocks: Printable) -> None:
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
                rows = outline_lines(block, width) if isinstance(block, Outline) else bar_lines(block, width)
                for line, own in rows:
                    self._write(self._styled(visible(line), own) + "\n")
                continue
            if isinstance(block, Line):
                style = block.style
                mark = _PLAIN_NOTE if style == "note" and not self.color else ""
                lines = wrapped(mark + block.text, width)
            else:
                lines = table_lines(block, width)
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
