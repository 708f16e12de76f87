"""The history of the input line: a private file, or memory if there can be no such file."""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from tinystory.errors import TinystoryError
from tinystory.safe.writing import write_atomically

__all__ = ["open_history"]

_LONGEST = 20_000
"""Characters of the longest entry that is kept on disk. Every start reads all entries again."""
_KEPT = 500_000
"""Bytes of the latest entries that are read, and kept when the file is cut."""
_LARGE = 2 * _KEPT
_ENTRY = b"\n# "
"""The beginning of an entry; a line of typed text has a plus sign before it."""

_MOST_BYTES = 2**26


def open_history(path: Path) -> History:
    """Return a history in a file that only its owner may read.

    If the file cannot be used, the history is in memory; the user gets no notice. A file that has grown large loses
    its oldest entries.
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
    if status.st_size > _LARGE:
        with suppress(OSError, TinystoryError):
            write_atomically(path, _end_of(path), 0o600)
    return _SafeFileHistory(str(path))


def _end_of(path: Path) -> bytes:
    """Return the latest entries of a file: at most `_KEPT` bytes."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _KEPT))
        end = file.read()
    return end if size <= _KEPT else end[end.find(_ENTRY) :] if _ENTRY in end else b""


class _SafeFileHistory(FileHistory):
    """A history in a file. Trouble with the file never stops the input line."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            text = _end_of(Path(str(self.filename))).decode("utf-8", errors="replace")
        except OSError:
            return []
        entries = ("\n" + text).split(_ENTRY.decode())[1:]
        lines = ([line[1:] for line in entry.split("\n") if line.startswith("+")] for entry in entries)
        return ["\n".join(entry) for entry in lines if entry][::-1]

    def store_string(self, string: str) -> None:
        # An entry that is not stored is still in the history of this chat.
        if len(string) <= _LONGEST:
            with suppress(OSError, UnicodeError):
                super().store_string(string)
