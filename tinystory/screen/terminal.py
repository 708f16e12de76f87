"""The terminal while no input line is shown: typed keys wait for the next input line, and Ctrl-C can set a flag."""

import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self, TextIO

from prompt_toolkit.utils import is_dumb_terminal

if sys.platform != "win32":  # Windows reads keys in another way
    import termios

__all__ = ["Hushed", "Writing"]

_STUCK_SECONDS = 1.0


class Hushed:
    """A context in which typed keys are not echoed, if standard input is a terminal.

    The keys stay in the queue for the next input line; Enter stays Enter. Ctrl-C raises KeyboardInterrupt, and the
    terminal forgets the keys.
    """

    def __init__(self, stdin: TextIO | None = None, stdout: TextIO | None = None) -> None:
        self._stdin = sys.stdin if stdin is None else stdin
        self._stdout = sys.stdout if stdout is None else stdout
        self._modes: list[Any] | None = None

    def __enter__(self) -> Self:
        self._hush()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if sys.platform != "win32" and self._modes is not None:
            self._ask("\x1b[?2004l")
            termios.tcsetattr(self._stdin, termios.TCSANOW, self._modes)

    def _hush(self) -> None:
        """Turn off echo and line mode, which limits the length of a line. Ctrl-C and Ctrl-Z still work."""
        if sys.platform == "win32" or not self._stdin.isatty() or not self._stdout.isatty():
            return
        try:
            self._modes = termios.tcgetattr(self._stdin)
            modes = termios.tcgetattr(self._stdin)
            modes[0] &= ~termios.ICRNL
            modes[3] &= ~(termios.ECHO | termios.ICANON)
            termios.tcsetattr(self._stdin, termios.TCSANOW, modes)
        except (termios.error, ValueError, OSError):
            self._modes = None
            return
        self._ask("\x1b[?2004h")  # a paste arrives marked as a paste, as at the input line

    def _ask(self, sequence: str) -> None:
        if not is_dumb_terminal():
            self._stdout.write(sequence)
            self._stdout.flush()


class Writing(Hushed):
    """A hushed context in which Ctrl-C sets a flag instead of raising KeyboardInterrupt.

    A Ctrl-C more than a second after the first one is raised: then something is stuck and does not read the flag.
    """

    def __init__(self, stdin: TextIO | None = None, stdout: TextIO | None = None) -> None:
        super().__init__(stdin, stdout)
        self._first: float | None = None
        self._handler: Any = None

    @property
    def interrupted(self) -> bool:
        """True if Ctrl-C was pressed."""
        return self._first is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._note)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is not None and now - self._first > _STUCK_SECONDS:
            raise KeyboardInterrupt
        self._first = now if self._first is None else self._first
