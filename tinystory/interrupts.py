"""Signals that end a program or stop its work. Knows nothing of what the program does.

A terminal that closes sends SIGHUP, and often twice: from the kernel and from the shell. A signal that comes within a
second of the first one is therefore not a second request.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

__all__ = ["ENDING", "HANG_UP", "Interrupts", "Terminated", "ending_signals", "exit_code", "taken", "whole_imports"]

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
"""The signals that ask a program to end. SIGQUIT is Ctrl-\\."""

HANG_UP = 129
"""The exit code after the terminal is gone, with SIGHUP or without it."""

STUCK_SECONDS = 1.0
"""A signal that comes later than this after the first one ends work that does not look at `Interrupts`."""
PATIENCE_SECONDS = 10.0
"""Work that has not ended this long after a signal of `ENDING` is ended, because no second signal may come."""
_POLL_SECONDS = 0.02


class Terminated(SystemExit):
    """The exit after a signal of `ENDING`; `code` is 128 plus its number. Event loops do not catch a SystemExit."""


def exit_code(received: Sequence[int]) -> int:
    """Return 0, or 128 plus the number of the first signal, as shells count it."""
    return 128 + received[0] if received else 0


def taken(numbers: Sequence[int]) -> list[int]:
    """Return the signals that are not ignored. `nohup` ignores SIGHUP before it starts a program."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def ending_signals() -> Iterator[None]:
    """Raise Terminated when a signal of `ENDING` arrives, but only once in a second.

    Where Python loses it, or the KeyboardInterrupt of a Ctrl-C, in a finalizer or in a callback of a weak reference, it
    is raised again soon after.
    Does nothing in another thread than the main one. After a signal, the handlers are not put back: the process ends,
    and a second signal must not change its exit code.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = float("-inf")

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > STUCK_SECONDS:
            raise Terminated(128 + number)

    def report(lost: "sys.UnraisableHookArgs") -> None:
        ending = lost.exc_value
        if not isinstance(ending, Terminated | KeyboardInterrupt) or not hasattr(signal, "setitimer"):
            report_before(lost)
            return
        kind, arguments = type(ending), ending.args

        def end_again(_number: int, _frame: FrameType | None) -> None:
            raise kind(*arguments)

        signal.signal(signal.SIGALRM, end_again)
        signal.setitimer(signal.ITIMER_REAL, _POLL_SECONDS)

    old = {number: signal.signal(number, end) for number in taken(ENDING)}
    report_before, sys.unraisablehook = sys.unraisablehook, report
    try:
        yield
    finally:
        sys.unraisablehook = report_before
        for number, handler in old.items():
            signal.signal(number, handler if last == float("-inf") else signal.SIG_IGN)


class Interrupts:
    """A context in which SIGINT and the signals of `ENDING` are noted, so that work can end in good order.

    Work that does not end is ended by an exception: by a signal that comes more than a second after the first one,
    or ten seconds after a signal of `ENDING`. While an input line waits for a person, such a signal is raised at once.
    Does nothing in another thread than the main one.

    Attributes:
        received: the numbers of the signals, in their order.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._first = 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *taken(ENDING)):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._ended and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if isinstance(error, OSError):  # the terminal may be gone
            self.end()

    @property
    def _ended(self) -> bool:
        return any(number in ENDING for number in self.received)

    def end(self) -> None:
        """Raise Terminated if a signal of `ENDING` was received."""
        for number in self.received:
            if number in ENDING:
                self._raise(number, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now, first = time.monotonic(), not self.received
        self._first = now if first else self._first
        begins = number in ENDING and not self._ended
        self.received.append(number)
        if now - self._first > STUCK_SECONDS or (number in ENDING and _input_line_waits()):
            self._raise(number, frame)
        if begins and hasattr(signal, "setitimer"):
            self._old[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda _n, frame: self._raise(number, frame))
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)

    def _raise(self, number: int, frame: FrameType | None) -> NoReturn:
        handler = self._old.get(number)
        if callable(handler):
            handler(number, frame)
        raise Terminated(128 + number) if number in ENDING else KeyboardInterrupt


def _input_line_waits() -> bool:
    """Return whether an event loop runs in this thread: only input lines have one."""
    asyncio = sys.modules.get("asyncio")  # not imported here, because every start of the program would wait for it
    return asyncio is not None and asyncio._get_running_loop() is not None


@contextmanager
def whole_imports() -> Iterator[None]:
    """Let a SIGINT that comes within an import of the main thread wait for its end, then raise KeyboardInterrupt.

    Inside an import the exception may be swallowed, and a module of which half has run fails when it is used again.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(_number: int, frame: FrameType | None) -> None:
        if not _imports(frame):
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, _POLL_SECONDS)

    old = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in old.items():
            signal.signal(number, handler)


def _imports(frame: FrameType | None) -> bool:
    """Return whether a frame runs within an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
