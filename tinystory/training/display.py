"""Show a training run on the terminal, send its log records to TensorBoard, and note signals that ask it to stop.

Knows the state of a run. Does not know how a step is computed.
"""

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tinystory.errors import UsageError
from tinystory.training.distributed import Ranks
from tinystory.training.run import TrainState

__all__ = ["Display", "Logger", "Meter", "catch_signals", "log_to_tensorboard"]

Logger = Callable[[Mapping[str, Any]], None]
"""Takes one log record: names -> numbers, among them `step`."""


def catch_signals() -> list[int]:
    """Note SIGINT and SIGTERM from now on, instead of ending the process.

    Returns:
        A list that gets the number of each signal. The loop looks at it after every step, so that it can save first.
    """
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _frame: received.append(n))
    return received


def log_to_tensorboard(folder: Path) -> Logger:
    """Return a function that writes log records to a folder for TensorBoard.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs tensorboard: pip install 'tinystory[tensorboard]'") from error
    writer = SummaryWriter(str(folder))

    def log(record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            writer.add_scalar(name, value, record["step"])
        writer.flush()

    return log


class Meter:
    """The mean loss and the speed since the last log line."""

    def __init__(self) -> None:
        self.nats, self.n_tokens, self.started = 0.0, 0, time.monotonic()

    def add(self, loss: float, n_tokens: int) -> None:
        """Add a step: its mean loss in nats per token, and how many tokens it predicted."""
        self.nats, self.n_tokens = self.nats + loss * n_tokens, self.n_tokens + n_tokens

    def record(self, state: TrainState) -> dict[str, Any]:
        """Return a log record; its loss is in nats per token, its speed in tokens/s."""
        return {
            "step": state.step,
            "epoch": state.epoch,
            "tokens": state.n_tokens,
            "seconds": round(state.seconds, 3),
            "train_loss": self.nats / self.n_tokens,
            "tokens_per_second": self.n_tokens / max(time.monotonic() - self.started, 1e-9),
        }


class Display:
    """Progress on the standard error of the first rank: a bar on a terminal, else a line every half minute."""

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self, ranks: Ranks, n_steps: int) -> None:
        self.console = Console(stderr=True, quiet=not ranks.first, markup=False, highlight=False)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=n_steps)
        self.n_steps, self.last_line = n_steps, time.monotonic()

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.bar.stop()

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(text, soft_wrap=True)

    def step(self, state: TrainState, meter: Meter) -> None:
        """Show the step that was just done."""
        record = meter.record(state)
        text = f"epoch {state.epoch} loss {record['train_loss']:.3f} {record['tokens_per_second']:,.0f} tokens/s"
        self.bar.update(self.task, completed=state.step, description=text)
        if not self.console.is_terminal and time.monotonic() - self.last_line > self.SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.line(f"step {state.step:,} of {self.n_steps:,} {text}")
