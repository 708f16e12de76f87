"""What the commands show figures on: a console that leaves a closed pipe to the command line, and a progress bar."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["PipeConsole", "progress_bar", "table_console"]


class PipeConsole(Console):
    """Rich's own would end the program with exit code 1."""

    def on_broken_pipe(self) -> None:
        """Called while a BrokenPipeError is handled; raise it again."""
        raise BrokenPipeError


def table_console(color: str = "auto", width: int = 200) -> Console:
    """Standard output for tables; `width` is taken where it is no terminal, so that rows stay whole for grep."""
    return PipeConsole(
        width=None if sys.stdout.isatty() else width,
        force_terminal=True if color == "always" else None,
        color_system=None if color == "never" else "auto",
        markup=False,
        highlight=False,
    )


@contextmanager
def progress_bar(label: str, total: int, *, quiet: bool, color: str) -> Iterator[Callable[..., None]]:
    """A bar on standard error, where that is a terminal.

    Yields:
        A function that takes how many are done, and by name `total` and `description` where these change.
    """
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _done, **_changes: None
        return
    from rich.progress import Progress

    console = Console(stderr=True, color_system=None if color == "never" else "auto")
    # What is printed meanwhile goes where it was meant to go; rich would take it to standard error.
    with Progress(console=console, transient=True, refresh_per_second=4, redirect_stdout=False) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done, **changes: bar.update(task, completed=done, **changes)
