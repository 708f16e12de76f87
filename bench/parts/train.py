"""Training speed: our loop beside a plain transformers `Trainer`, same architecture, weights, stories, rows and AdamW.

Both sides see rows of one story, padded to the longest of the batch, and are timed from the end of the second step to
the end of the last, with all that a step takes: reading, collating, forward, backward, clipping, optimizer. The Trainer
gets batches without an attention mask, with which it would be slower: padding stands on the right, so causal attention
never sees it. Its rows are one position longer, because it takes a story's last token as an input too;
so that it can, rows are cut one short of the context.

What our loop does beyond that, packed rows and bfloat16, is set against the same Trainer.
"""

import argparse
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

from bench.pairs import Clock, Measurement, TimedRun, run_pairs
from tinystory.errors import TinystoryError
from tinystory.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.data.batches import Batching, BatchPlan, BatchRows
    from tinystory.training.step import TrainConfig

__all__ = ["measure_training"]

N_WARM = 2
"""Steps before the clock starts: memory is allocated and optimizer state made in them."""

N_STORIES = 512
SEED = 7
TOLERANCE = 1e-3
"""How far the two sides' losses may be apart after the same steps, in nats per token."""

Weights = dict[str, "Tensor"]


def measure_training(
    directory: Path, config: ModelConfig, args: argparse.Namespace, checks: dict[str, Any]
) -> list[Measurement]:
    """Scored tokens per second of both sides; `checks` gets how far their losses are apart.

    Args:
        directory: of the model, which also has the tokenizer.
        config: the model's.
        args: `data`, `rows`, `steps`, `pairs` and `threads` of the command line.
        checks: is added to.

    Raises:
        TinystoryError: the two sides did not do the same work.
    """
    if not importlib.util.find_spec("accelerate"):
        print(
            "bench: training is skipped, transformers' Trainer needs accelerate: pip install accelerate",
            file=sys.stderr,
        )
        return []
    import torch

    from tinystory.training.step import TrainConfig

    torch.set_num_threads(args.threads)
    stories = read(args.data, directory) if args.data else invent(config)
    # Both AdamW alone, with the Trainer's own defaults where it has them.
    hyper = TrainConfig(rows=args.rows, micro_rows=args.rows, lr=3e-4, muon_lr=0.0, weight_decay=0.0, seed=SEED)
    weights = draw(config)
    ours = partial(our_training, config, weights, stories, hyper, args.steps)
    theirs = partial(their_training, config, weights, stories, hyper, args.steps)
    warm = ours("padded"), theirs()
    checks["training_loss_difference"] = apart = abs(warm[0].loss - warm[1].loss)
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
    found: list[Measurement] = []
    for what, train in rows.items():
        measurements = [
            Measurement("train", what, "tokens / CPU s", lambda run: run.n_tokens / run.cpu, more_is_better=True),
            Measurement("train", what, "tokens / s", lambda run: run.n_tokens / run.wall, more_is_better=True),
        ]
        run_pairs(what, args.pairs, measurements, train, theirs)
        found += measurements
    return found


def read(sources: Sequence[str], directory: Path) -> list[np.ndarray]:
    """The first stories of some sources, as token ids."""
    from tinystory.checkpoint.tokenizers import find_tokenizer
    from tinystory.data.prepare import tokenize
    from tinystory.data.sources import read_stories

    return tokenize(list(islice(read_stories(sources), N_STORIES)), find_tokenizer(str(directory)))


def invent(config: ModelConfig) -> list[np.ndarray]:
    """Random tokens with lengths like those of TinyStories: speed depends on lengths, not on words."""
    generator = np.random.default_rng(SEED)
    lengths = np.clip(generator.lognormal(5.3, 0.45, N_STORIES), 32, config.max_seq_len + 1).astype(int)
    return [generator.integers(config.vocab_size, size=length) for length in lengths]


def draw(config: ModelConfig) -> Weights:
    """Weights to start from, by our names.

    They are drawn anew instead of read, as at the start of a run, and none is zero, so that both sides compute with
    ordinary numbers everywhere.
    """
    import torch

    from tinystory.model.transformer import Transformer

    model = Transformer(config)
    model.init_weights(SEED)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def full_batches(plan: "BatchPlan", n_rows: int, n: int) -> list["BatchRows"]:
    """The first batches of a plan but for short ones, with which an epoch may end."""
    return list(islice((rows for _, _, rows in plan.ahead() if len(rows) == n_rows), n))


def our_training(
    config: ModelConfig,
    weights: Weights,
    stories: list[np.ndarray],
    hyper: "TrainConfig",
    n_steps: int,
    batching: "Batching",
    bf16: bool = False,
) -> TimedRun:
    """Some steps as in the loop of `scripts/train.py`."""
    import torch

    from tinystory.data.batches import BatchPlan
    from tinystory.model.transformer import Transformer
    from tinystory.training.distributed import Ranks
    from tinystory.training.step import backward, make_optimizers, optimizer_step

    hyper = dataclasses.replace(hyper, bf16=bf16)
    model = Transformer(config)
    model.load_state_dict(weights, strict=False)  # a tied head has its weights already
    optimizers, ranks = make_optimizers(model, hyper), Ranks(0, 1, torch.device("cpu"))
    plan = BatchPlan(stories, config.max_seq_len - 1, hyper.rows, batching=batching, seed=hyper.seed)
    batches = full_batches(plan, hyper.rows, N_WARM + n_steps)
    clock, n_tokens, loss = Clock(), 0, 0.0
    for step, rows in enumerate(batches):
        if step == N_WARM:
            clock, n_tokens = Clock(), 0
        n_tokens += (n_of_batch := plan.count(rows))
        loss += float(backward(model, [plan.collate(rows)], n_of_batch, hyper, ranks))
        optimizer_step(model, optimizers, 1.0, hyper)
    return TimedRun([], *clock.read(), n_tokens=n_tokens, loss=loss / len(batches))


def their_training(
    config: ModelConfig, weights: Weights, stories: list[np.ndarray], hyper: "TrainConfig", n_steps: int
) -> TimedRun:
    """The same steps by a transformers `Trainer`: same rows in the same order, padded likewise."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from tinystory.checkpoint.hf_layout import pack, tensor_layout, to_hf_config
    from tinystory.data.batches import BatchPlan
    from tinystory.model.cross_entropy import IGNORE

    hf_config = to_hf_config(config, "float32", None, ())
    build: Any = AutoModelForCausalLM.from_config
    model = build(AutoConfig.for_model(**hf_config), dtype=torch.float32)
    model.load_state_dict({tensor.name: pack(tensor, weights) for tensor in tensor_layout(config)}, strict=False)
    plan = BatchPlan(stories, config.max_seq_len - 1, hyper.rows, batching="padded", seed=hyper.seed)
    batches = full_batches(plan, hyper.rows, N_WARM + n_steps)
    pieces = [torch.from_numpy(plan.pieces[row[0]].astype(np.int64)) for rows in batches for row in rows]

    def collate(rows: list["Tensor"]) -> dict[str, "Tensor"]:
        padded = partial(torch.nn.utils.rnn.pad_sequence, rows, batch_first=True)
        labels = padded(padding_value=IGNORE)
        labels[:, 0] = IGNORE  # never predicted, but for some models the Trainer would count it in its mean
        return {"input_ids": padded(), "labels": labels}

    class Timer(TrainerCallback):
        """Starts a clock after the warm-up and reads it after the last step."""

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
