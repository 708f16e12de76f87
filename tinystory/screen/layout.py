"""The lines of a block at a given width. Pure functions: they know no terminal."""

from collections.abc import Iterator

from prompt_toolkit.utils import get_cwidth

from tinystory.safe.showing import visible
from tinystory.screen.blocks import Bars, Line, Outline, Table
from tinystory.screen.cells import clusters, padded, shorten
from tinystory.screen.colours import Style
from tinystory.screen.wrapping import wrap

__all__ = ["bar_lines", "draft_line", "lines_of", "outline_lines", "table_lines", "wrapped"]

_GAP = 2
_NARROWEST_COLUMN = 20
_NARROWEST_FACT = 14
_SHORTEST_DRAFT = 8


def lines_of(block: Line | Table | Outline | Bars, width: int) -> Iterator[tuple[str, Style]]:
    """Yield each line of a block with its style, for a terminal of `width` cells."""
    if isinstance(block, Line):
        yield from ((line, block.style) for line in wrapped(block.text, width))
    elif isinstance(block, Table):
        yield from ((line, "") for line in table_lines(block, width))
    elif isinstance(block, Outline):
        yield from outline_lines(block, width)
    else:
        yield from bar_lines(block, width)


def wrapped(text: str, width: int) -> Iterator[str]:
    """Yield lines broken between words. A word longer than a line, such as a path, is left to the terminal."""
    for line in visible(text).replace("\t", " ").split("\n"):
        if get_cwidth(line) <= width:
            yield line
        else:
            yield from wrap(line, max(1, width - 1))


def table_lines(table: Table, width: int) -> Iterator[str]:
    """Yield the lines of a table. Where the columns have no room, the cells of a row follow one another."""
    rows = [tuple(" ".join(visible(cell).split()) for cell in row) for row in table.rows]
    n_fixed = max((len(row) for row in rows), default=1) - 1
    widest = max(width * 2 // 5, _NARROWEST_COLUMN) if n_fixed == 1 else width
    widths = [
        max((cells for row in rows if len(row) > i + 1 and (cells := get_cwidth(row[i])) <= widest), default=0)
        for i in range(n_fixed)
    ]
    for row in rows:
        start = " " * table.indent
        for cell, column in zip(row[:-1], widths, strict=False):
            start += padded(cell, column) + " " * _GAP
        too_long = n_fixed == 1 < len(row) and get_cwidth(row[0]) > widths[0]
        if too_long and get_cwidth(start) < width - _NARROWEST_COLUMN:
            yield start.rstrip()
            start = " " * (table.indent + widths[0] + _GAP)
        room = width - 1 - get_cwidth(start)
        if room < _NARROWEST_COLUMN:
            yield from wrapped("  ".join(filter(None, row)), width)
            continue
        lines = wrap(row[-1], room, break_words=True) or [""]
        yield (start + lines[0]).rstrip()
        yield from (" " * get_cwidth(start) + line for line in lines[1:])


def outline_lines(outline: Outline, width: int) -> Iterator[tuple[str, Style]]:
    """Yield a line for each row: branch, text, facts. The text is cut first, then the facts."""
    for branch, text, facts, style in outline.rows:
        room = width - 1 - get_cwidth(branch) - _GAP
        facts = _fitting_facts(facts, room - _NARROWEST_COLUMN - _GAP)
        with_facts = room - get_cwidth(facts) - _GAP if facts else 0
        if with_facts >= _NARROWEST_COLUMN:
            text = padded(shorten(visible(text), with_facts), with_facts + _GAP) + facts
        yield f"{branch}{' ' * _GAP}{shorten(visible(text), max(room, 1))}", style


def _fitting_facts(facts: str, room: int) -> str:
    """Return the facts that fit: the first one is cut if enough of it is left, else the last ones are left out."""
    if get_cwidth(facts) <= room:
        return facts
    first, joint, rest = facts.partition(" · ")
    room_for_first = room - get_cwidth(joint + rest)
    if room_for_first >= max(_NARROWEST_FACT, get_cwidth(first) // 2):
        return shorten(first, room_for_first) + joint + rest
    return _fitting_facts(facts.rpartition(" · ")[0], room) if rest else ""


def bar_lines(bars: Bars, width: int) -> Iterator[tuple[str, Style]]:
    """Yield a line for each row: label, percent, text, and a bar. The largest share has the longest bar."""
    shown = [(visible(label), f"{share:.1%}", visible(text)) for label, share, text, _ in bars.rows]
    widths = [max((get_cwidth(row[column]) for row in shown), default=0) for column in range(3)]
    largest = max((share for _, share, _, _ in bars.rows), default=0.0) or 1.0
    for (label, percent, text), (_, share, _, style) in zip(shown, bars.rows, strict=True):
        line = f"{padded(label, widths[0])}  {percent:>{widths[1]}}  "
        n_text = min(widths[2], max(1, (width - get_cwidth(line)) * 2 // 3))
        line += padded(shorten(text, n_text), n_text) + " " * _GAP
        yield (line + _bar(share / largest, width - 1 - get_cwidth(line))).rstrip(), style


def _bar(share: float, width: int) -> str:
    """Return a bar for a share of the width, exact to an eighth of a cell; a share above 0 is never invisible."""
    eighths = max(round(share * 8 * width), 1 if share else 0) if width > 0 else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def draft_line(text: str, room: int) -> str:
    """Return a draft in at most `room` cells: its beginning and, if it is longer, its latest words.

    Empty if there are fewer than 8 cells.
    """
    if room < _SHORTEST_DRAFT:
        return ""
    if get_cwidth(text) <= room:
        return text
    end = text[len(text) - room // 3 :]
    end = end[end.find(" ") + 1 :]
    while get_cwidth(end) > room // 3:
        end = end.removeprefix(next(clusters(end)))
    return shorten(text, room - 1 - get_cwidth(end)) + " " + end
