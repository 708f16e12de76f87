"""What kind of terminal this is: its width, whether it is a dumb one, and whether it may be styled."""

import os
import shutil
import sys
from collections.abc import Mapping
from typing import TextIO

__all__ = ["is_dumb", "styled", "width_of"]

_DUMB = ("", "dumb", "unknown")
"""The values of TERM of terminals that know no escape sequence. A terminal without a name is one of them."""


def is_dumb(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the terminal only prints text."""
    named = environment.get("TERM", "")
    return named.lower() in _DUMB and not (sys.platform == "win32" and not named)


def styled(color: str, stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether escape sequences may go to a stream.

    Args:
        color: `always` or `never` decide. `auto` asks, in this order: NO_COLOR, FORCE_COLOR, and the terminal.
        stream: where the text goes.
        environment: the environment variables.
    """
    if color != "auto":
        return color == "always"
    if environment.get("NO_COLOR"):
        return False
    return bool(environment.get("FORCE_COLOR")) or (stream.isatty() and not is_dumb(environment))


def width_of(stream: TextIO) -> int:
    """Return the width of the terminal behind a stream, in cells.

    The terminal knows better than COLUMNS, which a shell may have exported in another window. Without a terminal,
    it is COLUMNS, or 80.
    """
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        width = 0
    return width or shutil.get_terminal_size().columns
