"""`tinystory study`: a grid of decoders over many prompts, measured against real stories."""

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tinystory
from tinystory.checkpoint.shipped import find_model
from tinystory.commands.shared import load_with_torch, warn
from tinystory.decoding import Decoder
from tinystory.decoding.plugins import Registry, discover
from tinystory.errors import TinystoryError, UsageError
from tinystory.safe.showing import visible
from tinystory.safe.writing import write_atomically
from tinystory.screen.console import progress_bar, table_console
from tinystory.session.loading import LoadedModel
from tinystory.study.grid import BUILT_IN_GRID, FEWEST, decoders_of, read_grid, read_prompts

if TYPE_CHECKING:
    from tinystory.study.collection import Plan
    from tinystory.study.excerpts import Excerpt
    from tinystory.study.journal import Journal

__all__ = ["run"]

_FROM_SCRATCH = 44
_MOST_SEEDS = 100


def run(args: argparse.Namespace) -> int:
    """Write what is missing, measure, and write down what was found."""
    _check(args)
    # All that can be wrong is found before torch is imported.
    registry = discover(args.decoder_file)
    warn(args, registry.warnings)
    decoders, skipped = _decoders(args, registry)
    if skipped:
        reasons = ", ".join(dict.fromkeys(skipped.values()))
        warn(args, [f"{len(skipped)} decoders of the grid are left out: {reasons}"])
    name, header = find_model(args.model)
    from tinystory.data.sources import read_stories

    prompts = _prompts(args)
    stories = read_stories(args.real, split="validation")
    training = read_stories(args.train) if args.train else None
    args.out.mkdir(parents=True, exist_ok=True)
    model = load_with_torch(args, name, header)
    from tinystory.evaluation.ngrams import words
    from tinystory.study.collection import Plan, collect
    from tinystory.study.excerpts import real_groups
    from tinystory.study.findings import findings

    seeds = tuple(range(args.seed, args.seed + args.seeds))
    plan = Plan(prompts, decoders, seeds, min(args.search_seeds or args.seeds, args.seeds), args.max_tokens)
    real = real_groups(stories, prompts, model.tokenizer, plan.max_tokens)
    journal = _journal(args, model, plan, real)
    with journal, progress_bar(args, "study", 0) as progress:

        def show(done: int, total: int, label: str) -> None:
            progress(done, total=total, description=visible(label))

        try:
            failed = collect(model.session, model.tokenizer, plan, real, journal, show)
        except KeyboardInterrupt:
            warn(args, ["stopped; the same command goes on from here"])
            raise
    warn(args, [f"{spec} failed: {reason}" for spec, reason in failed.items()])
    if len(failed) == len(decoders):
        raise TinystoryError("every decoder failed")
    vocabulary = {word for story in training for word in words(story)} if training else None
    found = findings(plan, real, journal.records, vocabulary=vocabulary, failed=failed)
    found |= _surroundings(args, model, skipped)
    _write_down(args, found)
    if args.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        _print(args, found)
    return 0


def _check(args: argparse.Namespace) -> None:
    if not 1 <= args.seeds <= _MOST_SEEDS:
        raise UsageError(f"--seeds is {args.seeds}; it must be from 1 to {_MOST_SEEDS}")
    if args.search_seeds is not None and args.search_seeds < 1:
        raise UsageError(f"--search-seeds is {args.search_seeds}; it must be at least 1")
    if args.limit is not None and args.limit < FEWEST:
        raise UsageError(f"--limit is {args.limit}; a study needs at least {FEWEST} prompts")
    if args.seed is None:
        raise UsageError("a study goes on only with the seed it was begun with: give a number, not random")


def _decoders(args: argparse.Namespace, registry: Registry) -> tuple[dict[str, Decoder], dict[str, str]]:
    """Those of the command line, and what is installed of those of the grid's file; without both, of the built-in grid.

    The second result is why a spec was left out.
    """
    decoders, skipped = decoders_of(args.decoders, registry) if args.decoders else ({}, {})
    grid = read_grid(args.grid) if args.grid else () if args.decoders else BUILT_IN_GRID
    if grid:
        more, skipped = decoders_of(grid, registry, skip_unknown=True)
        decoders |= more
    return decoders, skipped


def _prompts(args: argparse.Namespace) -> tuple[str, ...]:
    """From the file; without one, stories start from scratch."""
    if args.prompts is None:
        return ("",) * (args.limit or _FROM_SCRATCH)
    return read_prompts(args.prompts, args.limit)


def _journal(
    args: argparse.Namespace, model: LoadedModel, plan: "Plan", real: "Sequence[Sequence[Excerpt]]"
) -> "Journal":
    """The one in the folder, which must be about the same; decoders and seeds may be added to it."""
    from tinystory.data.prompts import digest
    from tinystory.study.journal import Journal

    texts = [excerpt.text for group in real for excerpt in group]
    subject = {
        "model_hash": model.hash,
        "dtype": model.dtype,
        "max_tokens": plan.max_tokens,
        "prompts": digest(plan.prompts),
        "real_stories": digest(texts),
        "version": tinystory.__version__,
    }
    return Journal(args.out / "journal.jsonl", subject)


def _surroundings(args: argparse.Namespace, model: LoadedModel, skipped: Mapping[str, str]) -> dict[str, Any]:
    """What else the page tells; of files only their names."""
    import torch

    return {
        "command": _command(args),
        "model": model.name if model.name.isidentifier() else Path(model.name).name,
        "model_hash": model.hash,
        "dtype": model.dtype,
        "device": model.device,
        "threads": torch.get_num_threads(),
        "skipped": dict(skipped),
        "versions": {
            "tinystory": tinystory.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _command(args: argparse.Namespace) -> str:
    """The command line that makes the page again, with the files' names but not the folders of this machine."""
    words = ["tinystory", "study"]
    given: list[tuple[str, object]] = [
        *(("-d", spec) for spec in args.decoders),
        ("--grid", args.grid and args.grid.name),
        ("--prompts", args.prompts and args.prompts.name),
        ("--limit", args.limit),
        ("--real", Path(args.real).name),
        ("--train", args.train and Path(args.train).name),
        *(("--decoder-file", file.name) for file in args.decoder_file),
        ("--seeds", args.seeds),
        ("--search-seeds", args.search_seeds),
        ("-s", args.seed),
        ("-n", args.max_tokens),
        ("-m", Path(args.model).name if args.model else None),
        ("-o", args.out.name),
        ("--page", args.page and args.page.name),
    ]
    for flag, value in given:
        if value is not None:
            words += [flag, str(value)]
    return shlex.join(words)


# --- what is left behind ---


def _write_down(args: argparse.Namespace, found: Mapping[str, Any]) -> None:
    """study.json, the page, and beside the page a folder of its name with the plots."""
    from tinystory.study.page import page

    write_atomically(args.out / "study.json", json.dumps(found, indent=1).encode() + b"\n")
    target = args.page or args.out / "study.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    plots = _plot(args, found, target.parent / target.stem)
    links = [f"{target.stem}/{name}" for name in plots]
    write_atomically(target, page(found, found["command"], links).encode())


def _plot(args: argparse.Namespace, found: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw into a folder; without matplotlib there are no plots, and a word about it."""
    from tinystory.study.plots import plot_profiles, plot_quality

    folder.mkdir(exist_ok=True)
    drawn = {"quality.png": partial(plot_quality, found), "profiles.png": partial(plot_profiles, found)}
    try:
        for name, draw in drawn.items():
            draw(folder / name)
    except TinystoryError as error:
        warn(args, [str(error)])
        return []
    return list(drawn)


def _print(args: argparse.Namespace, found: Mapping[str, Any]) -> None:
    from rich.table import Table

    from tinystory.study.table import cells, headings

    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings(found)):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for row in cells(found):
        table.add_row(*row)
    console = table_console(args)
    console.print(table)
    numbers = {"prompt": found["prompts"], "seed": len(found["seeds"])}
    counts = [f"{n} {what}{'' if n == 1 else 's'}" for what, n in numbers.items()]
    notes = [f"{', '.join(counts)}, at most {found['max_tokens']} tokens a story."]
    if found["winner"] is not None:
        notes.append(f"Nearest to real stories: {found['winner']}")
    if found["tied"]:
        notes.append(f"Tied with it (=): {' · '.join(found['tied'])}")
    notes.append(f"{args.page or args.out / 'study.md'} has the intervals and the plots.")
    console.print("\n" + visible("\n".join(notes)), soft_wrap=True)
