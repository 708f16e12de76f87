"""Show a training run on the terminal, send its log records to TensorBoard, and note signals to save or to stop.

Knows the state of a run. Does not know how a step is computed.
"""

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tinystory.errors import UsageError
from tinystory.screen.console import console
from tinystory.training.distributed import Ranks
from tinystory.training.state import TrainState

__all__ = ["Display", "Logger", "Meter", "Signals", "log_to_tensorboard"]

Logger = Callable[[Mapping[str, Any]], None]
"""Takes one log record: names -> numbers, among them `step`."""


class Signals:
    """Notes signals in its `with` block, instead of ending the process: the loop looks here after every step.

    SIGINT, SIGTERM and SIGHUP ask to save and stop, and SIGUSR1 to save and go on. A SIGHUP that is ignored from the
    beginning (nohup) stays ignored.
    """

    STOP = 128
    """The smallest `wish` that asks to stop."""

    def __init__(self) -> None:
        self._stop, self._save = 0, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
            number = getattr(signal, name, None)  # Windows lacks two of them
            if number is None or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                continue
            self._before[number] = signal.signal(number, self._note_save if name == "SIGUSR1" else self._note_stop)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wish(self) -> int:
        """Return 0 for nothing, 1 to save, and the exit code, 128 plus the number of the signal, to save and stop."""
        return self._stop or int(self._save)

    def stops(self) -> bool:
        """Return whether this process is asked to stop."""
        return self._stop > 0

    def saved(self) -> None:
        """Forget the wish to save."""
        self._save = False

    def _note_stop(self, number: int, _frame: object) -> None:
        self._stop = self._stop or self.STOP + number

    def _note_save(self, _number: int, _frame: object) -> None:
        self._save = True


def log_to_tensorboard(folder: Path, step: int) -> Logger:
    """Return a function that writes log records to a folder for TensorBoard.

    What the folder has after `step` is hidden, because a run that goes on from there writes it again.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs tensorboard: pip install 'tinystory[tensorboard]'") from error
    writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            writer.add_scalar(name, value, record["step"])
        writer.flush()

    return log


class Meter:
    """The mean loss and the speed of the steps since the last log line, without the time to validate and save."""

    def __init__(self) -> None:
        self.nats, self.n_tokens, self.seconds = 0.0, 0, 0.0

    def add(self, loss: float, n_tokens: int, seconds: float) -> None:
        """Add a step: its mean loss in nats per token, how many tokens it predicted, and how long it took."""
        self.nats, self.n_tokens = self.nats + loss * n_tokens, self.n_tokens + n_tokens
        self.seconds += seconds

    def record(self, state: TrainState) -> dict[str, Any]:
        """Return a log record; its loss is in nats per token, its speed in tokens/s."""
        return {
            "step": state.step,
            "epoch": state.epoch,
            "tokens": state.n_tokens,
            "seconds": round(state.seconds, 3),
            "train_loss": self.nats / self.n_tokens,
            "tokens_per_second": self.n_tokens / max(self.seconds, 1e-9),
        }


class Display:
    """Progress on the standard error of the first rank: a bar on a terminal, else a line every half minute."""

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self, ranks: Ranks) -> None:
        self.console = console(stderr=True)
        self.console.quiet = not ranks.first
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=None)
        self.last_line = time.monotonic()

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        with suppress(OSError):
            self.bar.stop()

    def line(self, text: str) -> None:
        """Print a line above the bar. A terminal or pipe that was closed does not end the run."""
        with suppress(OSError):
            self.bar.console.print(text, soft_wrap=True)

    def step(self, state: TrainState, meter: Meter, n_steps: int) -> None:
        """Show the step that was just done, of about `n_steps`."""
        record = meter.record(state)
        text = f"epoch {state.epoch} loss {record['train_loss']:.3f} {record['tokens_per_second']:,.0f} tokens/s"
        self.bar.update(self.task, completed=state.step, total=n_steps, description=text)
        if not self.console.is_terminal and time.monotonic() - self.last_line > self.SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.line(f"step {state.step:,} of {n_steps:,} {text}")
