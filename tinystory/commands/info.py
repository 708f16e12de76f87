"""`tinystory info`: what a checkpoint is. It reads only config and headers, and does not import torch."""

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from typing import Any

from tinystory.checkpoint import CheckpointHeader, model_hash
from tinystory.checkpoint.shipped import find_model
from tinystory.commands.shared.groups import Options
from tinystory.commands.shared.notices import warn
from tinystory.safe.showing import visible

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
    warn(options, header.warnings)
    facts = {"model": name} | describe_model(header)
    if options.json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return 0
    config = facts.pop("config")
    provenance = facts.pop("provenance")
    for label, group in (("", facts), ("config", config), ("provenance", provenance)):
        if group and label:
            sys.stdout.write(f"\n{label}\n")
        for key, value in group.items():
            shown = f"{value:,}" if type(value) is int else value
            sys.stdout.write(visible(f"{'  ' if label else ''}{key:<22} {shown}") + "\n")
    return 0


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
