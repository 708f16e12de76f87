"""Find the tokens that begin and end a story, and the file that names them.

The order is that of transformers: generation_config.json, config.json, the defaults of the config's class. If none of
these knows an id, the name of the token in the files of the tokenizer counts.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystory.errors import CheckpointError
from tinystory.safe.reading import read_json_object, shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

__all__ = [
    "SpecialIds", "configured_ids", "named_tokens", "read_optional", "with_class_defaults", "with_named_tokens",
]  # fmt: skip

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"

_KNOWN_DEFAULTS: dict[object, tuple[int, int]] = {"gpt2": (50256, 50256), "llama": (1, 2)}
"""BOS and EOS of the config classes of transformers for the models that run without it."""


@dataclass(frozen=True)
class SpecialIds:
    """The tokens that begin and end a story.

    Attributes:
        bos_id: the token that a story begins with; None if there is none.
        eos_ids: the tokens that end a story.
        bos_from: what names the BOS, for people; empty if there is none.
        eos_from: what names the EOS tokens, for people; empty if there are none.
    """

    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    bos_from: str = ""
    eos_from: str = ""

    def or_bos(self, bos_id: int | None, origin: str) -> "SpecialIds":
        """Return these ids with another BOS if they have none."""
        return self if self.bos_id is not None or bos_id is None else replace(self, bos_id=bos_id, bos_from=origin)

    def or_eos(self, eos_id: int | None, origin: str) -> "SpecialIds":
        """Return these ids with another EOS if they have none."""
        return self if self.eos_ids or eos_id is None else replace(self, eos_ids=frozenset({eos_id}), eos_from=origin)


def configured_ids(
    hf_config: Mapping[str, Any], generation_config: Mapping[str, Any], vocab_size: int | None
) -> tuple[SpecialIds, tuple[str, ...]]:
    """Return the ids that the configs of a model name. generation_config.json overrides config.json.

    A negative id means that there is no such token. An id outside the vocabulary is not used: small models often have
    the default of their class (50256) in the file.

    Args:
        hf_config: the content of config.json.
        generation_config: the content of generation_config.json; empty if there is no such file.
        vocab_size: the number of tokens of the model; None if it is not known.

    Returns:
        The ids, and a warning for each EOS outside the vocabulary that would have counted.

    Raises:
        CheckpointError: an id is not a whole number.
    """
    bos, bos_from, _ = _configured("bos_token_id", hf_config, generation_config, vocab_size)
    eos, eos_from, warnings = _configured("eos_token_id", hf_config, generation_config, vocab_size)
    ids = SpecialIds(min(bos, default=None), frozenset(eos), bos_from, eos_from)
    known = _KNOWN_DEFAULTS.get(hf_config.get("model_type"), (None, None))
    return _or_defaults(ids, hf_config, known, vocab_size), warnings


def with_class_defaults(ids: SpecialIds, hf_config: Mapping[str, Any], vocab_size: int | None) -> SpecialIds:
    """Return the ids; those that config.json does not mention get the default of its class in transformers.

    transformers is imported only if such a default is needed.
    """
    if not any(_unmentioned(ids, hf_config)):
        return ids
    from transformers import CONFIG_MAPPING

    try:
        config_class = CONFIG_MAPPING[str(hf_config.get("model_type"))]
    except KeyError:  # an architecture that this version of transformers does not have
        return ids
    defaults = (getattr(config_class, "bos_token_id", None), getattr(config_class, "eos_token_id", None))
    return _or_defaults(ids, hf_config, defaults, vocab_size)


def with_named_tokens(ids: SpecialIds, names: Mapping[str, tuple[str, str]], fast: "FastTokenizer") -> SpecialIds:
    """Return the ids; a missing one is that of the token which the files of the tokenizer name.

    Args:
        ids: from the functions above.
        names: from `named_tokens`.
        fast: the tokenizer.
    """
    for key in ("bos_token", "eos_token"):
        token, origin = names.get(key, ("", ""))
        token_id = fast.token_to_id(token) if token else None
        ids = ids.or_bos(token_id, origin) if key == "bos_token" else ids.or_eos(token_id, origin)
    return ids


def named_tokens(directory: Path) -> dict[str, tuple[str, str]]:
    """Return the special tokens that the files of a tokenizer name, each with the name of the file.

    The keys are `bos_token`, `eos_token`, `unk_token` and so on. As in transformers, special_tokens_map.json comes
    first, but it does not count if tokenizer_config.json lists all added tokens.

    Raises:
        CheckpointError: one of the files is no JSON object.
    """
    config = read_optional(directory / TOKENIZER_CONFIG)
    files = {TOKENIZER_CONFIG: config}
    if "added_tokens_decoder" not in config:
        files[SPECIAL_TOKENS_MAP] = read_optional(directory / SPECIAL_TOKENS_MAP)
    return {
        key: (token, name)
        for name, content in files.items()
        for key, value in _with_extra_names(content).items()
        if key.endswith("_token") and (token := _content(value))
    }


def read_optional(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a checkpoint; an empty one if there is no such file."""
    return read_json_object(path, raises=CheckpointError) if os.path.lexists(path) else {}


def _with_extra_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a file and the tokens that it names under `extra_special_tokens`, whatever their names."""
    extra = content.get("extra_special_tokens")
    named = {f"{key}_token": token for key, token in extra.items()} if isinstance(extra, dict) else {}
    return named | dict(content)


def _content(token: object) -> str:
    """Return the text of a token, which is a string or an object with a `content`; empty if it is neither."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _configured(
    key: str, hf_config: Mapping[str, Any], generation_config: Mapping[str, Any], vocab_size: int | None
) -> tuple[list[int], str, tuple[str, ...]]:
    """Return the ids under a key, the file that has them, and warnings about ids outside the vocabulary."""
    outside: dict[str, str] = {}
    for name, fields in _sources(hf_config, generation_config):
        ids = _ids(fields, key)
        valid = [i for i in ids if vocab_size is None or i < vocab_size]
        if valid != ids:
            outside.setdefault(", ".join(str(i) for i in ids if i not in valid), name)
        if valid:
            return valid, name, _warnings(key, outside, vocab_size)
    return [], "", _warnings(key, outside, vocab_size)


def _warnings(key: str, outside: Mapping[str, str], vocab_size: int | None) -> tuple[str, ...]:
    """Return a warning for each list of ids outside the vocabulary; `outside` has the file of each list."""
    size = f"the vocabulary has only {vocab_size:,} tokens" if vocab_size else ""
    return tuple(f"{name}: {key} is {ids}, but {size}; it is not used" for ids, name in outside.items())


def _sources(
    hf_config: Mapping[str, Any], generation_config: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the configs in the order in which they count, each with its name."""
    yield GENERATION_CONFIG, generation_config
    yield CONFIG, hf_config
    nested = hf_config.get("text_config")
    if isinstance(nested, Mapping):  # a model that also sees pictures has the config of its language model here
        yield CONFIG, nested


def _ids(fields: Mapping[str, Any], key: str) -> list[int]:
    """Return the ids under a key, without negative ones, which old configs use for "none"."""
    value = fields.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token_id) is not int for token_id in ids):
        raise CheckpointError(f"{key} is {shown(value)}; it must be a whole number from 0")
    return [token_id for token_id in ids if token_id >= 0]


def _unmentioned(ids: SpecialIds, hf_config: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether BOS and EOS are missing because config.json does not mention them."""
    return ids.bos_id is None and "bos_token_id" not in hf_config, not ids.eos_ids and "eos_token_id" not in hf_config


def _or_defaults(
    ids: SpecialIds, hf_config: Mapping[str, Any], defaults: tuple[Any, Any], vocab_size: int | None
) -> SpecialIds:
    """Return the ids with defaults for those that config.json does not mention, if they lie in the vocabulary."""
    bos_missing, eos_missing = _unmentioned(ids, hf_config)
    origin = f"the default of {hf_config.get('model_type')}"
    bos, eos = (i if type(i) is int and 0 <= i < (vocab_size or i + 1) else None for i in defaults)
    ids = ids.or_bos(bos, origin) if bos_missing else ids
    return ids.or_eos(eos, origin) if eos_missing else ids
