"""Groups of options that several commands have, as frozen dataclasses. A command inherits from those it needs.

A field has the name of the flag that fills it. This module imports nothing heavy.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "DecoderFileOptions", "JsonOptions", "ModelOptions", "Options", "PromptOptions", "StoryOptions", "options_from",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of every command.

    Attributes:
        quiet: print results and errors only.
        verbose: show the traceback of an error.
    """

    quiet: bool = False
    verbose: bool = False


@dataclass(frozen=True, kw_only=True)
class DecoderFileOptions(Options):
    """The options of a command that uses decoders.

    Attributes:
        decoder_file: files with decoders of the user.
    """

    decoder_file: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class JsonOptions(Options):
    """The options of a command that can print a story as it is written; at most one of the two is true.

    Attributes:
        json: print one JSON object at the end.
        jsonl: print one JSON object for each event.
    """

    json: bool = False
    jsonl: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """The options of a command that runs a model.

    Attributes:
        model: a folder, a hub id or the name of a shipped model.
        device: where the model runs, as torch names it.
        dtype: the number format of the computation; one of `settings.CHOICES`.
        engine: what computes Llama and GPT-2 models on the CPU; one of `settings.CHOICES`.
        color: `auto`, `always` or `never`.
    """

    model: str
    device: str
    dtype: str
    engine: str
    color: str


@dataclass(frozen=True, kw_only=True)
class StoryOptions(ModelOptions, DecoderFileOptions):
    """The options of a command that lets a model write stories.

    Attributes:
        seed: the seed of the first story; None asks for a random one.
        max_tokens: the largest number of new tokens of a story.
    """

    seed: int | None
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class PromptOptions(StoryOptions):
    """The options of a command that writes from a prompt.

    Attributes:
        prompt: the prompt on the command line; None if there is none.
        stop: a story ends before the first of these texts.
    """

    prompt: str | None = None
    stop: tuple[str, ...] = ()


_Kind = TypeVar("_Kind", bound="DataclassInstance")


def options_from(source: object, kind: type[_Kind]) -> _Kind:
    """Return options of a kind. A field has the value that the source has under the same name.

    Args:
        source: the parsed command line, or the options of another command. A list becomes a tuple.
        kind: the dataclass of the result; a field that the source does not have keeps its default.
    """
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(kind)):
        if hasattr(source, name):
            value = getattr(source, name)
            values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
