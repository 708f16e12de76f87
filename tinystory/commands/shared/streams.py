"""The three standard streams of a process that may be closed, or lead to a full disk."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar, cast

__all__ = ["apart", "discard_output", "sound_streams"]

_Item = TypeVar("_Item")


class _Closed(io.TextIOBase):
    """Standard output that the caller has closed. What is written cannot arrive, so it is an error."""

    def writable(self) -> bool:
        """Return True, because it is written to like any output."""
        return True

    def write(self, text: str) -> int:
        """Refuse a text."""
        if text:
            raise OSError(errno.EBADF, "standard output is closed")
        return 0


class _Notices:
    """Standard error. What cannot be written there is lost, and the command goes on: its result is elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text if that is possible."""
        with self._losing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what waits if that is possible."""
        with self._losing():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            _discard(self._stream)


@contextlib.contextmanager
def sound_streams() -> Iterator[None]:
    """Put streams that can be used in the place of closed ones, as long as a command runs.

    A closed descriptor is given to the null device: otherwise the next file that is opened would get its number, and
    what was meant for the stream would be written into the file.
    """
    before = sys.stdout, sys.stderr
    for descriptor, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # the lowest free number is this one
    with open(os.devnull, "w", encoding="utf-8") as null:
        sys.stdout = sys.stdout or cast(TextIO, _Closed())
        sys.stderr = cast(TextIO, _Notices(sys.stderr or null))
        try:
            yield
        finally:
            try:
                sys.stdout.flush()
            except (OSError, ValueError):
                discard_output()
            sys.stdout, sys.stderr = before


def apart(items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield items; what their making prints goes to standard error, because it may be code of somebody else."""
    iterator = iter(items)
    while True:
        with contextlib.redirect_stdout(sys.stderr):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def discard_output() -> None:
    """Discard the rest of standard output. Python would otherwise report the error again when it flushes at exit."""
    _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
