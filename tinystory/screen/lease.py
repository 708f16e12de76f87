"""The terminal as one chat uses it, from its beginning to its end: its modes, Ctrl-Z, and its loss.

Between two input lines, the terminal stays as it is during the writing. Otherwise Enter, typed in that moment, would
arrive as another key.
"""

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

from tinystory.interrupts import HANG_UP, Terminated, taken
from tinystory.screen.facts import is_dumb
from tinystory.screen.terminal import modes_of, quiet_modes, set_modes

__all__ = ["TerminalLease", "output_until_hang_up"]


class TerminalLease:
    """A context in which a chat has the terminal of standard input.

    Outside of it, while the chat is stopped (Ctrl-Z), and while another program is run, the terminal has the modes that
    it had at the beginning.
    """

    def __init__(self) -> None:
        self._original: list[Any] | None = None
        self._when_stopped: list[Any] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if sys.platform == "win32" or not sys.stdin.isatty():
            return self
        self._original = modes_of(sys.stdin)
        if self._original is None:
            return self
        if not is_dumb():
            set_modes(sys.stdin, quiet_modes(self._original))
        if threading.current_thread() is threading.main_thread():
            for number, handler in ((signal.SIGTSTP, self._stop), (signal.SIGCONT, self._go_on)):
                if taken([number]):
                    self._handlers[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._original is not None:
            set_modes(sys.stdin, self._original)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Give the terminal to another program, such as an editor."""
        now = None if self._original is None else modes_of(sys.stdin)
        if self._original is not None:
            set_modes(sys.stdin, self._original)
        try:
            yield
        finally:
            if now is not None:
                set_modes(sys.stdin, now)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        """Stop the process, as SIGTSTP asks; the shell gets the terminal as it was."""
        self._when_stopped = modes_of(sys.stdin)
        if self._original is not None:
            set_modes(sys.stdin, self._original)
        self._ask("\x1b[?2004l")
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)  # returns when the process goes on
        signal.signal(signal.SIGTSTP, handler)
        self._go_on()

    def _go_on(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Take the terminal again after a stop. In the background (`bg`) this would stop the process."""
        with suppress(OSError):
            if self._when_stopped is not None and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp():
                set_modes(sys.stdin, self._when_stopped)
                self._ask("\x1b[?2004h")
                self._when_stopped = None

    def _ask(self, sequence: str) -> None:
        """Send the terminal a sequence, past `sys.stdout`, which a signal may have found in the middle of a write."""
        if not is_dumb():
            with suppress(OSError):
                os.write(sys.stdout.fileno(), sequence.encode())


@contextmanager
def output_until_hang_up() -> Iterator[None]:
    """Let the first write to standard output after the terminal is gone raise Terminated; later ones do nothing."""
    if sys.platform == "win32":
        yield
        return
    before = sys.stdout
    raw = _TerminalFile(before.fileno(), "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), before.encoding, before.errors, line_buffering=True)
    try:
        yield
    finally:
        with suppress(OSError, Terminated):
            sys.stdout.flush()
        sys.stdout = before


class _TerminalFile(io.FileIO):
    """The file of a terminal that may go away."""

    _gone = False

    def write(self, data: Any) -> int:
        """Write bytes; raises Terminated when the terminal is gone."""
        if not self._gone:
            try:
                return super().write(data)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.ENXIO, errno.EPIPE):
                    raise
                self._gone = True
                raise Terminated(HANG_UP) from None
        return memoryview(data).nbytes
