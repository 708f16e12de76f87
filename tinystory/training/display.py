"""Show a training run on the terminal, send its log records to other programs, and note signals to save or to stop.

Knows the state of a run. Does not know how a step is computed.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tinystory.errors import UnreadableFile, UsageError, one_line
from tinystory.model.config import ModelConfig
from tinystory.safe.reading import read_json_object
from tinystory.safe.writing import write_atomically
from tinystory.screen.console import console
from tinystory.training.distributed import Ranks
from tinystory.training.state import TrainState

__all__ = ["Display", "Logger", "Meter", "Signals", "flops_per_token", "log_to_tensorboard", "log_to_wandb"]

Logger = Callable[[Mapping[str, Any]], None]
"""Takes one log record: names -> numbers, among them `step`."""


class Signals:
    """Notes signals in its `with` block, instead of ending the process: the loop looks here after every step.

    SIGINT, SIGTERM, SIGQUIT and SIGHUP ask to save and stop, and SIGUSR1 to save and go on. A SIGHUP that is ignored
    from the beginning (nohup) stays ignored. Only the main thread of Python may note signals; elsewhere there are none.
    """

    STOP = 128
    """The smallest `wish` that asks to stop."""

    def __init__(self) -> None:
        self._stop, self._save = 0, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1"):
            number = getattr(signal, name, None)  # Windows lacks three of them
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


def log_to_wandb(folder: Path, config: Mapping[str, Any], tell: Callable[[str], object], at_end: ExitStack) -> Logger:
    """Return a function that writes log records to Weights & Biases, through its own client.

    A run that goes on continues the same run there; its id is in RUN/wandb.json. A failure of the client is told once
    and ends the logging, not the run. `at_end` is closed at the end of the run, and ends the run there.

    Raises:
        UsageError: the client is not installed, or it refuses to begin.
    """
    try:
        import wandb
    except ImportError as error:
        raise UsageError("--logger wandb needs its client: pip install 'tinystory[wandb]'") from error
    try:
        known = str(read_json_object(folder / "wandb.json")["id"])
    except (UnreadableFile, KeyError):
        known = None
    try:
        options = {"dir": str(folder), "name": folder.name, "config": dict(config), "id": known, "resume": "allow"}
        there: Any = wandb.init(project="tinystory", **options)
    except Exception as error:  # the client raises errors of many kinds
        raise UsageError(f"--logger wandb: {one_line(error)}\nWANDB_MODE=offline needs no account") from error
    write_atomically(folder / "wandb.json", (json.dumps({"id": there.id}) + "\n").encode())
    works = True

    def finish() -> None:
        try:
            there.finish()
        except Exception as error:
            tell(f"wandb has failed at the end: {one_line(error)}")

    at_end.callback(finish)

    def log(record: Mapping[str, Any]) -> None:
        nonlocal works
        if works:
            try:
                there.log(dict(record), step=record["step"])
            except Exception as error:
                works = False
                tell(f"wandb has failed and gets nothing more: {one_line(error)}")

    return log


def flops_per_token(config: ModelConfig, row_len: int) -> float:
    """Return the floating-point operations of one training step for each token, as the paper of PaLM counts them.

    That is 6 N + 12 L C T: N weights without embeddings that are only looked up, L blocks, C = n_head · d_head, and T
    positions in a row (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
    """
    looked_up = 0 if config.tied_head else config.vocab_size * config.d_model
    if config.family == "gpt2":
        looked_up += config.max_seq_len * config.d_model
    return 6.0 * (config.n_parameters - looked_up) + 12.0 * config.n_layer * config.n_head * config.d_head * row_len


class Meter:
    """The mean loss and the speed of the steps since the last log line, without the time to validate and save.

    Args:
        flops_per_token: the floating-point operations of a step for each token, over the peak of the processor a
            second; 0 if the peak is unknown.
    """

    def __init__(self, flops_per_token: float = 0.0, peak_flops: float = 0.0) -> None:
        self.nats, self.n_tokens, self.seconds = 0.0, 0, 0.0
        self._of_peak = flops_per_token / peak_flops if peak_flops else 0.0

    def add(self, loss: float, n_tokens: int, seconds: float) -> None:
        """Add a step: its mean loss in nats per token, how many tokens it predicted, and how long it took."""
        self.nats, self.n_tokens = self.nats + loss * n_tokens, self.n_tokens + n_tokens
        self.seconds += seconds

    def record(self, state: TrainState) -> dict[str, Any]:
        """Return a log record: loss in nats per token, speed in tokens/s, and the share of the peak, if it is known."""
        speed = self.n_tokens / max(self.seconds, 1e-9)
        return {
            "step": state.step,
            "epoch": state.epoch,
            "tokens": state.n_tokens,
            "seconds": round(state.seconds, 3),
            "train_loss": self.nats / self.n_tokens,
            "tokens_per_second": speed,
        } | ({"mfu": speed * self._of_peak} if self._of_peak else {})


class Display:
    """Progress on the standard error of the first rank: a bar on a terminal, else a line every half minute."""

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self, ranks: Ranks, *, quiet: bool = False) -> None:
        self.console = console(stderr=True)
        self.console.quiet = quiet or not ranks.first
        self._began: tuple[float, int] | None = None
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
        if "mfu" in record:
            text += f" {record['mfu']:.0%} of the peak"
        text += self._end(state.step, n_steps)
        self.bar.update(self.task, completed=state.step, total=n_steps, description=text)
        if not self.console.is_terminal and time.monotonic() - self.last_line > self.SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.line(f"step {state.step:,} of {n_steps:,} {text}")

    def _end(self, step: int, n_steps: int) -> str:
        """Return when the run will end by the clock, validations included; empty before the second step."""
        now = time.time()
        if self._began is None:
            self._began = now, step
        began, first = self._began
        if step == first:
            return ""
        left = (now - began) / (step - first) * (n_steps - step)
        return time.strftime(
            " ends about %H:%M" if left < 20 * 3600 else " ends about %a %H:%M", time.localtime(now + left)
        )
