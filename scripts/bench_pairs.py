"""Interleaved pairs: two sides measured in turn, so that a machine busy with other things slows both alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import Progress

__all__ = ["Clock", "Measurement", "Run", "run_pairs", "timed"]


@dataclass(frozen=True)
class Run:
    """What one side wrote, and what it took.

    Attributes:
        output: text of a process, or token ids.
        cpu: seconds of user and system time, all threads.
        wall: seconds; of a process, until the first byte after the prompt.
        peak: largest resident size of a process, in MB.
        n_tokens: tokens scored, of a training.
        loss: mean over its steps, in nats per token.
    """

    output: str | list[int]
    cpu: float
    wall: float
    peak: float = 0.0
    n_tokens: int = 0
    loss: float = 0.0


@dataclass
class Measurement:
    """One figure of both sides, a value from each in every pair."""

    part: str
    what: str
    unit: str
    value: Callable[[Run], float]
    more_is_better: bool = False
    peer: str = "transformers"
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """How far ours is ahead, pair by pair."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [a / b if self.more_is_better else b / a for a, b in pairs]

    def as_json(self) -> dict[str, Any]:
        """Summaries and all values."""
        about = {"part": self.part, "what": self.what, "unit": self.unit, "peer": self.peer, "pairs": len(self.ours)}
        values = {"ours": self.ours, "theirs": self.theirs, "ratio": self.ratios}
        return about | {k: {"median": median(v), "min": min(v), "max": max(v), "values": v} for k, v in values.items()}

    def row(self) -> list[str]:
        """The measurement as table cells."""
        digits = 0 if median(self.ours) >= 50 else 2
        sides = [f"{median(values):,.{digits}f}" for values in (self.ours, self.theirs)]
        r = self.ratios
        return [f"{self.what}, {self.unit}", *sides, f"{median(r):.2f} ×", f"{min(r):.2f} – {max(r):.2f}", str(len(r))]


class Clock:
    """Time since it was made: wall, and CPU of all this process's threads."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds of CPU and of wall time."""
        return time.process_time() - self.cpu, time.perf_counter() - self.wall


def timed(write: Callable[[], list[int]]) -> Run:
    """Run once, with both clocks."""
    clock = Clock()
    return Run(write(), *clock.read())


def run_pairs(
    what: str, n_pairs: int, measurements: list[Measurement], ours: Callable[[], Run], theirs: Callable[[], Run]
) -> None:
    """Run both sides in turn, the first of a pair being last in the next, and note every measurement's value."""
    # No refreshing in the background: its work would be counted.
    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task(what, total=n_pairs)
        for pair in range(n_pairs):
            progress.update(task, completed=pair, refresh=True)
            if pair % 2:
                b = theirs()
                a = ours()
            else:
                a = ours()
                b = theirs()
            for measurement in measurements:
                measurement.ours.append(measurement.value(a))
                measurement.theirs.append(measurement.value(b))
