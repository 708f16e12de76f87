"""Signals that end a command. The text that is written so far is kept."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["exit_code", "interrupts"]


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the process does not end at once. A second signal does end it.

    Yields:
        A list that gets the number of each signal when it arrives.
    """
    received: list[int] = []
    old: dict[int, Any] = {}

    def take(number: int, frame: FrameType | None) -> None:
        if received:
            previous = old[number]
            if callable(previous):
                previous(number, frame)
        received.append(number)

    for kind in (signal.SIGINT, signal.SIGTERM):
        old[kind] = signal.signal(kind, take)
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def exit_code(received: list[int]) -> int:
    """Return 0, or 128 plus the number of the first signal, as shells count it."""
    return 128 + received[0] if received else 0
