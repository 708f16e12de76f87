"""Run code of somebody else: its errors cannot end the program, and what it prints stays out of the output."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["CodeFailed", "foreign_code"]


class CodeFailed(Exception):
    """Code of somebody else has raised an error.

    Attributes:
        error: the error, of any class.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Run the body of a `with` as code of somebody else. What it prints goes to standard error.

    Raises:
        CodeFailed: the body raised anything at all, SystemExit and KeyboardInterrupt included. But an exception by
            which the program itself answers a signal, such as Ctrl-C, is raised as it is.
    """
    with _noting_signals() as received, _printing_to_stderr():
        try:
            yield
        except BaseException as error:
            if received:
                raise
            raise CodeFailed(error) from error


@contextlib.contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """Collect the numbers of SIGINT and SIGTERM as they arrive; the program's own handlers answer them as always."""
    received: list[int] = []
    handlers: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        handlers[number](number, frame)

    if threading.current_thread() is threading.main_thread():  # Python runs handlers in no other thread
        for number in map(int, (signal.SIGINT, signal.SIGTERM)):
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """Send standard output to standard error: `print`, and what is written to descriptor 1 without Python's stream."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    output = _copy_of(1)
    if output is not None:
        other = _copy_of(2)
        other = os.open(os.devnull, os.O_WRONLY) if other is None else other
        os.dup2(other, 1)
        os.close(other)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if output is not None:
            os.dup2(output, 1)
            os.close(output)


def _copy_of(descriptor: int) -> int | None:
    """Return a copy of a descriptor; None if it is closed."""
    try:
        return os.dup(descriptor)
    except OSError:
        return None
