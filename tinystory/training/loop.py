"""Train to the end of a run: step, log, validate, save, and stop at a signal.

Knows the run, its state and its ranks. `step.py` has the mathematics of a step, `opening.py` what comes before the
first one, `display.py` what a person sees. Does not know the command line.
"""

import importlib.util
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

import tinystory
from tinystory.data.batches import BatchPlan, BatchRows, collate, share
from tinystory.data.shards import TokenShards
from tinystory.errors import TinystoryError, UsageError
from tinystory.model.transformer import Transformer
from tinystory.safe.showing import visible
from tinystory.training.config import RunConfig
from tinystory.training.display import Display, Logger, Meter, catch_signals, log_to_tensorboard
from tinystory.training.distributed import Ranks
from tinystory.training.opening import OpenRun, load_state, load_stories, load_teacher, make_model
from tinystory.training.plotting import plot_metrics, read_metrics
from tinystory.training.run import TrainState
from tinystory.training.sampling import sample_stories
from tinystory.training.schedule import learning_rate_scale
from tinystory.training.step import averaged, backward, evaluate_loss, optimizer_step, update_average

__all__ = ["LoopOptions", "StepReport", "Trainer", "git_commit", "train"]

_PACKAGE = Path(tinystory.__file__).resolve().parent


@dataclass(frozen=True)
class LoopOptions:
    """The options of the loop: when to validate, log and save. They are not stored with the run.

    Attributes:
        every: validate and save after this many steps, and after each epoch; 0 means after each epoch only.
        log_every: steps between log lines.
        keep: how many checkpoints stay, besides the best one.
        tensorboard: write the log records for TensorBoard, too.
    """

    every: int = 0
    log_every: int = 10
    keep: int = 2
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Check the ranges; raise UsageError for a value outside."""
        if self.every < 0 or self.log_every < 1 or self.keep < 1:
            raise UsageError("--every must be at least 0, --log-every and --keep at least 1")


@dataclass(frozen=True)
class StepReport:
    """The figures of one optimizer step, over all ranks.

    Attributes:
        loss: mean loss in nats per token.
        n_tokens: how many tokens were predicted.
        learning_rate: the learning rate of AdamW.
        gradient_norm: the norm of the gradient before clipping.
    """

    loss: float
    n_tokens: int
    learning_rate: float
    gradient_norm: float


@dataclass
class Trainer:
    """A run with all that its steps need.

    Attributes:
        opened: folder, configuration and vocabulary.
        ranks: this process and the others; all of them call the same methods together.
        state: the weights and everything else that changes with a step.
        forward: the model, wrapped for several ranks and compiled if the configuration says so.
        teachers: frozen models to learn from besides the data.
        stories: the training stories.
        valid: the validation stories.
        plan: the training batches.
        valid_plan: the validation batches.
    """

    opened: OpenRun
    ranks: Ranks
    state: TrainState
    forward: Any
    teachers: Sequence[Transformer]
    stories: TokenShards
    valid: TokenShards
    plan: BatchPlan
    valid_plan: BatchPlan

    @cached_property
    def n_steps(self) -> int:
        """The optimizer steps of the whole run, if no time limit ends it earlier."""
        hyper = self.opened.config.training
        return hyper.steps or hyper.epochs * len(self.plan.epoch(0))

    def progress(self) -> float:
        """Return how much of the run is done, from 0 to 1, by steps or by time, whichever is more.

        It is the same on all ranks.
        """
        by_steps, max_minutes = self.state.step / self.n_steps, self.opened.config.training.max_minutes
        if not max_minutes:
            return min(1.0, by_steps)
        by_time = self.state.seconds / 60 / max_minutes
        return min(1.0, self.ranks.largest(int(1e6 * max(by_steps, by_time))) / 1e6)

    def step(self, epoch: int, batch: int, rows: BatchRows) -> StepReport:
        """Learn from one global batch.

        Args:
            epoch: passes over the data that are done after this batch.
            batch: batches of that epoch that are done after this batch.
            rows: the rows of the batch, over all ranks.

        Raises:
            TinystoryError: the loss or the gradient is not finite; the weights are unchanged.
        """
        hyper, state = self.opened.config.training, self.state
        state.epoch, state.batch = epoch, batch
        n_tokens = self.plan.count(rows)
        loss = self._backward(rows, n_tokens)
        scale = learning_rate_scale(self.progress(), hyper.schedule, warmup=hyper.warmup, decay=hyper.decay)
        norm = optimizer_step(state.model, state.optimizers, scale, hyper)
        state.step += 1
        state.n_tokens += n_tokens
        if state.average:
            update_average(state.average, state.model, hyper.ema, state.step)
        return StepReport(loss, n_tokens, hyper.lr * scale, norm)

    def _backward(self, rows: BatchRows, n_tokens: int) -> float:
        """Add up the gradients of a batch; return its mean loss in nats per token, over all ranks."""
        hyper, ranks, state = self.opened.config.training, self.ranks, self.state
        own_rows = share(rows, ranks.rank, ranks.size)
        parts = [own_rows[i : i + hyper.micro_rows] for i in range(0, len(own_rows), hyper.micro_rows)]
        # The last batch of an epoch may leave a rank without rows; it takes part with one position of padding.
        micro_batches = [self.plan.collate(part) for part in parts] or [collate(self.plan.pieces, [[]], 1)]
        loss = float(ranks.sum(backward(self.forward, micro_batches, n_tokens, hyper, ranks, self.teachers)))
        if not math.isfinite(loss):
            raise TinystoryError(
                f"the loss is {loss} in step {state.step + 1}; its batch ends at batch {state.batch} of epoch "
                f"{state.epoch} and has the pieces {str(rows)[:300]}"
            )
        return loss

    def validate(self) -> dict[str, Any]:
        """Return a log record of loss (nats per token), perplexity, bits per byte and accuracy (0 to 1)."""
        ranks, state = self.ranks, self.state
        shares = (share(batch, ranks.rank, ranks.size) for batch in self.valid_plan.epoch())
        with averaged(state.model, state.average):
            batches = (self.valid_plan.collate(rows) for rows in shares if rows)
            losses = evaluate_loss(state.model, batches, self.opened.config.training, ranks)
        return {
            "step": state.step,
            "epoch": state.epoch,
            "tokens": state.n_tokens,
            "seconds": round(state.seconds, 3),
            "valid_loss": losses.loss,
            "valid_perplexity": losses.perplexity,
            "valid_bits_per_byte": losses.loss * losses.n_tokens / math.log(2) / self.valid.n_bytes,
            "valid_accuracy": losses.accuracy,
        }

    def save(self, validation: Mapping[str, Any], keep: int) -> bool:
        """Save a checkpoint with the record of its validation; return whether it is the best so far.

        Args:
            validation: what `validate` has returned.
            keep: how many checkpoints stay, besides the best one.

        Raises:
            TinystoryError: the checkpoint cannot be written; earlier ones are untouched.
        """
        state = self.state
        best: bool = validation["valid_loss"] < state.best_loss
        state.best_loss = min(state.best_loss, validation["valid_loss"])
        origin = provenance(self.opened.config, state, validation)
        self.opened.run.save(state, self.opened.tokenizer, origin, best=best, keep=keep)
        return best

    def write_samples(self) -> dict[str, str]:
        """Write one story with each sample decoder to the run's `samples.txt`; return them: spec -> text."""
        state = self.state
        with averaged(state.model, state.average):
            stories = sample_stories(state.model, self.opened.tokenizer)
        text = "".join(f"== step {state.step}, {spec}\n{story}\n\n" for spec, story in stories.items())
        self.opened.run.keep_samples(text)
        return stories

    def draw_metrics(self) -> None:
        """Draw the log of the run as `metrics.png` and `metrics.svg`, if matplotlib is installed."""
        folder = self.opened.run.folder
        if _has_matplotlib():
            records = read_metrics(folder / "metrics.jsonl")
            for suffix in ("png", "svg"):
                plot_metrics(records, folder / f"metrics.{suffix}")


def train(opened: OpenRun, options: LoopOptions, ranks: Ranks) -> int:
    """Train to the end of a run, or until SIGINT or SIGTERM, after which the run is saved.

    Returns:
        The exit code: 0, or 128 plus the number of the signal.

    Raises:
        TinystoryError: the loss is not finite, or a file cannot be written.
    """
    trainer = make_trainer(opened, ranks)
    signals = catch_signals()
    loggers = make_loggers(opened, options, ranks)
    with Display(ranks, trainer.n_steps) as display:
        display.line(
            f"{trainer.state.model.config.n_parameters:,} parameters, {len(trainer.stories):,} stories to learn "
            f"from, {len(trainer.valid):,} to validate with, step {trainer.state.step:,} of "
            f"{trainer.n_steps:,}"
        )
        if not _has_matplotlib():
            display.line("matplotlib is not installed, so no plots: pip install 'tinystory[train]'")
        if trainer.progress() >= 1:
            display.line("this run is complete; to go on, give more --steps, --epochs or --max-minutes")
            return 0
        return _loop(trainer, options, display, loggers, lambda: signals[0] if signals else 0)


def make_trainer(opened: OpenRun, ranks: Ranks) -> Trainer:
    """Load stories, model, teachers and state, and plan the batches."""
    stories, valid = load_stories(opened, ranks, lambda line: sys.stderr.write(f"{line}\n"))
    hyper, row_len, batching = opened.config.training, opened.config.model.max_seq_len, opened.config.data.batching
    model = make_model(opened, ranks)
    teachers = [load_teacher(name, opened, ranks) for name in hyper.teachers]
    state = load_state(model, opened, ranks)
    forward: Any = DistributedDataParallel(model) if ranks.size > 1 else model
    return Trainer(
        opened=opened,
        ranks=ranks,
        state=state,
        forward=torch.compile(forward) if hyper.compile else forward,
        teachers=teachers,
        stories=stories,
        valid=valid,
        plan=BatchPlan(stories, row_len, hyper.rows, batching=batching, seed=hyper.seed),
        valid_plan=BatchPlan(valid, row_len, hyper.micro_rows, batching=batching),
    )


def make_loggers(opened: OpenRun, options: LoopOptions, ranks: Ranks) -> list[Logger]:
    """Return the functions that get every log record; only the first rank has any."""
    if not ranks.first:
        return []
    loggers: list[Logger] = [opened.run.log]
    if options.tensorboard:
        loggers.append(log_to_tensorboard(opened.run.folder / "tensorboard"))
    return loggers


def _loop(
    trainer: Trainer, options: LoopOptions, display: Display, loggers: Sequence[Logger], signal: Callable[[], int]
) -> int:
    """Step until the run is complete or `signal` returns a number above 0; return the exit code."""
    state, ranks, meter, clock = trainer.state, trainer.ranks, Meter(), time.monotonic()
    for epoch, batch, rows in trainer.plan.ahead(state.epoch, state.batch):
        report = trainer.step(epoch, batch, rows)
        now = time.monotonic()
        state.seconds, clock = state.seconds + now - clock, now
        meter.add(report.loss, report.n_tokens)
        display.step(state, meter)
        if state.step % options.log_every == 0 and ranks.first:
            _log(loggers, meter.record(state) | {"lr": report.learning_rate, "grad_norm": report.gradient_norm})
            meter = Meter()
        stop = ranks.largest(signal())
        done = trainer.progress() >= 1
        if done or stop or batch == 0 or (options.every and state.step % options.every == 0):
            _validate_and_save(trainer, options, display, loggers)
            clock = time.monotonic()
        if done or stop:
            return 128 + stop if stop else 0
    raise UsageError("there is no story to learn from")


def _validate_and_save(trainer: Trainer, options: LoopOptions, display: Display, loggers: Sequence[Logger]) -> None:
    """Validate on all ranks; then the first rank saves a checkpoint, logs, writes samples and draws."""
    validation = trainer.validate()
    if trainer.ranks.first:
        best = trainer.save(validation, options.keep)
        _log(loggers, validation)
        stories = trainer.write_samples()
        trainer.draw_metrics()
        display.line(_validation_line(trainer.state, validation, stories, best))


def _log(loggers: Sequence[Logger], record: Mapping[str, Any]) -> None:
    for log in loggers:
        log(record)


def _validation_line(state: TrainState, validation: Mapping[str, Any], stories: Mapping[str, str], best: bool) -> str:
    samples = "".join(f"\n  {spec}: {visible(' '.join(text.split()))}" for spec, text in stories.items())
    return (
        f"step {state.step:,}, epoch {state.epoch}, {state.n_tokens:,} tokens, {state.seconds / 60:.1f} min: "
        f"valid {validation['valid_loss']:.4f} nats/token, perplexity {validation['valid_perplexity']:.2f}, "
        f"{validation['valid_bits_per_byte']:.4f} bits/byte, accuracy {validation['valid_accuracy']:.1%}"
        f"{' (best)' if best else ''}{samples}"
    )


def _has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def provenance(config: RunConfig, state: TrainState, validation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a checkpoint's `tinystory.json`. For data files it has only the names, not the folders."""
    stored = config.to_json()
    stored["data"] |= {name: [Path(source).name for source in stored["data"][name]] for name in ("data", "valid")}
    return dict(validation) | {
        "seconds": round(state.seconds),
        "run": stored,
        "git_commit": git_commit(),
        "versions": {"tinystory": tinystory.__version__, "torch": torch.__version__},
    }


def git_commit(package: Path = _PACKAGE) -> str | None:
    """Return the commit of the checkout that a package is in, or None if it is in none, or git is not installed.

    A package that is installed below the repository of another project is not in a checkout of its own.
    """
    command = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    try:
        result = subprocess.run(command, cwd=package.parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    if result.returncode:  # no repository, or no commit yet
        return None
    top, commit = result.stdout.splitlines()
    return commit if Path(top).resolve() == package.parent.resolve() else None
