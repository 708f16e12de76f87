"""A console for tables of figures, and a progress bar. Knows the flags --color and --quiet, and no command."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from tinystory.screen.facts import is_dumb, styled

__all__ = ["PipeConsole", "console", "progress_bar", "table_console"]


class PipeConsole(Console):
    """A console that raises BrokenPipeError; the console of rich would end the program with exit code 1."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError that is being handled."""
        raise BrokenPipeError


def console(color: str = "auto", *, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console for text of others: nothing in the text is read as markup, a highlight or an emoji.

    Args:
        color: `auto`, `always` or `never`.
        stderr: True for standard error.
        width: the width of a line in cells; None is the width of the terminal.
    """
    stream = sys.stderr if stderr else sys.stdout
    may_style = styled(color, stream)
    return PipeConsole(
        stderr=stderr,
        width=width,
        # rich would believe an exported COLUMNS, which is the width of another window.
        _environ={name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")},
        # rich would ask NO_COLOR and FORCE_COLOR itself, and keep bold text.
        force_terminal=may_style or stream.isatty(),
        color_system="auto" if may_style else None,
        no_color=not may_style,
        markup=False,
        highlight=False,
        emoji=False,
    )


def table_console(color: str = "auto", width: int = 200) -> Console:
    """Return a console on standard output. Without a terminal, lines have `width` cells, so grep finds whole rows."""
    return console(color, width=None if sys.stdout.isatty() else width)


@contextmanager
def progress_bar(label: str, total: int, *, quiet: bool, color: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error, if that is a terminal.

    Yields:
        A function that takes the number of items done, and by name a new `total` or `description`.
    """
    if quiet or not sys.stderr.isatty() or is_dumb():
        yield lambda _done, **_changes: None
        return
    from rich.progress import Progress

    # Other output keeps its stream: rich would redirect it to standard error.
    shown_on = console(color, stderr=True)
    with Progress(console=shown_on, transient=True, refresh_per_second=4, redirect_stdout=False) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done, **changes: bar.update(task, completed=done, **changes)
