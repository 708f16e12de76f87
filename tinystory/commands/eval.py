"""`tinystory eval`: how surprised a model is by stories it has not written, and how its own compare with them."""

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from tinystory.checkpoint.shipped import find_model
from tinystory.commands.shared import load_with_torch
from tinystory.decoding import Decoder
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import UsageError
from tinystory.safe.showing import visible
from tinystory.screen.console import progress_bar, table_console
from tinystory.session.loading import LoadedModel

if TYPE_CHECKING:
    from tinystory.evaluation.perplexity import Evaluation
    from tinystory.writing.generate import Story

__all__ = ["run"]

MAX_WRITTEN = 10_000

_TOGETHER = 32
"""Stories written in one batch: the fastest size measured on a CPU, and always the same one for the same story."""

_TABLE = (  # label, field of a StoryReport, unit
    ("stories", "stories", "count"),
    ("words a story, mean", "mean_words", "number"),
    ("words a story, median", "median_words", "number"),
    ("tokens a story, mean", "mean_tokens", "number"),
    ("tokens a story, median", "median_tokens", "number"),
    ("distinct-1 (words)", "distinct_1", "share"),
    ("distinct-2 (word pairs)", "distinct_2", "share"),
    ("distinct-3 (word triples)", "distinct_3", "share"),
    ("repeated 4-grams", "repeated_4grams", "share"),
    ("ended properly", "ended_properly", "share"),
    ("balanced quotes", "balanced_quotes", "share"),
    ("unknown words", "unknown_words", "share"),
    ("copied 8-grams", "copied_8grams", "share"),
    ("longest copied run, words", "longest_copied", "count"),
)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit is {args.limit}; it must be at least 1")
    decoder = _decoder(args)
    name, header = find_model(args.model)
    from tinystory.data.sources import read_stories

    stories = list(islice(read_stories(args.data, split="validation"), args.limit))
    training = read_stories(args.train) if args.train is not None else None
    if training:  # a file without a story shows now, not after the model has written
        training = chain([next(training)], training)
    model = load_with_torch(args, name, header)
    from tinystory.evaluation.perplexity import evaluate

    with progress_bar(args, "scoring", len(stories)) as progress:
        result = evaluate(model.session, model.tokenizer, stories, cut=args.cut, progress=progress)
    report = _story_report(args, model, decoder, stories, training) if decoder else None
    (_print_json if args.json else _print_text)(args, model, result, report)
    return 0


def _decoder(args: argparse.Namespace) -> Decoder | None:
    """What writes the stories of the report; None where none is asked for."""
    if args.stories is None:
        if args.train is not None:
            raise UsageError("--train is for the story report: say with --stories N how many stories to write")
        return None
    if not 1 <= args.stories <= MAX_WRITTEN:
        raise UsageError(f"--stories is {args.stories}; it must be from 1 to {MAX_WRITTEN:,}")
    registry = discover(args.decoder_file)
    for line in registry.warnings:
        _note(args, line)
    return parse_spec(args.decoder, registry)


# --- the story report ---


def _story_report(
    args: argparse.Namespace,
    model: LoadedModel,
    decoder: Decoder,
    stories: Sequence[str],
    training: Iterator[str] | None,
) -> dict[str, Any]:
    """What the model's stories and as many real ones are like, as in the JSON.

    With a training text, words and 8-grams are looked up in that; without one, words are in the stories of the
    data that are not on the real side.
    """
    from tinystory.evaluation.copied import known_runs
    from tinystory.evaluation.ngrams import ngram_count
    from tinystory.evaluation.report import describe_stories

    real, others = _real_side(stories, args.stories, keep_others=training is None)
    if len(real) < args.stories:
        _note(args, f"{args.data} has {len(stories):,} stories: {len(real):,} of them are the real side")
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    written = _write(args, model, decoder, seed)
    n_cut = sum(story.finish_reason == "length" for story in written)
    if n_cut:
        _note(args, f"{n_cut:,} of {len(written):,} stories were cut off after {args.max_tokens:,} tokens (-n)")
    texts = [story.text for story in written]
    runs = known_runs([*texts, *real], others if training is None else training) if training or others else None
    alike = partial(
        describe_stories,
        runs_in_training=training is not None,
        distinct_ngrams=min(ngram_count(texts), ngram_count(real)),
    )
    sides = {
        "model": alike(
            texts,
            n_tokens=[len(story.tokens) for story in written],
            finished=[story.finish_reason == "eos" for story in written],
            runs=runs and runs[: len(texts)],
        ),
        "real": alike(
            real,
            n_tokens=[len(ids) for ids in model.tokenizer.encode_batch(real)],
            runs=runs and runs[len(texts) :],
        ),
    }
    return {side: dataclasses.asdict(found) for side, found in sides.items()} | {
        "spec": format_spec(decoder),
        "seed": seed,
        "max_tokens": args.max_tokens,
        "cut_off": n_cut,
        "train": args.train,
        "reference_stories": None if training else len(others),
    }


def _real_side(stories: Sequence[str], n: int, *, keep_others: bool) -> tuple[list[str], list[str]]:
    """At most n stories, evenly spread, and the others.

    Args:
        stories: what there is.
        n: how many are wanted.
        keep_others: leave at least half of them to the others.
    """
    n = min(n, max(1, len(stories) // 2) if keep_others else len(stories))
    chosen = {i * len(stories) // n for i in range(n)}
    real = [story for i, story in enumerate(stories) if i in chosen]
    return real, [story for i, story in enumerate(stories) if i not in chosen]


def _write(args: argparse.Namespace, model: LoadedModel, decoder: Decoder, seed: int) -> "list[Story]":
    """Stories from BOS, numbered siblings of one seed."""
    from tinystory.writing.generate import Ended, StoryRequest, write

    numbers = range(args.stories)
    requests = [
        StoryRequest("", decoder, seed=seed, max_new_tokens=args.max_tokens, number=number) for number in numbers
    ]
    found: dict[int, Story] = {}
    with progress_bar(args, "writing", args.stories) as progress:
        for start in numbers[::_TOGETHER]:
            for event in write(model.session, model.tokenizer, requests[start : start + _TOGETHER]):
                if isinstance(event, Ended):
                    found[start + event.story] = event.result
                    progress(len(found))
    return [found[number] for number in numbers]


# --- printing ---


def _print_json(
    args: argparse.Namespace, model: LoadedModel, result: "Evaluation", report: dict[str, Any] | None
) -> None:
    found = dataclasses.asdict(result) | {"model": model.name, "model_hash": model.hash_if_known}
    if report is not None:
        found["stories_report"] = report
    sys.stdout.write(json.dumps(found) + "\n")


def _print_text(
    args: argparse.Namespace, model: LoadedModel, result: "Evaluation", report: dict[str, Any] | None
) -> None:
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
    if report is not None:
        _print_report(args, report)


def _print_report(args: argparse.Namespace, report: dict[str, Any]) -> None:
    from rich.table import Table

    model, real = report["model"], report["real"]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("model", "real", "difference"):
        table.add_column(heading, justify="right")
    for label, field, unit in _TABLE:
        ours, theirs = model[field], real[field]
        if ours is not None or theirs is not None:
            difference = None if ours is None or theirs is None or field == "stories" else ours - theirs
            table.add_row(label, _shown(ours, unit), _shown(theirs, unit), _shown(difference, unit, "+"))
    console = table_console(args)
    console.print()
    console.print(table)
    where = f"in {report['train']}" if report["train"] else f"in {report['reference_stories']:,} other real stories"
    notes = [
        f"Written with {report['spec']}, seed {report['seed']}, at most {report['max_tokens']:,} tokens a story.",
    ]
    if n_grams := model["distinct_ngrams"]:
        notes.append(f"Distinct-n falls as a text grows: on either side it is over {n_grams:,} n-grams.")
    if real["unknown_words"] is not None:
        notes.append(f"Unknown words are not {where}.")
    console.print("\n" + visible("\n".join(notes)), soft_wrap=True)


def _shown(value: float | None, unit: str, sign: str = "") -> str:
    """A figure, or with a sign a difference; shares differ by percentage points."""
    if value is None:
        return "–"
    if unit == "share":
        return f"{100 * value:+.2f} pp" if sign else f"{value:.2%}"
    return f"{value:{sign},.{0 if unit == 'count' else 1}f}"


def _note(args: argparse.Namespace, line: str) -> None:
    if not args.quiet:
        sys.stderr.write(f"tinystory: {visible(line)}\n")
