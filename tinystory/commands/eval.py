"""`tinystory eval`: measure how surprised a model is by real stories, and compare its own stories with real ones."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from tinystory.checkpoint.shipped import find_model
from tinystory.commands.shared.decoders import find_decoders
from tinystory.commands.shared.groups import StoryOptions
from tinystory.commands.shared.models import load_with_torch
from tinystory.commands.shared.notices import warn
from tinystory.commands.shared.prompt import seed_of
from tinystory.commands.shared.streams import apart
from tinystory.decoding import Decoder
from tinystory.decoding.spec import format_spec, parse_spec, shown_spec
from tinystory.errors import UsageError
from tinystory.safe.showing import visible
from tinystory.screen.console import progress_bar, table_console
from tinystory.session.loading import LoadedModel

if TYPE_CHECKING:
    from tinystory.evaluation.cloze import Cloze
    from tinystory.evaluation.perplexity import Evaluation
    from tinystory.writing.generate import Story

__all__ = ["EvalOptions", "run"]

MAX_WRITTEN = 10_000
FEWEST_CLOZE = 4

_TOGETHER = 32
"""Stories in one batch: the fastest number measured on a CPU. It never changes, so that a story never changes."""

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


@dataclass(frozen=True, kw_only=True)
class EvalOptions(StoryOptions):
    """The options of `tinystory eval`.

    Attributes:
        data: the real stories: a file, a saved dataset or the name of one on the hub.
        column: the column that has the text; None for text, else story.
        split: the split of a hub dataset or of a saved dataset.
        separator: the text between the stories of a text file; None for the usual ones.
        limit: the number of stories to take, from the first on; None takes all.
        cut: score only the part of a long story that fits into the context.
        cloze: with how many of the stories the model is asked for the right ending; None asks for none.
        stories: how many stories the model writes for the report; None for no report.
        train: the training text, in which the report looks up words and 8-grams.
        json: print one JSON object.
        decoder: the spec that writes the stories.
    """

    data: str
    column: str | None
    split: str
    separator: str | None
    limit: int | None
    cut: bool
    cloze: int | None
    stories: int | None
    train: str | None
    json: bool
    decoder: str


def run(options: EvalOptions) -> int:
    """Measure the model and print the figures.

    Raises:
        UsageError: an option is out of range, or the stories cannot be read.
    """
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit is {options.limit}; it must be at least 1")
    if options.cloze is not None and options.cloze < FEWEST_CLOZE:
        raise UsageError(f"--cloze is {options.cloze}; it must be at least {FEWEST_CLOZE}")
    decoder = _decoder(options)
    name, header = find_model(options.model)
    from tinystory.data.sources import SourceReport, read_stories

    sources = SourceReport()
    found = read_stories(
        options.data, options.split, column=options.column, separator=options.separator, report=sources
    )
    stories = list(islice(found, options.limit))
    training = read_stories(options.train, report=sources) if options.train is not None else None
    warn(options, sources.notes)
    if training:  # a file without a story is refused now, and not after the model has written
        training = chain([next(training)], training)
    model = load_with_torch(options, name, header)
    from tinystory.evaluation.perplexity import evaluate, unspelled

    with progress_bar("scoring", len(stories), quiet=options.quiet, color=options.color) as progress:
        result = evaluate(model.session, model.tokenizer, stories, cut=options.cut, progress=progress)
    if result.unknown_tokens:
        warn(options, [f"{unspelled(result)}, so its bits per byte are not measured"])
    endings = _cloze(options, model, stories) if options.cloze else None
    report = _story_report(options, model, decoder, stories, training) if decoder else None
    if options.json:
        _print_json(model, result, endings, report)
    else:
        shown = {**report, "spec": shown_spec(decoder)} if report and decoder else None
        _print_text(options, result, endings, shown)
    return 0


def _cloze(options: EvalOptions, model: LoadedModel, stories: Sequence[str]) -> "Cloze":
    """Ask for the endings of evenly spread stories."""
    from tinystory.evaluation.cloze import cloze

    assert options.cloze is not None
    chosen, _ = _real_side(stories, options.cloze, keep_others=False)
    with progress_bar("endings", 4 * len(chosen), quiet=options.quiet, color=options.color) as progress:
        return cloze(model.session, model.tokenizer, chosen, progress=progress)


def _decoder(options: EvalOptions) -> Decoder | None:
    """Return the decoder that writes the stories of the report, or None without a report."""
    if options.stories is None:
        if options.train is not None:
            raise UsageError("--train is for the story report: say with --stories N how many stories to write")
        return None
    if not 1 <= options.stories <= MAX_WRITTEN:
        raise UsageError(f"--stories is {options.stories}; it must be from 1 to {MAX_WRITTEN:,}")
    return parse_spec(options.decoder, find_decoders(options))


# --- the story report ---


def _story_report(
    options: EvalOptions,
    model: LoadedModel,
    decoder: Decoder,
    stories: Sequence[str],
    training: Iterator[str] | None,
) -> dict[str, Any]:
    """Describe stories of the model and as many real ones, as in the JSON.

    With a training text, words and 8-grams are looked up in it. Without one, words are looked up in the real stories
    that are not described themselves.
    """
    from tinystory.evaluation.copied import known_runs
    from tinystory.evaluation.ngrams import ngram_count
    from tinystory.evaluation.report import describe_stories

    assert options.stories is not None
    real, others = _real_side(stories, options.stories, keep_others=training is None)
    if len(real) < options.stories:
        warn(
            options,
            [f"{options.data} has {len(stories):,} stories: {len(real):,} of them are compared with the model's"],
        )
    seed = seed_of(options.seed)
    written = _write(options, model, decoder, seed, options.stories)
    n_cut = sum(story.finish_reason == "length" for story in written)
    if n_cut:
        cut = f"{n_cut:,} of {len(written):,} stories were cut off after {options.max_tokens:,} tokens (-n)"
        warn(options, [cut])
    texts = [story.text for story in written]
    runs = known_runs([*texts, *real], others if training is None else training) if training or others else None
    describe = partial(
        describe_stories,
        runs_in_training=training is not None,
        distinct_ngrams=min(ngram_count(texts), ngram_count(real)),
    )
    sides = {
        "model": describe(
            texts,
            n_tokens=[len(story.tokens) for story in written],
            finished=[story.finish_reason == "eos" for story in written],
            runs=runs and runs[: len(texts)],
        ),
        "real": describe(
            real,
            n_tokens=[len(ids) for ids in model.tokenizer.encode_batch(real)],
            runs=runs and runs[len(texts) :],
        ),
    }
    return {side: dataclasses.asdict(report) for side, report in sides.items()} | {
        "spec": format_spec(decoder),
        "seed": seed,
        "max_tokens": options.max_tokens,
        "cut_off": n_cut,
        "train": options.train,
        "reference_stories": None if training else len(others),
    }


def _real_side(stories: Sequence[str], n: int, *, keep_others: bool) -> tuple[list[str], list[str]]:
    """Return at most n stories, evenly spread, and the other stories.

    Args:
        stories: all real stories.
        n: how many are wanted.
        keep_others: leave at least half of the stories to the others.
    """
    n = min(n, max(1, len(stories) // 2) if keep_others else len(stories))
    chosen = {i * len(stories) // n for i in range(n)}
    real = [story for i, story in enumerate(stories) if i in chosen]
    return real, [story for i, story in enumerate(stories) if i not in chosen]


def _write(options: EvalOptions, model: LoadedModel, decoder: Decoder, seed: int, n_stories: int) -> "list[Story]":
    """Write branches from BOS with one seed."""
    from tinystory.writing.generate import Ended, StoryRequest, write

    numbers = range(n_stories)
    requests = [
        StoryRequest("", decoder, seed=seed, max_new_tokens=options.max_tokens, number=number) for number in numbers
    ]
    stories: dict[int, Story] = {}
    with progress_bar("writing", n_stories, quiet=options.quiet, color=options.color) as progress:
        for start in numbers[::_TOGETHER]:
            for event in apart(write(model.session, model.tokenizer, requests[start : start + _TOGETHER])):
                if isinstance(event, Ended):
                    stories[start + event.story] = event.result
                    progress(len(stories))
    return [stories[number] for number in numbers]


# --- printing ---


def _print_json(
    model: LoadedModel, result: "Evaluation", endings: "Cloze | None", report: dict[str, Any] | None
) -> None:
    record = dataclasses.asdict(result) | {"model": model.name, "model_hash": model.hash_if_known}
    if endings is not None:
        record["cloze"] = dataclasses.asdict(endings)
    if report is not None:
        record["stories_report"] = report
    sys.stdout.write(json.dumps(record) + "\n")


def _print_text(
    options: EvalOptions, result: "Evaluation", endings: "Cloze | None", report: dict[str, Any] | None
) -> None:
    rows = [
        ("bits per byte", "–" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"),
        ("nats per token", f"{result.nats_per_token:.4f}"),
        ("perplexity", f"{result.perplexity:.3f}"),
        ("accuracy", f"{result.accuracy:.1%}"),
        ("tokens", f"{result.tokens:,}"),
        ("bytes", f"{result.bytes:,}"),
        ("stories", f"{result.stories:,}"),
    ]
    if endings is not None:
        rows += [
            ("right endings", f"{endings.accuracy:.1%}"),
            ("  of stories", f"{endings.stories:,}"),
            ("  error", f"± {endings.standard_error:.1%}"),
            ("  by chance", f"{endings.chance:.1%}"),
        ]
    sys.stdout.write("".join(f"{label:<15} {value:>12}\n" for label, value in rows))
    if report is not None:
        _print_report(options, report)


def _print_report(options: EvalOptions, report: dict[str, Any]) -> None:
    from rich.table import Table

    model, real = report["model"], report["real"]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("model", "real", "difference"):
        table.add_column(heading, justify="right")
    for label, field, unit in _TABLE:
        of_model, of_real = model[field], real[field]
        if of_model is not None or of_real is not None:
            comparable = of_model is not None and of_real is not None and field != "stories"
            difference = of_model - of_real if comparable else None
            table.add_row(label, _shown(of_model, unit), _shown(of_real, unit), _shown(difference, unit, "+"))
    console = table_console(options.color)
    console.print()
    console.print(table)
    where = f"in {report['train']}" if report["train"] else f"in {report['reference_stories']:,} other real stories"
    notes = [
        f"Written with {report['spec']}, seed {report['seed']}, at most {report['max_tokens']:,} tokens a story.",
    ]
    if n_grams := model["distinct_ngrams"]:
        notes.append(f"Distinct-n falls as a text grows: on both sides it counts {n_grams:,} n-grams.")
    if real["unknown_words"] is not None:
        notes.append(f"Unknown words are not {where}.")
    console.print("\n" + visible("\n".join(notes)), soft_wrap=True)


def _shown(value: float | None, unit: str, sign: str = "") -> str:
    """Format a figure, or a difference if a sign is given. Shares differ by percentage points (pp)."""
    if value is None:
        return "–"
    if unit == "share":
        return f"{100 * value:+.2f} pp" if sign else f"{value:.2%}"
    return f"{value:{sign},.{0 if unit == 'count' else 1}f}"
