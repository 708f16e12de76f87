"""Train to the end of a run: step, log, save, validate, and stop at a signal.

Knows the order of these things. `trainer.py` does them, and `display.py` has what a person sees. Does not know the
command line.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from tinystory.checkpoint import read_header
from tinystory.data.batches import BatchPlan
from tinystory.data.shards import TokenShards
from tinystory.errors import UsageError
from tinystory.safe.showing import visible
from tinystory.training.display import Display, Logger, Meter, Signals, log_to_tensorboard
from tinystory.training.distributed import Ranks
from tinystory.training.opening import OpenRun, find_run_stories, load_state, load_teacher, make_model
from tinystory.training.stories import field_text
from tinystory.training.trainer import Trainer, has_matplotlib

__all__ = ["make_trainer", "train"]

_TIMED_VALIDATIONS = 5
"""How often a run validates whose end is a time, unless `every` says it."""


def train(opened: OpenRun, ranks: Ranks) -> int:
    """Train to the end of a run, or until SIGINT, SIGTERM or SIGHUP, after which the run is saved.

    Returns:
        The exit code: 0, or 128 plus the number of the signal.

    Raises:
        TinystoryError: the loss is not finite, or a file cannot be written.
    """
    try:
        trainer = make_trainer(opened, ranks)
        changed = {}
        if ranks.first:
            changed = opened.run.remember(opened.config, trainer.state.step, trainer.stories.hashes)
        with Signals() as signals, Display(ranks) as display:
            for line in _first_lines(trainer, changed):
                display.line(line)
            loop = _Loop(trainer, make_loggers(trainer), signals, display)
            if trainer.progress() >= 1:
                loop.validate_latest()
                display.line("this run is complete; to go on, give more --steps, --epochs or --max-minutes")
                return 0
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


def make_trainer(opened: OpenRun, ranks: Ranks) -> Trainer:
    """Load stories, model, teachers and state, and plan the batches."""
    stories = find_run_stories(opened, ranks, lambda line: sys.stderr.write(f"{line}\n"))
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


def make_loggers(trainer: Trainer) -> list[Logger]:
    """Return the functions that get every log record; only the first rank has any."""
    if not trainer.ranks.first:
        return []
    run = trainer.opened.run
    loggers: list[Logger] = [run.log]
    if trainer.opened.config.loop.tensorboard:
        loggers.append(log_to_tensorboard(run.folder / "tensorboard", trainer.state.step))
    return loggers


@dataclass
class _Loop:
    """The steps of a run until it is complete or a signal stops it."""

    trainer: Trainer
    loggers: Sequence[Logger]
    signals: Signals
    display: Display

    def run(self) -> int:
        """Step, log, save and validate; return the exit code."""
        trainer, ranks, config = self.trainer, self.trainer.ranks, self.trainer.opened.config.loop
        state, meter, progress = trainer.state, Meter(), trainer.progress()
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
            done, stop = progress >= 1, wish >= self.signals.STOP
            if done or stop or state.step % config.log_every == 0:
                self._log(meter.record(state) | dict(report.learning_rates) | {"grad_norm": report.gradient_norm})
                meter = Meter()
            validates = not stop and (done or self._is_time_to_validate(before, progress))
            if wish or validates:
                self._save(validates)
                clock = saved = time.monotonic()
                wish = ranks.largest(self.signals.wish())  # a validation takes long
            if done or wish >= self.signals.STOP:
                return wish if wish >= self.signals.STOP else 0
        raise UsageError("there is no story to learn from")

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
