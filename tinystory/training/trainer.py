"""Train a run step by step: learn from a batch, validate, save, write samples, draw.

Knows the run, its state and its ranks. `step.py` has the mathematics of a step, `opening.py` what comes before the
first one, `loop.py` the order in which these things happen. Does not know a terminal or the command line.
"""

import copy
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinystory.data.batches import Batch, BatchPlan, BatchRows, collate, share
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import TinystoryError, one_line
from tinystory.model.transformer import Transformer
from tinystory.session.native import NativeSession
from tinystory.text.tokenizer import Tokenizer
from tinystory.training.display import Signals
from tinystory.training.distributed import Ranks
from tinystory.training.opening import OpenRun
from tinystory.training.plotting import plot_metrics, read_metrics
from tinystory.training.run import provenance
from tinystory.training.state import TrainState
from tinystory.training.step import (
    averaged,
    backward,
    evaluate_loss,
    learning_rate_scale,
    optimizer_step,
    update_average,
)  # fmt: skip
from tinystory.training.stories import RunStories
from tinystory.writing.generate import Ended, StoryRequest, write

__all__ = ["SPECS", "StepReport", "Trainer", "has_matplotlib", "sample_stories"]

SEED, MAX_TOKENS = 7, 200
SPECS = ("greedy", "top-k 40 | sample 0.8")


@dataclass(frozen=True)
class StepReport:
    """The figures of one optimizer step, over all ranks.

    Attributes:
        loss: mean loss in nats per token.
        n_tokens: how many tokens were predicted.
        learning_rates: the learning rate of each optimizer: `lr` of AdamW, and `muon_lr` of Muon if there is one.
        gradient_norm: the norm of the gradient before clipping.
    """

    loss: float
    n_tokens: int
    learning_rates: Mapping[str, float]
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
        stories: the stories.
        plan: the training batches.
        valid_plan: the validation batches; None for a run without validation.
        sample_plan: some of the training stories, a third as many as are validated; their accuracy is measured, too.
        n_unknown: how many tokens of the validation stories stand for text that the vocabulary cannot spell.
    """

    opened: OpenRun
    ranks: Ranks
    state: TrainState
    forward: Any
    teachers: Sequence[Transformer]
    stories: RunStories
    plan: BatchPlan
    valid_plan: BatchPlan | None
    sample_plan: BatchPlan
    n_unknown: int

    def expected_steps(self) -> int:
        """Return about how many optimizer steps the whole run has; in its last epoch, exactly.

        Epochs differ by a few steps, and a time limit ends a run when it does.
        """
        hyper, state = self.opened.config.training, self.state
        n_steps = hyper.steps
        if not n_steps:
            left = hyper.epochs - state.epoch
            n_steps = state.step + (left * len(self.plan.epoch(state.epoch)) - state.batch if left > 0 else 0)
        by_time = state.seconds / 60 / hyper.max_minutes if hyper.max_minutes else 0.0
        return max(state.step, min(n_steps, round(state.step / by_time))) if by_time else n_steps

    def progress(self) -> float:
        """Return how much of the run is done, from 0 to 1, by steps or epochs or by time, whichever is more.

        It is the same on all ranks.
        """
        hyper, state = self.opened.config.training, self.state
        if hyper.steps:
            by_data = state.step / hyper.steps
        else:
            of_epoch = state.batch / len(self.plan.epoch(state.epoch)) if state.batch else 0.0
            by_data = (state.epoch + of_epoch) / hyper.epochs
        if not hyper.max_minutes:
            return min(1.0, by_data)
        by_time = state.seconds / 60 / hyper.max_minutes
        return min(1.0, self.ranks.largest(int(1e6 * max(by_data, by_time))) / 1e6)

    def step(self, epoch: int, batch: int, rows: BatchRows) -> StepReport:
        """Learn from one global batch.

        Args:
            epoch: passes over the data that are done after this batch.
            batch: batches of that epoch that are done after this batch.
            rows: the rows of the batch, over all ranks.

        Raises:
            TinystoryError: the loss or the gradient is not finite, or torch.compile fails; the weights are unchanged.
        """
        hyper, state = self.opened.config.training, self.state
        state.epoch, state.batch = epoch, batch
        n_tokens = self.plan.count(rows)
        loss = self._backward(rows, n_tokens)
        scale = learning_rate_scale(self.progress(), hyper.schedule, warmup=hyper.warmup, decay=hyper.decay)
        try:
            norm = optimizer_step(state.model, state.optimizers, scale, hyper)
        except TinystoryError as error:
            raise TinystoryError(f"{error}\n{self._place(rows)}") from error
        state.step += 1
        state.n_tokens += n_tokens
        if state.average:
            update_average(state.average, state.model, hyper.ema, state.step)
        rates = {"lr": hyper.lr * scale} | ({"muon_lr": hyper.muon_lr * scale} if "muon" in state.optimizers else {})
        return StepReport(loss, n_tokens, rates, norm)

    def _backward(self, rows: BatchRows, n_tokens: int) -> float:
        """Add up the gradients of a batch; return its mean loss in nats per token, over all ranks."""
        hyper, ranks = self.opened.config.training, self.ranks
        own_rows = share(rows, ranks.rank, ranks.size)
        parts = [own_rows[i : i + hyper.micro_rows] for i in range(0, len(own_rows), hyper.micro_rows)]
        # The last batch of an epoch may leave a rank without rows; it takes part with one position of padding.
        micro_batches = [self.plan.collate(part) for part in parts] or [collate(self.plan.pieces, [[]], 1)]
        try:
            loss = float(ranks.sum(backward(self.forward, micro_batches, n_tokens, hyper, ranks, self.teachers)))
        except Exception as error:  # the compilers of torch raise errors of many kinds
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = one_line(error).partition(" Set TORCH")[0]
                raise TinystoryError(
                    f"--compile does not work here: {reason}\ninstall a C++ compiler (g++ or clang), or "
                    "leave --compile out"
                ) from error
            raise
        if not math.isfinite(loss):
            raise TinystoryError(f"the loss is {loss}; try a smaller --lr and --muon-lr\n{self._place(rows)}")
        return loss

    def _place(self, rows: BatchRows) -> str:
        """Return in words which step has just failed, and with which stories."""
        return (
            f"this was step {self.state.step + 1}; its batch ends at batch {self.state.batch} of epoch "
            f"{self.state.epoch} and has the pieces {str(rows)[:300]}"
        )

    def counts(self) -> dict[str, Any]:
        """Return the beginning of a log record: step, epoch, predicted tokens, seconds spent on steps."""
        state = self.state
        seconds = round(state.seconds, 3)
        return {"step": state.step, "epoch": state.epoch, "tokens": state.n_tokens, "seconds": seconds}

    def validate(self, signals: Signals | None = None) -> dict[str, Any] | None:
        """Return a log record of loss (nats per token), perplexity, bits per byte and accuracy (0 to 1).

        Bits per byte are left out if a token stands for text that the vocabulary cannot spell. All ranks call this.

        Returns:
            The record; None if the run has no validation, or `signals` asked to stop before the end.
        """
        if self.valid_plan is None:
            return None
        state, hyper = self.state, self.opened.config.training
        with suppress(_Stopped), averaged(state.model, state.average):
            losses = evaluate_loss(state.model, self._own_batches(self.valid_plan, signals), hyper, self.ranks)
            sample = evaluate_loss(state.model, self._own_batches(self.sample_plan, signals), hyper, self.ranks)
            assert self.stories.valid is not None
            bits = losses.loss * losses.n_tokens / math.log(2)
            return {
                **self.counts(),
                "valid_loss": losses.loss,
                "valid_perplexity": losses.perplexity,
                **({} if self.n_unknown else {"valid_bits_per_byte": bits / self.stories.valid.n_bytes}),
                "valid_accuracy": losses.accuracy,
                "train_accuracy": sample.accuracy,
            }
        return None

    def _own_batches(self, plan: BatchPlan, signals: Signals | None) -> Iterator[Batch]:
        """Yield the share of this rank in all batches; raise _Stopped on all ranks if a signal asks one to stop."""
        for batch in plan.epoch():
            if signals and self.ranks.largest(signals.wish()) >= signals.STOP:
                raise _Stopped
            if rows := share(batch, self.ranks.rank, self.ranks.size):
                yield plan.collate(rows)

    def save(self) -> Path:
        """Save a checkpoint, which is not validated yet; return its folder.

        Raises:
            TinystoryError: the checkpoint cannot be written; earlier ones are untouched.
        """
        origin = provenance(self.opened.config, self.counts())
        return self.opened.run.save(self.state, self.opened.tokenizer, origin, keep=self.opened.config.loop.keep)

    def add_validation(self, directory: Path, validation: Mapping[str, Any]) -> bool:
        """Add a validation to the checkpoint that `save` has just made; return whether it is the best so far.

        Raises:
            TinystoryError: the files cannot be written.
        """
        best: bool = validation["valid_loss"] < self.state.best_loss
        self.state.stale = 0 if best else self.state.stale + 1
        self.state.best_loss = min(self.state.best_loss, validation["valid_loss"])
        origin, keep = provenance(self.opened.config, validation), self.opened.config.loop.keep
        self.opened.run.add_validation(directory, self.state, origin, best=best, keep=keep)
        return best

    def out_of_patience(self) -> bool:
        """Return whether too many validations have followed the best one; it is the same on all ranks."""
        patience = self.opened.config.loop.patience
        return bool(self.ranks.largest(int(0 < patience <= self.state.stale)))

    def write_samples(self) -> dict[str, str]:
        """Write stories for all sample prompts and decoders to the run's `samples.txt`, and return them by title."""
        state = self.state
        with averaged(state.model, state.average):
            prompts = self.opened.config.loop.sample_prompt
            stories = sample_stories(state.model, self.opened.tokenizer, prompts)
        self.opened.run.keep_samples(state.step, stories)
        return stories

    def draw_metrics(self) -> None:
        """Draw the log of the run as `metrics.png` and `metrics.svg`, if matplotlib is installed."""
        folder = self.opened.run.folder
        if has_matplotlib():
            records = read_metrics(folder / "metrics.jsonl")
            for suffix in ("png", "svg"):
                plot_metrics(records, folder / f"metrics.{suffix}")


class _Stopped(Exception):
    """A signal asked to stop during a validation."""


def sample_stories(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str]) -> dict[str, str]:
    """Write a story for each prompt with each of `SPECS`, always with the same seed; the model is not changed.

    Returns:
        The stories by title, which is the spec; if there are several prompts, the prompt follows.
    """
    registry = discover(user_folder=None)
    # A session joins the matrices that it gets, but the optimizer needs its own; so the session gets a copy.
    session = NativeSession(copy.deepcopy(model).eval(), tokenizer.bos_id, tokenizer.eos_ids)
    n = min(MAX_TOKENS, session.max_seq_len - 1)
    titles = {
        (f"{spec}, {prompt!r}" if len(prompts) > 1 else spec): StoryRequest(
            prompt, parse_spec(spec, registry), seed=SEED, max_new_tokens=n
        )
        for prompt in dict.fromkeys(prompts)
        for spec in SPECS
    }
    ended = {event.story: event for event in write(session, tokenizer, [*titles.values()]) if isinstance(event, Ended)}
    return {title: ended[number].result.text for number, title in enumerate(titles)}


def has_matplotlib() -> bool:
    """Return whether plots can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None
