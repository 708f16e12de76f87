"""Notices of a command on standard error. They are left out if the command is quiet."""

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from tinystory.commands.shared.groups import ModelOptions, Options
from tinystory.safe.showing import visible

__all__ = ["note", "plain_terminal", "styled", "warn"]


def warn(options: Options, lines: Sequence[str]) -> None:
    """Print each line on standard error, with the name of the program before it."""
    if not options.quiet:
        for line in lines:
            print(f"tinystory: {visible(line)}", file=sys.stderr)


def note(options: ModelOptions, line: str) -> None:
    """Print a line on standard error, dim if standard error may be styled."""
    if not options.quiet:
        print(f"\x1b[2m{line}\x1b[0m" if styled(options, sys.stderr) else line, file=sys.stderr)


def styled(options: ModelOptions, stream: TextIO) -> bool:
    """Return whether escape sequences may go to a stream."""
    automatic = options.color == "auto" and stream.isatty() and not plain_terminal()
    return options.color == "always" or automatic


def plain_terminal() -> bool:
    """Return whether the environment asks for output without colour."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
