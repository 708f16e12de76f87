"""The chat's terminal: story text as it arrives, dim notices, tables. The only module that writes to the terminal.

All text passes through `visible`. The only colours are the tints of tokens; everything else has the terminal's own
weights, so that it can be read on any background.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from typing import TextIO

from prompt_toolkit.utils import get_cwidth

from tinystory.safe.showing import visible
from tinystory.screen.blocks import Line, Printable, Spans
from tinystory.screen.colours import Style, Theme, sgr, styled
from tinystory.screen.facts import width_of
from tinystory.screen.layout import draft_line, lines_of
from tinystory.screen.wrapping import Wrapping

__all__ = ["Screen"]

_PLAIN_NOTE = "— "
"""The mark of a notice where there is no dim text: it tells notices from stories."""
_SAVE_CURSOR, _RESTORE_CURSOR, _ERASE_LINE_END = "\x1b7", "\x1b8", "\x1b[K"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class Screen:
    """A terminal that is written to in order, by plain writes.

    Only a draft is ever written over. It takes no more than the rest of the cursor's line.
    """

    def __init__(self, stream: TextIO, *, color: bool, theme: Theme = "dark") -> None:
        self._stream = stream
        self.color = color
        self.theme: Theme = theme
        self._sgr = sgr(theme)
        self._at_line_start = True
        self._written = False
        self._column = 0
        self._has_draft = False
        self._wrapping: Wrapping[Style] = Wrapping(lambda: self.width)

    @property
    def width(self) -> int:
        """The present width in cells, at least 1."""
        return max(1, width_of(self._stream))

    def story(self, text: str, style: Style = "") -> None:
        """Add story text after the last one; near the edge, a word waits until it is known to fit."""
        if text:
            self._put(self._wrapping.add(visible(text), style))
            self._at_line_start = text.endswith("\n")

    def draft(self, text: str) -> None:
        """Show how a story may go on, dim, up to the end of the line. The next text replaces it.

        The cursor stays where the story ends. Without colour a draft could be taken for the story, so none is shown.
        """
        if self.color:
            width = self.width
            at = self._column % width
            # A full line leaves the cursor on its last letter, which erasing would remove.
            whole = self._wrapping.held + visible(" ".join(re.split(r"[\n\t]", text)))
            shown = "" if self._column and not at else draft_line(whole, width - 1 - at)
            erased = _ERASE_LINE_END if self._has_draft else ""
            drawn = _SAVE_CURSOR + self._styled(shown, "dim") + _RESTORE_CURSOR if shown else ""
            self._stream.write(erased + drawn)
            self._stream.flush()
            self._has_draft = bool(shown)

    def written(self, text: str) -> None:
        """Write text that has already been laid out and made visible."""
        if text:
            self._write(text)
            self._at_line_start = text.endswith("\n")

    def control(self, sequence: str) -> None:
        """Send the terminal a sequence that does not move the cursor."""
        self._stream.write(sequence)
        self._stream.flush()

    def fresh_line(self) -> None:
        """Begin a new line, unless the cursor is at the start of one."""
        if not self._at_line_start:
            self._put(self._wrapping.settle())
            self._write("\n")
            self._at_line_start = True
        self._wrapping.restart()

    def gap(self) -> None:
        """Leave a blank line, except at the very beginning."""
        self.fresh_line()
        if self._written:
            self._write("\n")

    def show(self, *blocks: Printable) -> None:
        """Print blocks on lines of their own."""
        self.fresh_line()
        width = self.width
        for block in blocks:
            if isinstance(block, Spans):
                for text, style in block.pieces:
                    self.story(text, style)
                self.fresh_line()
                continue
            if isinstance(block, Line) and block.style == "note" and not self.color:
                block = replace(block, text=_PLAIN_NOTE + block.text)
            lines = lines_of(block, width)
            self._write("".join(self._styled(visible(line), style) + "\n" for line, style in lines))

    def _put(self, pieces: Iterable[tuple[str, Style]]) -> None:
        """Write pieces of a story."""
        text = ""
        for style, group in groupby(pieces, key=lambda piece: piece[1]):
            # A style ends before each newline, so that only letters are ever styled.
            lines = "".join(piece for piece, _ in group).split("\n")
            text += "\n".join(self._styled(line, style) for line in lines)
        if text:
            self._write(text)

    def _styled(self, text: str, style: Style) -> str:
        if self.color:
            return styled(text, self._sgr.get(style, ""))
        return f"[{text}]" if style == "mark" and text else text

    def _write(self, text: str) -> None:
        self._stream.write(_ERASE_LINE_END + text if self._has_draft else text)
        self._stream.flush()
        self._written, self._has_draft = True, False
        _, newline, line = text.rpartition("\n")
        self._column = (0 if newline else self._column) + get_cwidth(_ESCAPES.sub("", line))
