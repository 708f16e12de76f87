"""The part `train`: scored tokens per second of our training steps, compared with a plain `Trainer` of transformers.

Both sides have the same architecture, weights, stories, rows and AdamW. A row is one story, padded to the longest one
of its batch. The time is from the end of the second step to the end of the last one. It includes the whole step:
reading, collating, forward, backward, clipping, optimizer. The Trainer gets batches without an attention mask, because
a mask would make it slower. It needs none: padding is on the right, and causal attention does not see it. The rows of
the Trainer are one position longer, because it also feeds the last token of a story. For that reason rows are cut to
one token less than the context.

Packed rows and bfloat16, which only our loop has, are compared with the same Trainer.
"""

import dataclasses
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.pairs import Clock, Measurement, TimedRun, rates, run_pairs
from bench.shapes import random_model
from bench.subject import Subject
from tinystory.errors import TinystoryError
from tinystory.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.data.batches import Batching, BatchPlan, BatchRows
    from tinystory.training.step import TrainConfig

__all__ = ["measure_training"]

N_WARM = 2
"""Steps before the clock starts, in which memory is allocated and the state of the optimizer is made."""

N_STORIES = 512
SEED = 7
TOLERANCE = 1e-3
"""The largest difference of the losses of both sides after the same steps, in nats per token."""

Weights = dict[str, "Tensor"]


def measure_training(subject: Subject) -> list[Measurement]:
    """Measure the scored tokens per second of both sides. The subject gets the difference of their losses.

    Raises:
        TinystoryError: the two sides did not do the same work.
    """
    if not importlib.util.find_spec("accelerate"):
        print("bench: training is skipped, the Trainer of transformers needs: pip install accelerate", file=sys.stderr)
        return []
    import torch

    from tinystory.training.step import TrainConfig

    settings, config = subject.settings, subject.config
    torch.set_num_threads(settings.threads)
    stories = _read(settings.data, subject.directory) if settings.data else _random_stories(config)
    # Both sides use AdamW only, with the defaults of the Trainer where it has some.
    hyper = TrainConfig(rows=settings.rows, micro_rows=settings.rows, lr=3e-4, muon_lr=0.0, weight_decay=0.0, seed=SEED)
    # The weights are random, as at the start of a run.
    weights = {name: parameter.detach() for name, parameter in random_model(config).named_parameters()}
    ours = partial(_our_training, config, weights, stories, hyper, settings.steps)
    theirs = partial(_their_training, config, weights, stories, hyper, settings.steps)
    warm = ours("padded"), theirs()
    subject.checks["training_loss_difference"] = apart = abs(warm[0].loss - warm[1].loss)
    if not apart < TOLERANCE or warm[0].n_tokens != warm[1].n_tokens:
        raise TinystoryError(
            f"the two sides trained differently: mean losses {warm[0].loss:.5f} and {warm[1].loss:.5f}, "
            f"{warm[0].n_tokens} and {warm[1].n_tokens} tokens"
        )
    rows: dict[str, Callable[[], TimedRun]] = {
        "training": lambda: ours("padded"),
        "training packed (theirs padded)": lambda: ours("packed"),
        "training packed, bf16 (theirs padded, float32)": lambda: ours("packed", bf16=True),
    }
    measurements: list[Measurement] = []
    for what, train in rows.items():
        measured = rates("train", what, "transformers")
        run_pairs(what, settings.pairs, measured, train, theirs)
        measurements += measured
    return measurements


def _read(sources: Sequence[str], directory: Path) -> list[np.ndarray]:
    """Return the first `N_STORIES` stories of some sources, as token ids."""
    from tinystory.checkpoint.tokenizers import find_tokenizer
    from tinystory.data.prepare import tokenize
    from tinystory.data.sources import read_stories

    return tokenize(list(islice(read_stories(sources), N_STORIES)), find_tokenizer(str(directory)))


def _random_stories(config: ModelConfig) -> list[np.ndarray]:
    """Return random tokens in stories as long as those of TinyStories. Speed depends on lengths, not on words."""
    generator = np.random.default_rng(SEED)
    lengths = np.clip(generator.lognormal(5.3, 0.45, N_STORIES), 32, config.max_seq_len + 1).astype(int)
    return [generator.integers(config.vocab_size, size=length) for length in lengths]


def _full_batches(plan: "BatchPlan", n_rows: int, n: int) -> list["BatchRows"]:
    """Return the first full batches of a plan. The last batch of an epoch may be short, and is left out."""
    return list(islice((rows for _, _, rows in plan.ahead() if len(rows) == n_rows), n))


def _our_training(
    config: ModelConfig,
    weights: Weights,
    stories: list[np.ndarray],
    hyper: "TrainConfig",
    n_steps: int,
    batching: "Batching",
    bf16: bool = False,
) -> TimedRun:
    """Train some steps with the functions of `training/step.py`, which the training loop calls, too."""
    import torch

    from tinystory.data.batches import BatchPlan
    from tinystory.model.transformer import Transformer
    from tinystory.training.distributed import Ranks
    from tinystory.training.step import backward, make_optimizers, optimizer_step

    hyper = dataclasses.replace(hyper, bf16=bf16)
    model = Transformer(config)
    model.load_state_dict(weights, strict=False)  # a tied head shares the weights of the embedding
    optimizers, ranks = make_optimizers(model, hyper), Ranks(0, 1, torch.device("cpu"))
    plan = BatchPlan(stories, config.max_seq_len - 1, hyper.rows, batching=batching, seed=hyper.seed)
    batches = _full_batches(plan, hyper.rows, N_WARM + n_steps)
    clock, n_tokens, loss = Clock(), 0, 0.0
    for step, rows in enumerate(batches):
        if step == N_WARM:
            clock, n_tokens = Clock(), 0
        n_tokens += (n_of_batch := plan.count(rows))
        loss += float(backward(model, [plan.collate(rows)], n_of_batch, hyper, ranks))
        optimizer_step(model, optimizers, 1.0, hyper)
    return TimedRun([], *clock.read(), n_tokens=n_tokens, loss=loss / len(batches))


def _their_model(config: ModelConfig, weights: Weights) -> Any:
    """Return a model of transformers with our architecture and weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tinystory.checkpoint.hf_layout import pack, tensor_layout, to_hf_config

    build: Any = AutoModelForCausalLM.from_config
    model = build(AutoConfig.for_model(**to_hf_config(config, "float32", None, ())), dtype=torch.float32)
    model.load_state_dict({tensor.name: pack(tensor, weights) for tensor in tensor_layout(config)}, strict=False)
    return model


def _their_training(
    config: ModelConfig, weights: Weights, stories: list[np.ndarray], hyper: "TrainConfig", n_steps: int
) -> TimedRun:
    """Train the same steps with the `Trainer` of transformers: the same rows in the same order and padding."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from tinystory.data.batches import BatchPlan
    from tinystory.model.cross_entropy import IGNORE

    model = _their_model(config, weights)
    plan = BatchPlan(stories, config.max_seq_len - 1, hyper.rows, batching="padded", seed=hyper.seed)
    batches = _full_batches(plan, hyper.rows, N_WARM + n_steps)
    pieces = [torch.from_numpy(plan.pieces[row[0]].astype(np.int64)) for rows in batches for row in rows]

    def collate(rows: list["Tensor"]) -> dict[str, "Tensor"]:
        padded = partial(torch.nn.utils.rnn.pad_sequence, rows, batch_first=True)
        labels = padded(padding_value=IGNORE)
        labels[:, 0] = IGNORE  # it is never predicted, but for some models the Trainer would count it in its mean
        return {"input_ids": padded(), "labels": labels}

    class Timer(TrainerCallback):
        """Starts a clock after the first steps, and reads it after the last one."""

        clock = Clock()
        took = (0.0, 0.0)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == N_WARM:
                self.clock = Clock()
            elif state.global_step == len(batches):
                self.took = self.clock.read()

    timer = Timer()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=hyper.rows,
            max_steps=len(batches),
            train_sampling_strategy="sequential",
            learning_rate=hyper.lr,
            lr_scheduler_type="constant",
            weight_decay=hyper.weight_decay,
            adam_beta2=0.95,
            max_grad_norm=hyper.clip,
            seed=hyper.seed,
            save_strategy="no",
            logging_steps=len(batches),
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        trainer = Trainer(model, settings, data_collator=collate, train_dataset=pieces, callbacks=[timer])
        trainer.remove_callback(PrinterCallback)
        loss = trainer.train().training_loss
    n_tokens = sum(plan.count(rows) for rows in batches[N_WARM:])
    return TimedRun([], *timer.took, n_tokens=n_tokens, loss=loss)
