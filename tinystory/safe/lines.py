"""Keep a file of JSON lines that goes on where it was stopped: a line counts only when its newline is in the file.

It knows lines and files, but not what the lines mean.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tinystory.safe.writing import sync_folder

if sys.platform != "win32":
    import fcntl

__all__ = ["ClosedAtExit", "ForeignLine", "JsonLines", "parse_line"]

_MAX_LINE_BYTES = 2**26
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)


class ForeignLine(Exception):
    """A line of the file does not begin as our lines do. So nothing may be added to the file or cut from it."""


class ClosedAtExit:
    """A context manager whose `close` is called at the end of `with`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back what the object holds. A second call does nothing."""
        raise TypeError(f"{type(self).__name__} defines no close")


class JsonLines(ClosedAtExit):
    """A file that is open to get more lines.

    A crash may leave a part of a last line. `whole_lines` skips that part and then cuts it off. Pipes and devices can
    be written, too; they have no lines to read.
    """

    def __init__(self, path: Path, begin: bytes = b"{", *, exclusive: bool = False) -> None:
        """Open a file, or make a new one.

        Args:
            path: in a folder that exists.
            begin: the bytes that each line begins with.
            exclusive: refuse a file that another process holds open exclusively. Where the system has no locks, no
                file is refused.

        Raises:
            BlockingIOError: another process holds the file.
            OSError: the file cannot be written.
        """
        self._path, self._begin = path, begin
        self._is_new = not path.exists()
        self._descriptor = os.open(path, _FLAGS, 0o666)
        try:
            self._is_regular = path.is_file()
            if exclusive and self._is_regular:
                self._lock()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file and release its lock. A second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def whole_lines(self) -> Iterator[bytes]:
        """Yield each whole line with its newline; after the last one, cut off the rest that a crash has left.

        A caller that stops early, for example because a line is wrong, leaves the file as it is.

        Raises:
            ForeignLine: a line does not begin with `begin`, or is longer than any line of ours.
            OSError: the file cannot be read or cut.
        """
        if not self._is_regular:
            return
        size = 0
        with self._path.open("rb") as file:
            while line := file.readline(_MAX_LINE_BYTES):
                if line[: len(self._begin)] != self._begin[: len(line)] or len(line) == _MAX_LINE_BYTES:
                    raise ForeignLine
                if not line.endswith(b"\n"):
                    break
                size += len(line)
                yield line
        os.ftruncate(self._descriptor, size)

    def append(self, line: bytes) -> None:
        """Add one line, which must end with a newline.

        Raises:
            OSError: the line cannot be written. The next process to open the file cuts off the part that was written.
        """
        rest = memoryview(line)
        while rest:  # a disk that is nearly full takes only a part
            rest = rest[os.write(self._descriptor, rest) :]

    def sync(self) -> None:
        """Wait until all added lines are on the disk, where a power cut cannot lose them.

        Raises:
            OSError: the disk reports an error.
        """
        if not self._is_regular:
            return
        os.fsync(self._descriptor)
        if self._is_new:
            sync_folder(self._path.parent)
            self._is_new = False

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # some network drives have no locks
            pass


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line, or None if the line holds anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
