"""Resolve the configuration of a run: its data, the shape of its model, and its training; with presets.

A field comes from a flag, else from a TOML file, else from the preset, else from its default. Knows the fields and
their ranges. Does not know how a run uses them.
"""

import dataclasses
import inspect
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tinystory.checkpoint.shipped import SHIPPED_MODELS, find_model
from tinystory.data.batches import Batching
from tinystory.errors import UsageError
from tinystory.model.config import ModelConfig
from tinystory.training.step import TrainConfig

__all__ = ["PRESETS", "DataConfig", "RunConfig", "ShapeConfig", "field_help", "fields_of", "resolve_run"]


@dataclass(frozen=True)
class DataConfig:
    """The stories of a run.

    Attributes:
        data: sources of the training stories: files, globs, folders, or a hub dataset.
        valid: sources of the validation stories; without them, test_split of the data is used.
        tokenizer: a tokenizer.json, a folder with vocab.json and merges.txt, or a hub name; "default" is the tokenizer
            of the shipped model.
        fraction: share of the stories to use, above 0 and at most 1.
        test_split: share of the data that is held out for validation, if valid is not given.
        batching: "packed" rows have several whole stories, "padded" rows have one.
        valid_stories: how many stories a validation during the run uses; 0 uses all.
        streaming: read a hub dataset without downloading it first.
    """

    data: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    tokenizer: str = "default"
    fraction: float = 1.0
    test_split: float = 0.02
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
        family: architecture, gpt2 or llama.
        n_layer: number of blocks.
        n_head: number of query heads.
        n_kv_head: number of key/value heads; 0 means as many as n_head.
        d_model: width of the hidden states.
        d_ff: inner width of the feed-forward part.
        max_seq_len: longest context in tokens; also the length of a row.
        tied_head: use the embedding as the output head.
        init: a checkpoint to start from; it gives weights, shape and vocabulary. Without it, the weights are random.
    """

    family: str = "llama"
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
            UsageError: the family is unknown.
            CheckpointError: the shape is impossible.
        """
        shared = (vocab_size, self.n_layer, self.n_head, self.d_model, self.max_seq_len)
        if self.family == "gpt2":
            return ModelConfig.gpt2(*shared, d_ff=self.d_ff, tied_head=self.tied_head)
        if self.family == "llama":
            return ModelConfig.llama(*shared, d_ff=self.d_ff, n_kv_head=self.n_kv_head, tied_head=self.tied_head)
        raise UsageError(f"family is {self.family!r}; it must be gpt2 or llama")


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run, as its `run.json` stores it."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ShapeConfig = field(default_factory=ShapeConfig)
    training: TrainConfig = field(default_factory=TrainConfig)

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "RunConfig":
        """Return the configuration that `to_json` gave.

        Raises:
            UsageError: the content is no configuration of a run.
        """
        values: dict[str, Any] = {}
        for section in content.values():
            if not isinstance(section, Mapping):
                raise UsageError("it is not the configuration of a run")
            values |= section
        return _build(values, "run.json")


SECTIONS: Mapping[str, type] = {"data": DataConfig, "model": ShapeConfig, "training": TrainConfig}

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
        attributes = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
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
    from_file = _read_toml(file) if file else {}
    preset = preset or from_file.pop("preset", None)
    from_file.pop("preset", None)
    if preset is not None and not (isinstance(preset, str) and preset in PRESETS):
        raise UsageError(f"there is no preset {preset!r}; the presets are {', '.join(PRESETS)}")
    given, origin = {**from_file, **flags}, str(file or "the command line")
    config = _build({**PRESETS.get(preset or "", {}), **given}, origin)
    return _started_from(config, given) if config.model.init else config


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
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    values: dict[str, Any] = {}
    for name, value in content.items():
        values |= value if name in SECTIONS and isinstance(value, dict) else {name: value}
    return values


def _build(values: Mapping[str, Any], origin: str) -> RunConfig:
    all_fields = fields_of()
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in values.items():
        if name not in all_fields:
            near = get_close_matches(name, all_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(all_fields)}"
            raise UsageError(f"{origin}: {name!r} is not a field of a run; {hint}")
        section, _, kind = all_fields[name]
        sections[section][name] = _typed(name, value, kind, origin)
    return RunConfig(**{section: cls(**sections[section]) for section, cls in SECTIONS.items()})


def _typed(name: str, value: Any, kind: Any, origin: str) -> Any:
    """Return a value in the type of its field: an int becomes a float; one text or a list becomes a tuple of texts.

    Raises:
        UsageError: the value has another type.
    """
    if isinstance(kind, types.GenericAlias):
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list | tuple) and all(isinstance(item, str) for item in items):
            return tuple(items)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif typing.get_origin(kind) is typing.Literal:
        if value in typing.get_args(kind):
            return value
        raise UsageError(f"{origin}: {name} must be {' or '.join(typing.get_args(kind))}, not {value!r}")
    elif type(value) is kind:
        return value
    described = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(
        kind, "a list of texts"
    )
    raise UsageError(f"{origin}: {name} must be {described}, not {value!r}")
