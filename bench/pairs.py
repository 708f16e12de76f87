"""Interleaved pairs: two sides are measured in turn, so that other work of the machine slows both alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.progress import Progress

from tinystory.screen.console import console

__all__ = ["COLUMNS", "Clock", "Measurement", "TimedRun", "rates", "run_pairs", "timed", "times"]

COLUMNS = ("beside", "tinystory", "other", "ratio", "range", "aim", "pairs")


@dataclass(frozen=True)
class TimedRun:
    """The output of one side in one run, and the time that it took.

    Attributes:
        output: the text of a process, or token ids.
        cpu: seconds of user and system time of all threads.
        wall: seconds; for a process until the first byte after the prompt.
        peak: the largest resident size of a process, in MB.
        n_tokens: tokens that were written, or scored by a training.
        loss: the mean over the steps of a training, in nats per token.
        n_bytes: bytes that a copy read and wrote.
    """

    output: str | list[int]
    cpu: float
    wall: float
    peak: float = 0.0
    n_tokens: int = 0
    loss: float = 0.0
    n_bytes: float = 0.0


@dataclass
class Measurement:
    """One figure of both sides, with a value of each side in every pair.

    Attributes:
        part: the part of the benchmark.
        what: the work that is measured.
        unit: the unit of the values.
        value: takes the value from a run.
        more_is_better: true if a larger value is better.
        peer: the name of the other side.
        aim: the ratio to reach, if there is one.
        their_value: takes the value from a run of the other side, if it is another figure, such as a limit.
        model: the name of the model.
        ours: our values, pair by pair.
        theirs: the values of the other side.
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
        """The ratio of each pair; above 1, tinystory is ahead."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [ours / theirs if self.more_is_better else theirs / ours for ours, theirs in pairs]

    @property
    def met(self) -> bool | None:
        """True if the median ratio reaches the aim, None without an aim."""
        return None if self.aim is None else median(self.ratios) >= self.aim

    def as_json(self) -> dict[str, Any]:
        """Return summaries and all values as plain data."""
        about = {"model": self.model, "part": self.part, "what": self.what, "unit": self.unit, "peer": self.peer}
        judged = {"aim": self.aim, "met": self.met, "pairs": len(self.ours)}
        values = {"ours": self.ours, "theirs": self.theirs, "ratio": self.ratios}
        summaries = {k: {"median": median(v), "min": min(v), "max": max(v), "values": v} for k, v in values.items()}
        return about | judged | summaries

    def row(self) -> list[str]:
        """Return the cells of a table row: the work and its unit, then `COLUMNS`."""
        middles = [median(values) for values in (self.ours, self.theirs)]
        sides = [f"{middle:,.{0 if middle >= 50 else 2}f}" for middle in middles]
        r = self.ratios
        aim = "" if self.aim is None else f"{self.aim:g} ×, {'met' if self.met else 'missed'}"
        spread = f"{min(r):.2f} – {max(r):.2f}"
        return [f"{self.what}, {self.unit}", self.peer, *sides, f"{median(r):.2f} ×", spread, aim, str(len(r))]


def rates(part: str, what: str, peer: str, aim: float | None = None) -> list[Measurement]:
    """Return measurements of tokens per second of CPU time, with the aim, and of wall time."""
    return [
        Measurement(part, what, "tokens / CPU s", lambda run: run.n_tokens / run.cpu, True, peer, aim),
        Measurement(part, what, "tokens / s", lambda run: run.n_tokens / run.wall, True, peer),
    ]


def times(part: str, what: str, peer: str) -> list[Measurement]:
    """Return measurements of the seconds of CPU time and of wall time."""
    return [
        Measurement(part, what, "CPU s", lambda run: run.cpu, peer=peer),
        Measurement(part, what, "s", lambda run: run.wall, peer=peer),
    ]


class Clock:
    """Wall time, and CPU time of all threads of this process, since the clock was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return the seconds of CPU time and of wall time."""
        return time.process_time() - self.cpu, time.perf_counter() - self.wall


def timed(write: Callable[[], list[int]]) -> TimedRun:
    """Run once, and measure CPU time and wall time."""
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
    """Run both sides in turn, and note the values of every measurement. The side that begins changes with each pair."""
    # The bar is not refreshed in the background, because that work would be counted.
    with Progress(console=console(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task(what, total=n_pairs)
        for pair in range(n_pairs):
            progress.update(task, completed=pair, refresh=True)
            if pair % 2:
                their_run = theirs()
                our_run = ours()
            else:
                our_run = ours()
                their_run = theirs()
            for measurement in measurements:
                measurement.note(our_run, their_run)
