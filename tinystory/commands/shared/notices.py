"""Notices of a command on standard error. They are left out if the command is quiet."""

import sys
from collections.abc import Sequence

from tinystory.commands.shared.groups import ModelOptions, Options
from tinystory.safe.showing import visible
from tinystory.screen.facts import styled

__all__ = ["note", "warn"]


def warn(options: Options, lines: Sequence[str]) -> None:
    """Print each line on standard error, with the name of the program before it."""
    if not options.quiet:
        for line in lines:
            print(f"tinystory: {visible(line)}", file=sys.stderr)


def note(options: ModelOptions, line: str) -> None:
    """Print a line on standard error, dim if standard error may be styled."""
    if not options.quiet:
        print(f"\x1b[2m{line}\x1b[0m" if styled(options.color, sys.stderr) else line, file=sys.stderr)
