"""The history of the input line: a private file, or memory if there can be no such file."""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

__all__ = ["open_history"]

_LONGEST = 20_000
"""Characters of the longest entry that is kept on disk. Every start reads all entries again."""

_MOST_BYTES = 2**26


def open_history(path: Path) -> History:
    """Return a history in a file that only its owner may read.

    If the file cannot be used, the history is in memory; the user gets no notice.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # O_NONBLOCK: a pipe of that name must not block the start.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o600)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
                return InMemoryHistory()
            if stat.S_IMODE(status.st_mode) != 0o600 and hasattr(os, "fchmod"):
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError:
        return InMemoryHistory()
    return _SafeFileHistory(path)


class _SafeFileHistory(FileHistory):
    """A history in a file. Trouble with the file never stops the input line."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        # An entry that is not stored is still in the history of this chat.
        if len(string) <= _LONGEST:
            with suppress(OSError, UnicodeError):
                super().store_string(string)
