"""`tinystory study`: compare many decoders over many prompts, measured against real stories."""

import json
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tinystory
from tinystory.checkpoint.shipped import find_model
from tinystory.commands.shared.decoders import find_decoders
from tinystory.commands.shared.groups import StoryOptions
from tinystory.commands.shared.models import load_with_torch
from tinystory.commands.shared.notices import warn
from tinystory.decoding import Decoder
from tinystory.decoding.plugins import Registry
from tinystory.errors import TinystoryError, UsageError
from tinystory.safe.showing import visible
from tinystory.safe.writing import refuse_input, write_atomically
from tinystory.screen.console import progress_bar, table_console
from tinystory.session.loading import LoadedModel
from tinystory.study.excerpts import openings
from tinystory.study.grid import BUILT_IN_GRID, FEWEST, decoders_of, read_grid, read_prompts

if TYPE_CHECKING:
    from tinystory.study.collection import Plan
    from tinystory.study.excerpts import Excerpt
    from tinystory.study.journal import Journal

__all__ = ["StudyOptions", "run"]

_N_OPENINGS = 44
"""The number of prompts that are taken from the real stories if there is no file of prompts."""

_MOST_SEEDS = 100


@dataclass(frozen=True, kw_only=True)
class StudyOptions(StoryOptions):
    """The options of `tinystory study`.

    Attributes:
        real: held-out real stories: a file, a saved dataset or the name of one on the hub.
        out: the folder of the study.
        prompts: a file of prompts; None takes the openings of the first real stories.
        limit: the number of prompts to take, from the first on; None takes all of a file, and 44 openings.
        train: the training text, whose words are known words.
        decoders: the specs to study.
        grid: a file with more specs.
        seeds: the number of seeds; the first one is `seed`.
        search_seeds: how many of these seeds searches write with, from the first on; None means all.
        page: the file of the page; None is study.md in `out`.
        json: print one JSON object instead of the table.
    """

    real: str
    out: Path
    prompts: Path | None
    limit: int | None
    train: str | None
    decoders: tuple[str, ...]
    grid: Path | None
    seeds: int
    search_seeds: int | None
    page: Path | None
    json: bool

    @property
    def page_file(self) -> Path:
        """The file of the page."""
        return self.page or self.out / "study.md"


def run(options: StudyOptions) -> int:
    """Write the stories that are missing, measure all of them, and write the page.

    Raises:
        UsageError: an option is out of range, or the folder belongs to another study.
        TinystoryError: every decoder failed.
    """
    first_seed = _check(options)
    # All mistakes of the user are found before torch is imported.
    decoders, skipped = _decoders(options, find_decoders(options))
    if skipped:
        reasons = ", ".join(dict.fromkeys(skipped.values()))
        warn(options, [f"{len(skipped)} decoders of the grid are left out: {reasons}"])
    name, header = find_model(options.model)
    from tinystory.data.sources import SourceReport, read_stories

    sources = SourceReport()
    stories = iter(read_stories(options.real, split="validation", report=sources))
    prompts = _prompts(options, stories)
    training = read_stories(options.train, report=sources) if options.train else None
    warn(options, sources.notes)
    options.out.mkdir(parents=True, exist_ok=True)
    model = load_with_torch(options, name, header)
    from tinystory.evaluation.ngrams import words
    from tinystory.study.collection import Plan
    from tinystory.study.excerpts import real_groups
    from tinystory.study.findings import findings
    from tinystory.study.table import as_shown

    seeds = tuple(range(first_seed, first_seed + options.seeds))
    n_search_seeds = min(options.search_seeds or options.seeds, options.seeds)
    plan = Plan(prompts, decoders, seeds, n_search_seeds, options.max_tokens)
    real = real_groups(stories, prompts, model.tokenizer, plan.max_tokens)
    journal = _journal(options, model, plan, real)
    failed = _collect(options, model, plan, real, journal)
    vocabulary = {word for story in training for word in words(story)} if training else None
    results = findings(plan, real, journal.records, vocabulary=vocabulary, failed=failed)
    results |= _circumstances(options, model, skipped)
    shown = as_shown(results, decoders)
    _write_files(options, results, shown)
    if options.json:
        sys.stdout.write(json.dumps(results) + "\n")
    else:
        _print(options, shown)
    return 0


def _check(options: StudyOptions) -> int:
    """Refuse options that are out of range. Return the first seed."""
    if not 1 <= options.seeds <= _MOST_SEEDS:
        raise UsageError(f"--seeds is {options.seeds}; it must be from 1 to {_MOST_SEEDS}")
    if options.search_seeds is not None and options.search_seeds < 1:
        raise UsageError(f"--search-seeds is {options.search_seeds}; it must be at least 1")
    if options.limit is not None and options.limit < FEWEST:
        raise UsageError(f"--limit is {options.limit}; a study needs at least {FEWEST} prompts")
    if options.seed is None:
        raise UsageError("a study can be continued only with the seed it was begun with: give a number, not random")
    inputs = (options.real, options.prompts, options.train, options.grid)
    refuse_input(options.page_file, [Path(name) for name in inputs if name])
    return options.seed


def _decoders(options: StudyOptions, registry: Registry) -> tuple[dict[str, Decoder], dict[str, str]]:
    """Return the decoders of the study, and the reason for each spec of a grid that is left out.

    The decoders are those of the command line and those of the grid's file. Without both, they are the built-in grid.
    """
    decoders, skipped = decoders_of(options.decoders, registry) if options.decoders else ({}, {})
    grid = read_grid(options.grid) if options.grid else () if options.decoders else BUILT_IN_GRID
    if grid:
        more, skipped = decoders_of(grid, registry, skip_unknown=True)
        decoders |= more
    return decoders, skipped


def _prompts(options: StudyOptions, stories: Iterator[str]) -> tuple[str, ...]:
    """Return the prompts of the file, or the openings of the next real stories, which are then used for nothing else.

    Raises:
        UsageError: there are too few stories.
    """
    if options.prompts is not None:
        return read_prompts(options.prompts, options.limit)
    n = options.limit or _N_OPENINGS
    prompts = openings(stories, n)
    if len(prompts) < n:
        raise UsageError(
            f"{options.real} has {len(prompts)} stories; {n} prompts are taken from their openings: "
            "give more stories (--real), fewer prompts (--limit), or a file of prompts (--prompts)"
        )
    return prompts


def _journal(options: StudyOptions, model: LoadedModel, plan: "Plan", real: "Sequence[Sequence[Excerpt]]") -> "Journal":
    """Open the journal in the folder. It must have the same model, prompts and real stories; decoders may be new."""
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
    return Journal(options.out / "journal.jsonl", subject)


def _collect(
    options: StudyOptions, model: LoadedModel, plan: "Plan", real: "Sequence[Sequence[Excerpt]]", journal: "Journal"
) -> dict[str, str]:
    """Write the missing stories into the journal. Return the specs that failed, with the reason of each.

    Raises:
        TinystoryError: every decoder failed.
    """
    from tinystory.study.collection import collect

    with journal, progress_bar("study", 0, quiet=options.quiet, color=options.color) as progress:

        def show(done: int, total: int, label: str) -> None:
            progress(done, total=total, description=visible(label))

        try:
            with redirect_stdout(sys.stderr):  # a decoder of somebody else may print
                failed = collect(model.session, model.tokenizer, plan, real, journal, show)
        except KeyboardInterrupt:
            warn(options, ["stopped; the same command goes on from here"])
            raise
    warn(options, [f"{spec} failed: {reason}" for spec, reason in failed.items()])
    if len(failed) == len(plan.decoders):
        raise TinystoryError("every decoder failed")
    return failed


def _circumstances(options: StudyOptions, model: LoadedModel, skipped: Mapping[str, str]) -> dict[str, Any]:
    """Return the other facts of the page: command, model, device and versions. A file appears only with its name."""
    import torch

    return {
        "command": _command(options),
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


def _command(options: StudyOptions) -> str:
    """Return the command line that makes the page again. It names files without their folders."""
    words = ["tinystory", "study"]
    flags: list[tuple[str, object]] = [
        *(("-d", spec) for spec in options.decoders),
        ("--grid", options.grid and options.grid.name),
        ("--prompts", options.prompts and options.prompts.name),
        ("--limit", options.limit),
        ("--real", Path(options.real).name),
        ("--train", options.train and Path(options.train).name),
        *(("--decoder-file", file.name) for file in options.decoder_file),
        ("--seeds", options.seeds),
        ("--search-seeds", options.search_seeds),
        ("-s", options.seed),
        ("-n", options.max_tokens),
        ("-m", Path(options.model).name if options.model else None),
        ("-o", options.out.name),
        ("--page", options.page and options.page.name),
    ]
    for flag, value in flags:
        if value is not None:
            words += [flag, str(value)]
    return shlex.join(words)


# --- output ---


def _write_files(options: StudyOptions, results: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
    """Write study.json, the page, and beside the page a folder with its name for the plots.

    Args:
        options: the options of the command.
        results: the results with canonical specs, for study.json.
        shown: the results with specs as people see them, for the page and the plots.
    """
    from tinystory.study.page import page

    write_atomically(options.out / "study.json", json.dumps(results, indent=1).encode() + b"\n")
    target = options.page_file
    target.parent.mkdir(parents=True, exist_ok=True)
    plots = _plot(options, shown, target.parent / target.stem)
    links = [f"{target.stem}/{name}" for name in plots]
    write_atomically(target, page(shown, results["command"], links).encode())


def _plot(options: StudyOptions, results: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw the plots into a folder and return their names. Without matplotlib, print a notice and return no name."""
    from tinystory.study.plots import plot_profiles, plot_quality

    folder.mkdir(exist_ok=True)
    drawn = {"quality.png": partial(plot_quality, results), "profiles.png": partial(plot_profiles, results)}
    try:
        for name, draw in drawn.items():
            draw(folder / name)
    except TinystoryError as error:
        warn(options, [str(error)])
        return []
    return list(drawn)


def _print(options: StudyOptions, results: Mapping[str, Any]) -> None:
    from rich.table import Table

    from tinystory.study.table import cells, headings

    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings(results)):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for row in cells(results):
        table.add_row(*row)
    console = table_console(options.color)
    console.print(table)
    numbers = {"prompt": results["prompts"], "seed": len(results["seeds"])}
    counts = [f"{n} {what}{'' if n == 1 else 's'}" for what, n in numbers.items()]
    notes = [f"{', '.join(counts)}, at most {results['max_tokens']} tokens a story."]
    if results["winner"] is not None:
        notes.append(f"Nearest to real stories: {results['winner']}")
    if results["tied"]:
        notes.append(f"Tied with it (=): {' · '.join(results['tied'])}")
    notes.append(f"{options.page_file} has the intervals and the plots.")
    console.print("\n" + visible("\n".join(notes)), soft_wrap=True)
