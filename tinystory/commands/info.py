"""`tinystory info`: what a checkpoint is. Reads config and headers only; torch is not imported."""

import argparse
import dataclasses
import json
import sys
from typing import Any

from tinystory.checkpoint import CheckpointHeader, model_hash
from tinystory.checkpoint.shipped import find_model
from tinystory.safe.showing import visible

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Print the facts."""
    name, header = find_model(args.model)
    facts = {"model": name} | describe_model(header)
    if args.json:
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
    """Family, parameters, config, hash and provenance as plain data."""
    ours = header.config
    stored = sum(_size(entry.shape) for entry in header.tensors.values())
    return {
        "family": ours.family if ours else str(header.hf_config.get("model_type")),
        "parameters": ours.n_parameters if ours else stored,
        "dtype": header.dtype,
        "directory": str(header.directory),
        "hash": model_hash(header.directory),
        "config": dataclasses.asdict(ours) if ours else dict(header.hf_config),
        "provenance": dict(header.provenance),
    }


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
