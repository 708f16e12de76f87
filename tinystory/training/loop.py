"""Train to the end of a run: step, log, save, validate, and stop at a signal. `fit` is the door to training.

Knows the order of these things. `trainer.py` does them, and `display.py` has what a person sees. Does not know the
command line.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from tinystory.checkpoint import read_header
from tinystory.data.batches import BatchPlan
from tinystory.data.shards import TokenShards
from tinystory.errors import UsageError
from tinystory.safe.showing import visible
from tinystory.training.config import RunConfig, resolve_changes, resolve_run
from tinystory.training.display import (
    Display,
    Logger,
    Meter,
    Signals,
    flops_per_token,
    log_to_tensorboard,
    log_to_wandb,
)  # fmt: skip
from tinystory.training.distributed import Ranks, joined
from tinystory.training.opening import (
    OpenRun,
    begin_run,
    find_run_stories,
    load_state,
    load_teacher,
    make_model,
    resume_run,
)  # fmt: skip
from tinystory.training.plotting import read_metrics
from tinystory.training.run import Run
from tinystory.training.stories import field_text
from tinystory.training.trainer import StepReport, Trainer, has_matplotlib

__all__ = ["FinishedRun", "StepRecord", "fit", "make_trainer", "train"]

_TIMED_VALIDATIONS = 5
"""How often a run validates whose end is a time, unless `every` says it."""


@dataclass(frozen=True)
class StepRecord:
    """What `on_step` gets after each step.

    Attributes:
        step: how many steps are done.
        epoch: how many passes over the data are done.
        tokens: how many tokens were predicted in the whole run.
        loss: mean loss of this step in nats per token.
        learning_rates: the rate of each optimizer: `lr`, and `muon_lr` if there is one.
        gradient_norm: the norm of the gradient before clipping.
        tokens_per_second: the speed of this step.
        progress: how much of the run is done, from 0 to 1.
    """

    step: int
    epoch: int
    tokens: int
    loss: float
    learning_rates: Mapping[str, float]
    gradient_norm: float
    tokens_per_second: float
    progress: float


OnStep = Callable[[StepRecord], object]
"""Gets a record after each step; if it returns something true, the run is saved and stops."""


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended or was stopped.

    Attributes:
        folder: its folder. It is a checkpoint itself: `tinystory.load(run.folder)` opens the latest one.
        exit_code: 0, or 128 plus the number of the signal that stopped it.
    """

    folder: Path
    exit_code: int = 0

    @property
    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss; None if there was no validation."""
        name = Run(self.folder).named("best")
        return None if name is None else self.folder / name.name

    @property
    def latest(self) -> Path:
        """The latest checkpoint; raises UsageError if there is none."""
        return Run(self.folder).latest

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of the log, in the order of their steps; docs/training.md describes their fields."""
        return [dict(record) for record in read_metrics(self.folder / "metrics.jsonl")]


def fit(
    config: RunConfig | Mapping[str, Any],
    out: str | Path,
    *,
    resume: bool = False,
    on_step: OnStep | None = None,
    quiet: bool = True,
) -> FinishedRun:
    """Train a model, as `scripts/train.py` does, and return the run.

    Ctrl-C (the stop button of a notebook), SIGTERM, SIGQUIT and SIGHUP finish the step, save the run and end this
    function.

    Examples:
        >>> from tinystory.training import fit
        >>> run = fit({"preset": "tiny", "data": "stories.txt", "steps": 200}, "runs/mine")  # doctest: +SKIP
        >>> run.metrics[-1]["valid_loss"]  # doctest: +SKIP

    Args:
        config: a configuration; or fields by name, as in the TOML file of a run. Among them may be a `preset`, and
            `config`, the path of a TOML file with more fields.
        out: the folder of the run: new or empty, or that of the run to go on with.
        resume: go on with the run in `out`; `config` then has the fields to change, and may be empty.
        on_step: gets a `StepRecord` after each step; if it returns something true, the run is saved and stops. An
            error that it raises ends the run without saving.
        quiet: print nothing.

    Raises:
        UsageError: a field is wrong, or the folder is not fit for the run.
        CheckpointError: a checkpoint is missing or damaged.
        TinystoryError: the loss is not finite, or a file cannot be written.
    """
    folder, changes = Path(out), {}
    fields = dict(config.flat() if isinstance(config, RunConfig) else config)
    preset, file = fields.pop("preset", None), fields.pop("config", None)
    file = None if file is None else Path(file)
    if resume:
        in_force = Run(folder).configuration()[0]
        changes = resolve_changes(in_force, preset, file, fields)
        wanted = in_force.changed(changes)
    else:
        wanted = config if isinstance(config, RunConfig) else resolve_run(preset, file, fields)
    with joined(wanted.loop.device or ("cuda" if torch.cuda.is_available() else "cpu")) as ranks:
        opened = resume_run(folder, changes, ranks) if resume else begin_run(folder, wanted, ranks)
        return FinishedRun(folder, train(opened, ranks, on_step, quiet=quiet))


def train(opened: OpenRun, ranks: Ranks, on_step: OnStep | None = None, *, quiet: bool = False) -> int:
    """Train to the end of a run, or until SIGINT, SIGTERM, SIGQUIT or SIGHUP, after which the run is saved.

    Returns:
        The exit code: 0, or 128 plus the number of the signal.

    Raises:
        TinystoryError: the loss is not finite, or a file cannot be written.
    """
    try:
        trainer = make_trainer(opened, ranks, quiet=quiet)
        changed = {}
        if ranks.first:
            changed = opened.run.remember(opened.config, trainer.state.step, trainer.stories.hashes)
        with ExitStack() as at_end, Signals() as signals, Display(ranks, quiet=quiet) as display:
            for line in _first_lines(trainer, changed):
                display.line(line)
            loop = _Loop(trainer, make_loggers(trainer, display.line, at_end), signals, display, on_step)
            if trainer.progress() >= 1 or trainer.out_of_patience():
                loop.validate_latest()
                more = "--patience" if trainer.progress() < 1 else "--steps, --epochs or --max-minutes"
                display.line(f"this run is complete; to go on, give more {more}")
                return 0
            if loop.missed_validation():
                loop.validate_latest()
            code = loop.run()
            folder = opened.run.folder
            if code:
                display.line(f"saved at step {trainer.state.step:,}; to go on: --resume {folder}")
            else:
                best = opened.run.named("best")
                display.line(f"talk to it: tinystory chat -m {folder / 'best' if best else folder}")
            return code
    finally:
        opened.run.unlock()


def _first_lines(trainer: Trainer, changed: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    """Yield what a person should know before the first step."""
    hyper, state, stories = trainer.opened.config.training, trainer.state, trainer.stories
    n_valid = len(stories.valid) if stories.valid is not None else 0
    yield (
        f"{state.model.config.n_parameters:,} parameters, {len(stories.training):,} stories to learn from, "
        f"{n_valid:,} to validate with, step {state.step:,} of {trainer.expected_steps():,}"
    )
    muon = f", Muon {hyper.muon_lr:g} (--muon-lr, the matrices of the blocks)" if "muon" in state.optimizers else ""
    yield f"peak learning rates: AdamW {hyper.lr:g} (--lr){muon}"
    for name, (old, new) in changed.items():
        yield f"changed from step {state.step:,} on: {name} {field_text(old)} -> {field_text(new)}"
    if trainer.n_unknown:
        yield (
            f"the vocabulary cannot spell all validation stories ({trainer.n_unknown:,} unknown tokens), so their bits "
            "per byte are not measured"
        )
    if not has_matplotlib():
        yield "matplotlib is not installed, so no plots: pip install 'tinystory[train]'"


def make_trainer(opened: OpenRun, ranks: Ranks, *, quiet: bool = False) -> Trainer:
    """Load stories, model, teachers and state, and plan the batches."""

    def tell(line: str) -> None:
        if not quiet:
            sys.stderr.write(f"{line}\n")

    stories = find_run_stories(opened, ranks, tell)
    if opened.config.loop.patience and stories.valid is None:
        raise UsageError("--patience needs validation stories, and this run has none: give --valid or --test-split")
    hyper, row_len, data = opened.config.training, opened.config.model.max_seq_len, opened.config.data
    if stories.valid is not None and data.valid_stories:
        stories = replace(stories, valid=stories.valid.first(data.valid_stories))
    model = make_model(opened, ranks)
    teachers = [load_teacher(name, opened, ranks) for name in hyper.teachers]
    state = load_state(model, opened, ranks)
    forward: Any = DistributedDataParallel(model) if ranks.size > 1 else model

    def plan(part: TokenShards) -> BatchPlan:
        return BatchPlan(part, row_len, hyper.micro_rows, batching=data.batching)

    return Trainer(
        opened=opened,
        ranks=ranks,
        state=state,
        forward=torch.compile(forward) if hyper.compile else forward,
        teachers=teachers,
        stories=stories,
        plan=BatchPlan(stories.training, row_len, hyper.rows, batching=data.batching, seed=hyper.seed),
        valid_plan=plan(stories.valid) if stories.valid is not None else None,
        sample_plan=plan(stories.training.first(-(-len(stories.valid or ()) // 3))),
        n_unknown=opened.tokenizer.n_unknown(stories.valid or ()),
    )


def make_loggers(trainer: Trainer, tell: Callable[[str], object], at_end: ExitStack) -> list[Logger]:
    """Return the functions that get every log record; only the first rank has any.

    Args:
        trainer: the run.
        tell: gets a line about what goes wrong.
        at_end: is closed at the end of the run, and closes the logs.
    """
    if not trainer.ranks.first:
        return []
    run = trainer.opened.run
    loggers: list[Logger] = [run.log]
    if trainer.opened.config.loop.tensorboard:
        loggers.append(log_to_tensorboard(run.folder / "tensorboard", trainer.state.step))
    if trainer.opened.config.loop.logger == "wandb":
        loggers.append(log_to_wandb(run.folder, trainer.opened.config.flat(), tell, at_end))
    return loggers


@dataclass
class _Loop:
    """The steps of a run until it is complete or a signal stops it."""

    trainer: Trainer
    loggers: Sequence[Logger]
    signals: Signals
    display: Display
    on_step: OnStep | None = None

    def run(self) -> int:
        """Step, log, save and validate; return the exit code."""
        trainer, ranks, config = self.trainer, self.trainer.ranks, self.trainer.opened.config.loop
        state, meter, progress = trainer.state, self._meter(), trainer.progress()
        clock = saved = time.monotonic()
        for epoch, batch, rows in trainer.plan.ahead(state.epoch, state.batch):
            report = trainer.step(epoch, batch, rows)
            now = time.monotonic()
            state.seconds, seconds, clock = state.seconds + now - clock, now - clock, now
            meter.add(report.loss, report.n_tokens, seconds)
            self.display.step(state, meter, trainer.expected_steps())
            before, progress = progress, trainer.progress()
            overdue = config.save_minutes and now - saved >= 60 * config.save_minutes
            wish = ranks.largest(max(self.signals.wish(), int(bool(overdue and ranks.first))))
            enough = ranks.largest(int(self._tell_step(report, seconds, progress)))
            done, stop = progress >= 1, bool(enough) or wish >= self.signals.STOP
            if done or stop or state.step % config.log_every == 0:
                self._log(meter.record(state) | dict(report.learning_rates) | {"grad_norm": report.gradient_norm})
                meter = self._meter()
            validates = not stop and (done or self._is_time_to_validate(before, progress))
            if wish or validates or stop:
                self._save(validates)
                saved = time.monotonic()
                wish = ranks.largest(self.signals.wish())  # a validation takes long
            if validates and not done and trainer.out_of_patience():
                self.display.line(f"{state.stale} validations without a better one: the run ends (--patience)")
                done = True
            if done or stop or wish >= self.signals.STOP:
                return wish if wish >= self.signals.STOP else 0
            clock = time.monotonic()  # what `on_step`, the log and the terminal took is no part of the steps
        raise UsageError("there is no story to learn from")

    def _meter(self) -> Meter:
        """Return a meter for the steps up to the next log line."""
        config, model = self.trainer.opened.config, self.trainer.state.model.config
        peak = config.loop.peak_flops * self.trainer.ranks.size
        return Meter(flops_per_token(model, config.model.max_seq_len), peak)

    def _tell_step(self, report: StepReport, seconds: float, progress: float) -> bool:
        """Give a step to `on_step`; return True if the run should stop."""
        if self.on_step is None:
            return False
        state, speed = self.trainer.state, report.n_tokens / max(seconds, 1e-9)
        counts = state.step, state.epoch, state.n_tokens
        rates = report.learning_rates, report.gradient_norm
        return bool(self.on_step(StepRecord(*counts, report.loss, *rates, speed, progress)))

    def missed_validation(self) -> bool:
        """Return whether the run was stopped just where a validation was due, which a signal then prevents."""
        state, every = self.trainer.state, self.trainer.opened.config.loop.every
        return state.step > 0 and (state.batch == 0 or bool(every and state.step % every == 0))

    def validate_latest(self) -> None:
        """Validate the last checkpoint if a signal has prevented that."""
        trainer = self.trainer
        if trainer.valid_plan is not None and "valid_loss" not in read_header(trainer.opened.run.latest).provenance:
            trainer.ranks.wait()  # the first rank is about to replace what the others read
            self._save(validates=True)

    def _is_time_to_validate(self, before: float, progress: float) -> bool:
        """Return whether a step that has led from one progress to another is followed by a validation."""
        state, config = self.trainer.state, self.trainer.opened.config
        if config.loop.every:
            return state.batch == 0 or state.step % config.loop.every == 0
        if config.training.max_minutes:
            return int(_TIMED_VALIDATIONS * progress) > int(_TIMED_VALIDATIONS * before)
        return state.batch == 0

    def _save(self, validates: bool) -> None:
        """Save on the first rank; then, if asked to, validate on all ranks, log, write samples and draw."""
        trainer, first = self.trainer, self.trainer.ranks.first
        directory = trainer.save() if first else None
        self.signals.saved()
        validation = trainer.validate(self.signals) if validates else None
        if directory is None:
            return
        if validation is not None:
            best = trainer.add_validation(directory, validation)
            self._log(validation)
            self.display.line(_validation_line(validation, best))
        elif not self.signals.stops():
            self.display.line(f"step {trainer.state.step:,}: saved")
        if validates and not self.signals.stops():
            for spec, text in trainer.write_samples().items():
                self.display.line(f"  {spec}: {visible(' '.join(text.split()))}")
            trainer.draw_metrics()

    def _log(self, record: Mapping[str, Any]) -> None:
        for log in self.loggers:
            log(record)


def _validation_line(validation: Mapping[str, Any], best: bool) -> str:
    bits = validation.get("valid_bits_per_byte")
    return (
        f"step {validation['step']:,}, epoch {validation['epoch']}, {validation['tokens']:,} tokens, "
        f"{validation['seconds'] / 60:.1f} min: valid {validation['valid_loss']:.4f} nats/token, perplexity "
        f"{validation['valid_perplexity']:.2f}, {f'{bits:.4f} bits/byte, ' if bits is not None else ''}"
        f"accuracy {validation['valid_accuracy']:.1%}{' (best)' if best else ''}"
    )
