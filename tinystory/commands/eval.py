"""`tinystory eval`: how surprised a model is by stories it has not written."""

import argparse
import dataclasses
import json
import sys
from itertools import islice

from tinystory.errors import UsageError
from tinystory.loading import find_model, load_header

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit is {args.limit}; it must be at least 1")
    name, header = find_model(args.model)
    from tinystory.data import read_stories

    stories = list(islice(read_stories(args.data, split="validation"), args.limit))
    model = load_header(name, header, args.dtype, args.device)
    from tinystory.evaluation import evaluate

    result = evaluate(model.session, model.tokenizer, stories)
    if args.json:
        found = dataclasses.asdict(result) | {"model": model.name, "model_hash": model.hash}
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    rows = [
        ("bits per byte", f"{result.bits_per_byte:.4f}"),
        ("nats per token", f"{result.nats_per_token:.4f}"),
        ("perplexity", f"{result.perplexity:.3f}"),
        ("accuracy", f"{result.accuracy:.1%}"),
        ("tokens", f"{result.tokens:,}"),
        ("bytes", f"{result.bytes:,}"),
        ("stories", f"{result.stories:,}"),
    ]
    sys.stdout.write("".join(f"{label:<15} {value:>12}\n" for label, value in rows))
    return 0
