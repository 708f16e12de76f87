"""Resolve the configuration of a run: its data, the shape of its model, its training and its loop; with presets.

A field comes from a flag, else from a TOML file, else from the preset, else from its default; in a run that goes on,
else from the run. Knows the fields and their ranges. Does not know how a run uses them.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from tinystory.checkpoint.shipped import SHIPPED_MODELS, find_model
from tinystory.data.batches import Batching
from tinystory.docstrings import docstring
from tinystory.errors import UsageError
from tinystory.model.config import ModelConfig
from tinystory.safe.reading import read_toml, shown
from tinystory.training.step import TrainConfig
from tinystory.training.stories import as_prepared

__all__ = [
    "PRESETS", "DataConfig", "LoopConfig", "RunConfig", "ShapeConfig", "field_help", "fields_of", "resolve_changes",
    "resolve_run",
]  # fmt: skip


@dataclass(frozen=True)
class DataConfig:
    r"""The stories of a run.

    Attributes:
        data: sources of the training stories: files, globs, folders, or a hub dataset.
        valid: sources of the validation stories; without them, test_split of the data is used.
        tokenizer: a tokenizer.json, a folder with vocab.json and merges.txt, or a hub name; "default" is the tokenizer
            of the shipped model.
        column: the column of .jsonl and .parquet files that has the text; by default text, else story.
        split: the split of a hub dataset or of a saved dataset; validation stories come from its split "validation".
        separator: the text between the stories of a text file, such as "---"; "\n\n" is a blank line, "\n" takes
            each line as a story. Without it, <|endoftext|> or what a file plainly has instead.
        fraction: share of the stories to use, above 0 and at most 1.
        test_split: share of the data that is held out for validation, if valid is not given; 0 trains without
            validation.
        split_seed: seed of the choice of the stories that fraction and test_split take.
        batching: "packed" rows have several whole stories, "padded" rows have one.
        valid_stories: how many stories a validation during the run uses; 0 uses all.
        streaming: read a hub dataset without downloading it first.
    """

    data: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    tokenizer: str = "default"
    column: str = ""
    split: str = "train"
    separator: str = ""
    fraction: float = 1.0
    test_split: float = 0.02
    split_seed: int = 0
    batching: Batching = "packed"
    valid_stories: int = 300
    streaming: bool = False

    def __post_init__(self) -> None:
        """Check the ranges; raise UsageError for a value outside."""
        if not 0 < self.fraction <= 1:
            raise UsageError(f"fraction is {self.fraction}; it must be above 0 and at most 1")
        if not 0 <= self.test_split < 1:
            raise UsageError(f"test_split is {self.test_split}; it must be from 0 to below 1")
        if self.valid_stories < 0:
            raise UsageError(f"valid_stories is {self.valid_stories}; it must be at least 0")


@dataclass(frozen=True)
class ShapeConfig:
    """The shape of the model. The size of the vocabulary is not part of it; the tokenizer gives that.

    Attributes:
        family: architecture of the model.
        n_layer: number of blocks.
        n_head: number of query heads.
        n_kv_head: number of key/value heads; 0 means as many as n_head.
        d_model: width of the hidden states.
        d_ff: inner width of the feed-forward part.
        max_seq_len: longest context in tokens; also the length of a row.
        tied_head: use the embedding as the output head.
        init: a checkpoint to start from; it gives weights, shape and vocabulary. Without it, the weights are random.
    """

    family: Literal["gpt2", "llama"] = "llama"
    n_layer: int = 6
    n_head: int = 3
    n_kv_head: int = 0
    d_model: int = 192
    d_ff: int = 512
    max_seq_len: int = 512
    tied_head: bool = True
    init: str = ""

    def model_config(self, vocab_size: int) -> ModelConfig:
        """Return the config of a model with this vocabulary.

        Raises:
            CheckpointError: the shape is impossible.
        """
        shared = (vocab_size, self.n_layer, self.n_head, self.d_model, self.max_seq_len)
        if self.family == "gpt2":
            return ModelConfig.gpt2(*shared, d_ff=self.d_ff, tied_head=self.tied_head)
        return ModelConfig.llama(*shared, d_ff=self.d_ff, n_kv_head=self.n_kv_head, tied_head=self.tied_head)


@dataclass(frozen=True)
class LoopConfig:
    """When a run validates, saves and logs, and where it computes. It changes no weight.

    Attributes:
        device: cpu or cuda, or one of several like cuda:1; without it, cuda if there is one.
        every: validate and save after this many steps, and after each epoch; 0 means after each epoch only, or five
            times in a run with max_minutes.
        save_minutes: save after this many minutes without a checkpoint, too; 0 is off.
        log_every: steps between log lines.
        keep: how many checkpoints stay, besides the best one.
        tensorboard: log to RUN/tensorboard, too.
        logger: "wandb" logs to Weights & Biases, too, through its own client (WANDB_MODE=offline needs no account).
        sample_prompt: beginnings of the sample stories that each validation writes.
        patience: end the run after this many validations in a row without a better one; 0 is off.
        peak_flops: floating-point operations a second that the processor can do at most, such as 312e12; then the log
            has the share of it that the run uses, as mfu; 0 is off.
    """

    device: str = ""
    every: int = 0
    save_minutes: float = 15.0
    log_every: int = 10
    keep: int = 2
    tensorboard: bool = False
    logger: Literal["none", "wandb"] = "none"
    sample_prompt: tuple[str, ...] = ("Once upon a time",)
    patience: int = 0
    peak_flops: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges; raise UsageError for a value outside."""
        if self.every < 0 or self.log_every < 1 or self.keep < 1:
            raise UsageError("--every must be at least 0, --log-every and --keep at least 1")
        for name in ("save_minutes", "patience", "peak_flops"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be a number from 0")
        if not self.sample_prompt:
            raise UsageError("sample_prompt is empty; give at least one beginning, such as 'Once upon a time'")


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run, as its `run.json` stores it."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ShapeConfig = field(default_factory=ShapeConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def flat(self) -> dict[str, Any]:
        """Return the value of each field: name -> value."""
        return {name: value for section in SECTIONS for name, value in vars(getattr(self, section)).items()}

    def changed(self, changes: Mapping[str, Any]) -> "RunConfig":
        """Return the configuration with some fields changed.

        Raises:
            UsageError: a value is out of its range.
        """
        return _build({**self.flat(), **changes}, "the run")

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "RunConfig":
        """Return the configuration that `to_json` gave.

        A run without a `split_seed` was begun when `seed` also chose the validation stories.

        Raises:
            UsageError: the content is no configuration of a run.
        """
        values: dict[str, Any] = {}
        for name in SECTIONS:
            section = content.get(name, {} if name == "loop" else None)
            if not isinstance(section, Mapping):
                raise UsageError("it is not the configuration of a run")
            values |= section
        return _build({"split_seed": values.get("seed", 0), **values}, "run.json")


SECTIONS: Mapping[str, type] = {
    "data": DataConfig, "model": ShapeConfig, "training": TrainConfig, "loop": LoopConfig,
}  # fmt: skip

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The student project from which this one grew: 85.9 million parameters on a tenth of TinyStories.
    "gpt2-tiny": {
        "tokenizer": "gpt2", "fraction": 0.1, "test_split": 0.1, "batching": "padded",
        "family": "gpt2", "n_layer": 2, "n_head": 12, "d_model": 768, "d_ff": 1024, "max_seq_len": 1024,
        "tied_head": False, "epochs": 5, "rows": 16, "micro_rows": 8, "lr": 3e-4, "muon_lr": 0.0,
        "weight_decay": 0.01, "warmup": 0.0, "schedule": "constant",
    },
    # About 1, 8 and 30 million parameters with a vocabulary of 2,048.
    "tiny": {"n_layer": 4, "n_head": 2, "d_model": 128, "d_ff": 352},
    "small": {"n_layer": 6, "n_head": 5, "d_model": 320, "d_ff": 864, "rows": 8, "lr": 2e-3, "muon_lr": 2e-3},
    "base": {"n_layer": 9, "n_head": 8, "d_model": 512, "d_ff": 1376, "rows": 32, "lr": 1e-3, "muon_lr": 1e-3},
}  # fmt: skip


def fields_of() -> dict[str, tuple[str, "dataclasses.Field[Any]", Any]]:
    """Return every field of a run: name -> (section, dataclass field, type)."""
    by_name = {}
    for section, cls in SECTIONS.items():
        hints = typing.get_type_hints(cls)
        by_name.update({f.name: (section, f, hints[f.name]) for f in dataclasses.fields(cls)})
    return by_name


def field_help() -> dict[str, str]:
    """Return one line of help for each field of a run: name -> the text in the docstring of its class."""
    texts = {}
    for cls in SECTIONS.values():
        attributes = docstring(cls).partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, flags=re.MULTILINE):
            texts[name] = " ".join(text.split()).rstrip(".")
    return {name: texts.get(name, "") for name in fields_of()}


def resolve_run(preset: str | None, file: Path | None, flags: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of a new run.

    Args:
        preset: a name of `PRESETS`, or None.
        file: a TOML file with any fields, at top level or under their section; it may also name a `preset`.
        flags: the fields of the command line.

    Raises:
        UsageError: a preset or field is unknown (the message gives the nearest name), a value has the wrong type or
            range, or the shape is not that of the checkpoint to start from.
        CheckpointError: the checkpoint to start from is missing or damaged.
    """
    from_preset, given, origin = _given(preset, file, flags)
    config = _build({**from_preset, **given}, origin)
    config = _started_from(config, given) if config.model.init else config
    if config.data.valid:
        if given.get("test_split"):
            raise UsageError("give either valid or test_split, not both: with valid, no part of the data is held out")
        config = config.changed({"test_split": 0.0})
    return as_prepared(config, from_preset, given)


def resolve_changes(
    config: RunConfig, preset: str | None, file: Path | None, flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields in which a command line differs from the configuration of a run: name -> new value.

    Args:
        config: what is in force.
        preset: as for `resolve_run`, like `file` and `flags`; fields that none of them has stay as they are.
        file: the same file with which a run was begun changes nothing.
        flags: they change fields of the training and the loop.

    Raises:
        UsageError: as for `resolve_run`, or a field cannot change in a run that goes on.
    """
    from_preset, given, origin = _given(preset, file, flags)
    all_fields, in_force = fields_of(), config.flat()
    if config.data.valid:
        from_preset = {name: value for name, value in from_preset.items() if name != "test_split"}
    wanted = _checked({**from_preset, **given}, origin)
    changes = {name: value for name, value in wanted.items() if value != in_force[name]}
    if fixed := [name for name in changes if all_fields[name][0] in ("data", "model")]:
        raise UsageError(
            f"{', '.join(fixed)} cannot change in a resumed run; start a new run with --out\n"
            + ", ".join(f"{name} is {in_force[name]!r}" for name in fixed)
        )
    if {"rows", "seed"} & changes.keys():
        raise UsageError("rows and seed cannot change in a resumed run: its place in the data would be lost")
    config.changed(changes)  # refuses values out of range
    return changes


def _given(
    preset: str | None, file: Path | None, flags: Mapping[str, Any]
) -> tuple[Mapping[str, Any], dict[str, Any], str]:
    """Return the fields of the preset, those of file and flags, and the place to name in messages about these."""
    from_file = _read_toml(file) if file else {}
    named = from_file.pop("preset", None)
    preset = preset or named
    if preset is not None and not (isinstance(preset, str) and preset in PRESETS):
        raise UsageError(f"there is no preset {shown(preset)}; the presets are {', '.join(PRESETS)}")
    return PRESETS.get(preset or "", {}), {**from_file, **flags}, str(file or "the command line")


def _started_from(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """Return the configuration with the shape and vocabulary of its `init`.

    Raises:
        UsageError: `init` cannot be trained here, or a `given` field contradicts it.
    """
    init, header = find_model(config.model.init)
    if header.config is None:
        raise UsageError(f"{init} is neither a Llama nor a GPT-2 model, so no run can start from it")
    shape = {f.name: getattr(header.config, f.name) for f in fields(ShapeConfig) if f.name != "init"}
    for name, value in shape.items():
        if given.get(name, value) != value:
            raise UsageError(f"{name} is {given[name]}, but {init} has {value}; leave it out")
    model = ShapeConfig(**shape, init=init)
    vocabulary = init if init in SHIPPED_MODELS else str(header.directory)
    data = dataclasses.replace(config.data, tokenizer=given.get("tokenizer", vocabulary))
    return dataclasses.replace(config, data=data, model=model)


def _read_toml(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in read_toml(path, raises=UsageError).items():
        values |= value if name in SECTIONS and isinstance(value, dict) else {name: value}
    return values


def _build(values: Mapping[str, Any], origin: str) -> RunConfig:
    checked, all_fields = _checked(values, origin), fields_of()
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in checked.items():
        sections[all_fields[name][0]][name] = value
    return RunConfig(**{section: cls(**sections[section]) for section, cls in SECTIONS.items()})


def _checked(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return the values in the types of their fields; raise UsageError for an unknown field or another type."""
    all_fields = fields_of()
    checked = {}
    for name, value in values.items():
        if name not in all_fields:
            near = get_close_matches(name, all_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(all_fields)}"
            raise UsageError(f"{origin}: {shown(name)} is not a field of a run; {hint}")
        checked[name] = _typed(name, value, all_fields[name][2], origin)
    return checked


def _typed(name: str, value: Any, kind: Any, origin: str) -> Any:
    """Return a value in the type of its field: an int becomes a float; one text or a list becomes a tuple of texts.

    Raises:
        UsageError: the value has another type.
    """
    if isinstance(kind, types.GenericAlias):
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list | tuple) and all(isinstance(item, str) for item in items):
            return tuple(items)
    elif isinstance(value, int) and abs(value) >= 2**63:
        pass  # neither a float nor torch has it
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif typing.get_origin(kind) is typing.Literal:
        if value in typing.get_args(kind):
            return value
        raise UsageError(f"{origin}: {name} must be {' or '.join(typing.get_args(kind))}, not {shown(value)}")
    elif type(value) is kind:
        return value
    described = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(
        kind, "a list of texts"
    )
    raise UsageError(f"{origin}: {name} must be {described}, not {shown(value)}")
