"""The blocks that a screen can print: lines, tables, outlines, bars and spans. Knows neither widths nor escapes."""

from dataclasses import dataclass

from tinystory.screen.colours import Style

__all__ = ["Bars", "Line", "Outline", "Printable", "Spans", "Table"]


@dataclass(frozen=True)
class Line:
    """Text on lines of its own."""

    text: str
    style: Style = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells in columns. The last column takes the rest of the width, and wraps.

    In a table of two columns, the first column takes at most two fifths of the width. A longer first cell stands on a
    line of its own.
    """

    rows: tuple[tuple[str, ...], ...]
    indent: int = 0


@dataclass(frozen=True)
class Outline:
    """Rows of (branch, text, facts, style). Each row stays on one line; its text is cut to fit."""

    rows: tuple[tuple[str, str, str, Style], ...]


@dataclass(frozen=True)
class Bars:
    """Rows of (label, share from 0 to 1, text, style), one line each, with a bar beside the text."""

    rows: tuple[tuple[str, float, str, Style], ...]


@dataclass(frozen=True)
class Spans:
    """Running text in pieces of (text, style)."""

    pieces: tuple[tuple[str, Style], ...]


Printable = Line | Table | Outline | Bars | Spans
