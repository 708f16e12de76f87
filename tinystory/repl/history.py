"""What was typed before: a file of the user's own, or memory where there can be no such file."""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

__all__ = ["open_history"]

_LONGEST = 20_000
"""Characters of an entry worth keeping on disk: all of them are read again at every start."""


def open_history(path: Path) -> History:
    """A history on a file that only its owner may read; in memory if that cannot be had, silently."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # O_NONBLOCK: a pipe of that name must not hang the start.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o600)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return InMemoryHistory()
            if stat.S_IMODE(status.st_mode) != 0o600 and hasattr(os, "fchmod"):
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError:
        return InMemoryHistory()
    return _Kept(path)


class _Kept(FileHistory):
    """A history whose file may go wrong at any time without anybody losing the prompt over it."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        # Whatever is not stored still stands in the history of this chat.
        if len(string) <= _LONGEST:
            with suppress(OSError, UnicodeError):
                super().store_string(string)
