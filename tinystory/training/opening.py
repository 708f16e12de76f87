"""Open a run and load what it needs before its first step: configuration, stories, model, teachers and state.

Knows data, checkpoints and the folder of a run. Does not know steps, the command line or a terminal.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinystory.checkpoint import load_model, read_header
from tinystory.checkpoint.shipped import find_model
from tinystory.checkpoint.tokenizers import find_tokenizer, load_tokenizer
from tinystory.data.prepare import prepare, tokenize
from tinystory.data.selection import Selection
from tinystory.data.shards import TokenShards, fingerprint
from tinystory.errors import UsageError
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.text.tokenizer import Tokenizer
from tinystory.training.config import RunConfig, fields_of
from tinystory.training.distributed import Ranks
from tinystory.training.run import Run, TrainState
from tinystory.training.step import make_optimizers

__all__ = ["OpenRun", "begin_run", "load_state", "load_stories", "load_teacher", "make_model", "resume_run"]

HUB_DATASET = "roneneldan/TinyStories"
"""The dataset that the message about missing data recommends."""


@dataclass(frozen=True)
class OpenRun:
    """A run that is ready to load its stories and its model.

    Attributes:
        run: its folder.
        config: its configuration, with the changes of a resumed run.
        tokenizer: its vocabulary, with BOS and EOS.
        shape: the shape of its model. In a run with an `init` it is exactly that of the checkpoint, while
            `config.model` has only the fields that a new model can have.
        resumed: whether it continues from its latest checkpoint.
    """

    run: Run
    config: RunConfig
    tokenizer: Tokenizer
    shape: ModelConfig
    resumed: bool


def begin_run(folder: Path, config: RunConfig, ranks: Ranks) -> OpenRun:
    """Begin a new run: check its configuration, and write it to the folder.

    Raises:
        UsageError: the run has no data, the folder holds a run already, the vocabulary has no BOS or EOS, or
            vocabulary and starting checkpoint do not fit together.
        CheckpointError: the shape of the model is impossible, or a checkpoint is missing or damaged.
    """
    if not config.data.data:
        raise UsageError(
            "--data is missing: give story files (.txt with <|endoftext|> between stories, .jsonl, .parquet),\n"
            f"a folder saved by datasets, or {HUB_DATASET} (2 GB from the Hugging Face hub)"
        )
    tokenizer, shape = _starting_point(config)  # refused before anything is written
    tokenize([], tokenizer)
    run = Run(folder)
    ranks.wait()
    if ranks.first:
        run.begin(config, tokenizer)
    return OpenRun(run, config, tokenizer, shape, resumed=False)


def _starting_point(config: RunConfig) -> tuple[Tokenizer, ModelConfig]:
    """Return vocabulary and shape of a new run: those of the checkpoint that it starts from, if there is one.

    Raises:
        UsageError: another vocabulary is given, and has another size.
        CheckpointError: the shape is impossible, or a checkpoint is missing or damaged.
    """
    given = config.data.tokenizer
    if not config.model.init:
        tokenizer = find_tokenizer(given)
        return tokenizer, config.model.model_config(tokenizer.vocab_size)
    name, header = find_model(config.model.init)
    if header.config is None:
        raise UsageError(f"{name} is neither a Llama nor a GPT-2 model, so no run can start from it")
    tokenizer = load_tokenizer(header) if given in (name, str(header.directory)) else find_tokenizer(given)
    if tokenizer.vocab_size != header.config.vocab_size:
        raise UsageError(
            f"{name} has a vocabulary of {header.config.vocab_size:,} tokens, {given} one of "
            f"{tokenizer.vocab_size:,}; leave --tokenizer out"
        )
    return tokenizer, header.config


def resume_run(folder: Path, changes: Mapping[str, Any], ranks: Ranks) -> OpenRun:
    """Open a run that has a checkpoint, to continue it.

    Args:
        folder: the folder of the run.
        changes: new values of training fields, by name.
        ranks: the first of them drops log lines that are newer than the checkpoint.

    Raises:
        UsageError: the folder holds no run, the run has no checkpoint, or a field cannot change.
        CheckpointError: the checkpoint has no training state.
    """
    run = Run(folder)
    config, _ = run.configuration()
    if fixed := [name for name in changes if fields_of()[name][0] != "training"]:
        raise UsageError(f"{', '.join(fixed)} cannot change in a resumed run; start a new run with --out")
    if {"rows", "seed"} & changes.keys():
        raise UsageError("rows and seed cannot change in a resumed run: its place in the data would be lost")
    header = read_header(run.latest)
    tokenizer = load_tokenizer(header)  # unlike the tokenizer.json of the run, it has BOS and EOS
    shape = header.config if config.model.init else None
    shape = shape or config.model.model_config(tokenizer.vocab_size)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))
    if ranks.first:
        run.forget_after(TrainState.step_of(run.latest))
    return OpenRun(run, config, tokenizer, shape, resumed=True)


def load_stories(opened: OpenRun, ranks: Ranks, report: Callable[[str], object]) -> tuple[TokenShards, TokenShards]:
    """Return the training stories and the validation stories.

    Args:
        opened: its data is a folder of prepared stories, or sources that the first rank now tokenises into the folder
            of the run.
        ranks: they all wait until the stories are prepared.
        report: gets one line for each part that was prepared.

    Raises:
        UsageError: a source does not exist, or the stories were prepared with another vocabulary.
    """
    data = opened.config.data
    folder = Path(data.data[0])
    prepared = len(data.data) == 1 and (folder / "train" / "manifest.json").is_file()
    if not prepared:
        folder = opened.run.folder / "data"
        if ranks.first:
            prepare_stories(folder, opened.config, opened.tokenizer, report)
        ranks.wait()
    training, valid = TokenShards(folder / "train"), TokenShards(folder / "valid")
    if {training.recipe["tokenizer"], valid.recipe["tokenizer"]} != {fingerprint(opened.tokenizer)}:
        raise UsageError(
            f"{folder} was prepared with another vocabulary; give the same --tokenizer, or prepare it again"
        )
    return training, valid.first(data.valid_stories or len(valid))


def prepare_stories(folder: Path, config: RunConfig, tokenizer: Tokenizer, report: Callable[[str], object]) -> None:
    """Tokenise training and validation stories into two folders, unless the folders have them already."""
    data = config.data
    chosen = Selection(data.fraction, 0.0 if data.valid else data.test_split, "train", config.training.seed)
    held_out = Selection() if data.valid else dataclasses.replace(chosen, part="test")
    for part, sources, selection, split in (
        ("train", data.data, chosen, "train"),
        ("valid", data.valid or data.data, held_out, "validation" if data.valid else "train"),
    ):
        shards = prepare(sources, tokenizer, folder / part, split=split, streaming=data.streaming, selection=selection)
        report(f"{part} stories: {shards.report}")


def make_model(opened: OpenRun, ranks: Ranks) -> Transformer:
    """Return the model with fresh weights, or with those of `init`, on the device of this rank.

    Sets torch's seed, from which dropout follows. Fresh weights follow from the seed of the run alone.
    """
    config, hyper = opened.config.model, opened.config.training
    torch.manual_seed(hyper.seed + ranks.rank)
    model = Transformer(opened.shape, dropout=hyper.dropout)
    model.init_weights(hyper.seed)
    if config.init and not opened.resumed:
        model.load_state_dict(load_model(find_model(config.init)[1]).state_dict())
    return model.to(ranks.device)


def load_teacher(name: str, opened: OpenRun, ranks: Ranks) -> Transformer:
    """Return a model to learn from, with frozen weights.

    Raises:
        UsageError: the model has another architecture, another vocabulary or a shorter context than the run.
        CheckpointError: the checkpoint is missing or damaged.
    """
    name, header = find_model(name)
    if header.config is None:
        raise UsageError(f"{name} is neither a Llama nor a GPT-2 model, so it cannot be a teacher")
    if fingerprint(load_tokenizer(header)) != fingerprint(opened.tokenizer):
        raise UsageError(f"{name} has another vocabulary than this run, so it cannot be a teacher")
    row_len = opened.config.model.max_seq_len
    if header.config.max_seq_len < row_len:
        raise UsageError(
            f"{name} has a context of {header.config.max_seq_len} tokens, but a row of this run has {row_len}; "
            "choose another teacher or a smaller --max-seq-len"
        )
    return load_model(header, device=str(ranks.device)).eval().requires_grad_(False)


def load_state(model: Transformer, opened: OpenRun, ranks: Ranks) -> TrainState:
    """Return the training state: a fresh one, or that of the latest checkpoint of a resumed run.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of another model.
    """
    hyper = opened.config.training
    average = {name: p.detach().clone() for name, p in model.named_parameters()} if hyper.ema else {}
    state = TrainState(model, make_optimizers(model, hyper), average)
    if opened.resumed:
        state.load(opened.run.latest, ranks, hyper.seed)
    return state
