"""The terminal while no input line is shown: typed keys wait for the next input line, and Ctrl-C can set a flag."""

import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TextIO

from tinystory.interrupts import Interrupts, Terminated
from tinystory.screen.facts import is_dumb

if sys.platform != "win32":  # Windows reads keys in another way
    import termios

__all__ = ["Hushed", "Writing", "modes_of", "quiet_modes", "set_modes"]


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
            set_modes(self._stdin, self._modes)
            self._ask("\x1b[?2004l")

    def _hush(self) -> None:
        if sys.platform == "win32" or not self._stdin.isatty() or not self._stdout.isatty():
            return
        self._modes = modes_of(self._stdin)
        if self._modes is not None:
            set_modes(self._stdin, quiet_modes(self._modes))
            self._ask("\x1b[?2004h")  # a paste arrives marked as a paste, as at the input line

    def _ask(self, sequence: str) -> None:
        if not is_dumb():
            self._stdout.write(sequence)
            self._stdout.flush()


class Writing(Hushed):
    """A hushed context in which Ctrl-C sets a flag instead of raising KeyboardInterrupt.

    A Ctrl-C more than a second after the first one is raised: then something is stuck and does not read the flag.
    A signal that ends the program sets the flag, too; the context then raises Terminated at its end.
    """

    def __init__(self, stdin: TextIO | None = None, stdout: TextIO | None = None) -> None:
        super().__init__(stdin, stdout)
        self._interrupts = Interrupts()

    @property
    def interrupted(self) -> bool:
        """True if Ctrl-C was pressed, or if the program has to end."""
        return bool(self._interrupts.received)

    def __enter__(self) -> Self:
        self._interrupts.__enter__()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, traceback)
        finally:
            self._interrupts.__exit__(kind, error, traceback)
        if not isinstance(error, Terminated):
            self._interrupts.end()


def modes_of(stdin: TextIO) -> list[Any] | None:
    """Return the modes of a terminal, as `termios.tcgetattr` does; None if there is no terminal, or no longer one."""
    try:
        return termios.tcgetattr(stdin)
    except (termios.error, ValueError, OSError):
        return None


def set_modes(stdin: TextIO, modes: list[Any]) -> None:
    """Set the modes of a terminal, unless it is gone."""
    with suppress(termios.error, ValueError, OSError):
        termios.tcsetattr(stdin, termios.TCSANOW, modes)


def quiet_modes(modes: list[Any]) -> list[Any]:
    """Return modes without echo.

    Line mode is also off, because it limits the length of a line; Ctrl-C and Ctrl-Z still work. A dumb terminal keeps
    line mode: its input line is a line of the terminal.
    """
    input_flags, output_flags, control_flags, local_flags, *rest = modes
    if not is_dumb():
        input_flags &= ~termios.ICRNL
        local_flags &= ~termios.ICANON
    return [input_flags, output_flags, control_flags, local_flags & ~termios.ECHO, *rest]
