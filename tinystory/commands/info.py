"""`tinystory info`: what a checkpoint is. It reads only config and headers, and does not import torch."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tinystory.checkpoint import CheckpointHeader, model_hash
from tinystory.checkpoint.shipped import find_model
from tinystory.checkpoint.tokenizers import load_tokenizer, special_ids, tokenizer_warnings
from tinystory.commands.shared.groups import Options
from tinystory.commands.shared.notices import warn
from tinystory.errors import CheckpointError
from tinystory.safe.showing import visible
from tinystory.session.steps.compiled_code import compiled_code, why_missing

__all__ = ["InfoOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class InfoOptions(Options):
    """The options of `tinystory info`.

    Attributes:
        model: a folder, a hub id or the name of a shipped model.
        json: print one JSON object.
    """

    model: str
    json: bool


def run(options: InfoOptions) -> int:
    """Print the facts about the checkpoint as text, or as JSON."""
    name, header = find_model(options.model)
    special_tokens, warnings = describe_special_tokens(header)
    warn(options, header.warnings + warnings)
    facts = {"model": name} | describe_model(header) | {"engine": _engine(), "special_tokens": special_tokens}
    if options.json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return 0
    config, provenance = facts.pop("config"), facts.pop("provenance")
    facts.pop("special_tokens")
    facts |= {name: _in_words(fact) for name, fact in special_tokens.items()}
    for label, group in (("", facts), ("config", config), ("provenance", provenance)):
        if group and label:
            sys.stdout.write(f"\n{label}\n")
        for key, value in group.items():
            shown = f"{value:,}" if type(value) is int else value
            sys.stdout.write(visible(f"{'  ' if label else ''}{key:<22} {shown}") + "\n")
    return 0


def _engine() -> str:
    """Return whether models can be computed in compiled code, in words."""
    code = compiled_code()
    return f"compiled code ({code.level})" if code else f"no compiled code: {why_missing()}"


def describe_model(header: CheckpointHeader) -> dict[str, Any]:
    """Return family, number of parameters, config, hash and provenance as plain data."""
    config = header.config
    n_stored = sum(math.prod(entry.shape) for entry in header.tensors.values())
    return {
        "family": config.family if config else str(header.hf_config.get("model_type")),
        "parameters": config.n_parameters if config else n_stored,
        "dtype": header.dtype,
        "directory": str(header.directory),
        "hash": model_hash(header.directory),
        "config": dataclasses.asdict(config) if config else dict(header.hf_config),
        "provenance": dict(header.provenance),
    }


def describe_special_tokens(header: CheckpointHeader) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the tokens that begin and end a story and stand around a prompt, as plain data, and warnings.

    A model without a usable tokenizer has no such tokens; the reason is a warning.
    """
    try:
        tokenizer = load_tokenizer(header)
        ids = special_ids(header, tokenizer.fast)
    except CheckpointError as error:
        return {}, (str(error),)

    def tokens(token_ids: Iterable[int]) -> dict[str, Any]:
        listed = list(token_ids)
        return {"ids": listed, "tokens": [tokenizer.token_text(i) for i in listed]}

    facts = {
        "bos": tokens([] if ids.bos_id is None else [ids.bos_id]) | {"from": ids.bos_from},
        "eos": tokens(sorted(ids.eos_ids)) | {"from": ids.eos_from},
        "before_prompt": tokens(tokenizer.prefix),
        "after_prompt": tokens(tokenizer.suffix),
    }
    return facts, tokenizer_warnings(header, tokenizer)


def _in_words(fact: dict[str, Any]) -> str:
    """Return tokens with their ids, and what names them."""
    named = ", ".join(f"{token} ({token_id})" for token, token_id in zip(fact["tokens"], fact["ids"], strict=True))
    return f"{named}, from {fact['from']}" if named and "from" in fact else named or "none"
