"""Interleaved pairs: two sides measured in turn, so that a machine busy with other things slows both alike."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import Progress

from tinystory.model.config import ModelConfig

__all__ = ["COLUMNS", "Clock", "Measurement", "Subject", "TimedRun", "rates", "run_pairs", "timed"]

COLUMNS = ("beside", "tinystory", "other", "ratio", "range", "aim", "pairs")


@dataclass(frozen=True)
class TimedRun:
    """What one side wrote, and what it took.

    Attributes:
        output: text of a process, or token ids.
        cpu: seconds of user and system time, all threads.
        wall: seconds; of a process, until the first byte after the prompt.
        peak: largest resident size of a process, in MB.
        n_tokens: tokens written, or scored by a training.
        loss: mean over a training's steps, in nats per token.
        n_bytes: moved by a copy.
    """

    output: str | list[int]
    cpu: float
    wall: float
    peak: float = 0.0
    n_tokens: int = 0
    loss: float = 0.0
    n_bytes: float = 0.0


@dataclass
class Subject:
    """The model that is measured, how, and what is found besides figures.

    Attributes:
        name: of the model.
        directory: its checkpoint.
        config: its shape.
        args: the command line.
        checks: whether the sides did the same work; parts add to it.
        notes: one line for everything that was left out.
    """

    name: str
    directory: Path
    config: ModelConfig
    args: argparse.Namespace
    checks: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Measurement:
    """One figure of both sides, a value from each in every pair.

    Attributes:
        part: of the benchmark.
        what: was done.
        unit: of the values.
        value: of a run.
        more_is_better: whether a larger value is ahead.
        peer: the other side.
        aim: the ratio to reach, where there is one.
        their_value: of the other side's run, where it is another figure: a limit, a bandwidth.
        model: that did it.
        ours: values, pair by pair.
        theirs: the other side's.
    """

    part: str
    what: str
    unit: str
    value: Callable[[TimedRun], float]
    more_is_better: bool = False
    peer: str = "transformers"
    aim: float | None = None
    their_value: Callable[[TimedRun], float] | None = None
    model: str = ""
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def note(self, ours: TimedRun, theirs: TimedRun) -> None:
        """Add a pair."""
        self.ours.append(self.value(ours))
        self.theirs.append((self.their_value or self.value)(theirs))

    @property
    def ratios(self) -> list[float]:
        """How far ours is ahead, pair by pair."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [a / b if self.more_is_better else b / a for a, b in pairs]

    @property
    def met(self) -> bool | None:
        """Whether the median ratio reaches the aim; None without one."""
        return None if self.aim is None else median(self.ratios) >= self.aim

    def as_json(self) -> dict[str, Any]:
        """Summaries and all values."""
        about = {"model": self.model, "part": self.part, "what": self.what, "unit": self.unit, "peer": self.peer}
        judged = {"aim": self.aim, "met": self.met, "pairs": len(self.ours)}
        values = {"ours": self.ours, "theirs": self.theirs, "ratio": self.ratios}
        summaries = {k: {"median": median(v), "min": min(v), "max": max(v), "values": v} for k, v in values.items()}
        return about | judged | summaries

    def row(self) -> list[str]:
        """The measurement as cells: what was done, and `COLUMNS`."""
        middles = [median(values) for values in (self.ours, self.theirs)]
        sides = [f"{middle:,.{0 if middle >= 50 else 2}f}" for middle in middles]
        r = self.ratios
        aim = "" if self.aim is None else f"{self.aim:g} ×, {'met' if self.met else 'missed'}"
        spread = f"{min(r):.2f} – {max(r):.2f}"
        return [f"{self.what}, {self.unit}", self.peer, *sides, f"{median(r):.2f} ×", spread, aim, str(len(r))]


def rates(part: str, what: str, peer: str, aim: float | None = None) -> list[Measurement]:
    """Tokens per second of CPU, which the aim is about, and of wall time."""
    return [
        Measurement(part, what, "tokens / CPU s", lambda run: run.n_tokens / run.cpu, True, peer, aim),
        Measurement(part, what, "tokens / s", lambda run: run.n_tokens / run.wall, True, peer),
    ]


class Clock:
    """Time since it was made: wall, and CPU of all this process's threads."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds of CPU and of wall time."""
        return time.process_time() - self.cpu, time.perf_counter() - self.wall


def timed(write: Callable[[], list[int]]) -> TimedRun:
    """Run once, with both clocks."""
    clock = Clock()
    token_ids = write()
    return TimedRun(token_ids, *clock.read(), n_tokens=len(token_ids))


def run_pairs(
    what: str,
    n_pairs: int,
    measurements: Sequence[Measurement],
    ours: Callable[[], TimedRun],
    theirs: Callable[[], TimedRun],
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
                measurement.note(a, b)
