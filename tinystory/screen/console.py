"""A console for tables of figures, and a progress bar. Knows the flags --color and --quiet, and no command."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["PipeConsole", "progress_bar", "table_console"]


class PipeConsole(Console):
    """A console that raises BrokenPipeError; the console of rich would end the program with exit code 1."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError that is being handled."""
        raise BrokenPipeError


def table_console(color: str = "auto", width: int = 200) -> Console:
    """Return a console on standard output. Without a terminal, lines have `width` cells, so grep finds whole rows."""
    return PipeConsole(
        width=None if sys.stdout.isatty() else width,
        force_terminal=True if color == "always" else None,
        color_system=None if color == "never" else "auto",
        markup=False,
        highlight=False,
    )


@contextmanager
def progress_bar(label: str, total: int, *, quiet: bool, color: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error, if that is a terminal.

    Yields:
        A function that takes the number of items done, and by name a new `total` or `description`.
    """
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _done, **_changes: None
        return
    from rich.progress import Progress

    console = Console(stderr=True, color_system=None if color == "never" else "auto")
    # Other output keeps its stream: rich would redirect it to standard error.
    with Progress(console=console, transient=True, refresh_per_second=4, redirect_stdout=False) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done, **changes: bar.update(task, completed=done, **changes)
