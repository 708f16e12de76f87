"""`tinystory generate --prompts`: a story, or several, from each prompt of a file, as lines of JSON.

A line is the `end` event that `generate --jsonl` gives, with the prompt's `index` and all that `generate --json` tells.
A prompt's seed is the call's plus its index: prompts do not share their luck, and `generate PROMPT -s SEED` with the
seed of a line writes its story again.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystory.checkpoint.shipped import find_model
from tinystory.commands.shared import (
    common_fields,
    event_fields,
    interrupts,
    load_to_write,
    load_with_torch,
    note,
    seed_of,
    warn,
)
from tinystory.data.prompts import PromptFile
from tinystory.decoding import Decoder
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import TinystoryError, UsageError
from tinystory.screen.console import progress_bar
from tinystory.session.loading import LoadedModel
from tinystory.training.ranks import local_rank, place_among_ranks
from tinystory.writing.batches import PlannedStory, rows_that_fit, story_batches
from tinystory.writing.story_lines import StoryLines, line

if TYPE_CHECKING:
    from tinystory.checkpoint import CheckpointHeader
    from tinystory.writing.generate import Ended

__all__ = ["run"]

_MOST_ROWS = 4096
_FEW_STORIES = 200
"""Up to here importing torch costs more than its faster prefill gives back; measured with the shipped model."""
_NOTICE_SECONDS = 30


def run(args: argparse.Namespace) -> int:
    """Write to a file or to standard output; progress goes to standard error."""
    rank, size = place_among_ranks()
    _check(args, size)
    # All that can be wrong is found before torch is imported.
    registry = discover(args.decoder_file)
    warn(args, registry.warnings)
    decoder = parse_spec(args.decoder, registry)
    name, header = find_model(args.model)
    if args.device == "cuda" and size > 1:
        args.device = f"cuda:{local_rank()}"
    with ExitStack() as stack:
        prompts = stack.enter_context(PromptFile(args.prompts))
        lines = None
        if args.out is not None:
            lines = stack.enter_context(_lines(args, rank, size, decoder, header, prompts))
        seed = seed_of(args)
        n_all = len(range(rank, prompts.count, size)) * args.num
        n_done = lines.n_done if lines else 0
        code = 0
        if n_done < n_all:
            if args.compile or n_all - n_done <= _FEW_STORIES:
                model = load_to_write(args, name, header, decoder)
            else:
                model = load_with_torch(args, name, header)
            writer = _Writer(args, model, decoder, seed, prompts, lines)
            with _progress(args, rank, n_done, n_all) as progress:
                code = writer.write(_places(args, rank, size, prompts, lines), progress)
        _tell_the_end(args, rank, size, n_all, lines, f"{format_spec(decoder)} · seed {seed}", code)
    return code


def _check(args: argparse.Namespace, n_ranks: int) -> None:
    if args.prompt is not None:
        raise UsageError("PROMPT and --prompts were both given: put the prompt into the file, or leave one out")
    if args.json:
        raise UsageError("--prompts writes a JSON object a line, not one in all: leave out --json")
    if args.batch_size is not None and not 1 <= args.batch_size <= _MOST_ROWS:
        raise UsageError(f"--batch-size is {args.batch_size}; it must be from 1 to {_MOST_ROWS:,}")
    if n_ranks > 1:
        if args.out is None:
            raise UsageError("several ranks cannot share standard output: give -o FILE, and each writes a part of it")
        if args.prompts == Path("-"):
            raise UsageError("several ranks cannot share standard input: give --prompts a file")
        if args.seed is None:
            raise UsageError("several ranks have to agree on a seed: give one with -s")


def _lines(
    args: argparse.Namespace, rank: int, size: int, decoder: Decoder, header: "CheckpointHeader", prompts: PromptFile
) -> StoryLines:
    """The file to write on, which must be about the same; a seed that was not given is the one found there."""
    from tinystory.checkpoint import model_hash

    subject = {
        "prompts": prompts.digest,
        "model_hash": model_hash(header.directory),
        "spec": format_spec(decoder),
        "dtype": args.dtype,
        "max_tokens": args.max_tokens,
        "stop": args.stop,
    }
    path = args.out if size == 1 else _part(args.out, rank, size)
    lines = StoryLines(path, subject, prompts.count, args.num, seed=args.seed)
    if args.seed is None:
        args.seed = lines.seed
    return lines


def _part(path: Path, rank: int | str, size: int) -> Path:
    """Where a rank writes: another number of ranks shares the prompts otherwise, and so has other files."""
    return path.with_name(f"{path.name}.{rank}-of-{size}")


def _places(
    args: argparse.Namespace, rank: int, size: int, prompts: PromptFile, lines: StoryLines | None
) -> Iterator[PlannedStory]:
    """The stories of this rank that are not there yet: those of every size-th prompt."""
    for index, prompt in enumerate(prompts):
        if index % size == rank:
            for number in range(args.num):
                if lines is None or not lines.has(index, number):
                    yield PlannedStory(index, number, prompt)


@dataclass(frozen=True)
class _Writer:
    """Batches become lines."""

    args: argparse.Namespace
    model: LoadedModel
    decoder: Decoder
    seed: int
    prompts: PromptFile
    lines: StoryLines | None

    def write(self, places: Iterator[PlannedStory], progress: Callable[[int], None]) -> int:
        """Write all of them, or until a signal comes; the exit code.

        Raises:
            TinystoryError: when all else is written, where nothing can be written from some prompts.
        """
        rows = self.args.batch_size or rows_that_fit(self.model.header.config)
        common = self._common()
        lost: list[int] = []
        with interrupts() as interrupted:
            for batch in story_batches(places, self.model.tokenizer, rows):
                known = [place for place in batch if place.prompt_ids]
                lost += [place.index for place in batch if not place.prompt_ids]
                for place, event in self._ended(known, lambda: bool(interrupted)):
                    self._add({"index": place.index, **event_fields(event), **common, "seed": self.seed + place.index})
                    progress(len(event.result.tokens))
                if self.lines:
                    self.lines.sync()
                if interrupted:
                    return 128 + interrupted[0]
        if lost:
            raise TinystoryError(
                f"{len(lost)} stories could not be begun: their prompts have no token in this model's vocabulary, and "
                f"it has no BOS; the first is that of index {min(lost)}"
            )
        return 0

    def _ended(self, places: list[PlannedStory], cancel: Callable[[], bool]) -> "Iterator[tuple[PlannedStory, Ended]]":
        """The stories of a batch as they end; not those that a signal has cut off."""
        from tinystory.writing.generate import Ended, StoryRequest, write

        requests = [
            StoryRequest(
                place.prompt,
                self.decoder,
                seed=self.seed + place.index,
                max_new_tokens=self.args.max_tokens,
                stop=tuple(self.args.stop),
                number=place.number,
                cancel=cancel,
                prompt_ids=place.prompt_ids,
            )
            for place in places
        ]
        for event in write(self.model.session, self.model.tokenizer, requests):
            if isinstance(event, Ended) and event.result.finish_reason != "cancelled":
                yield places[event.story], Ended(places[event.story].number, event.result)

    def _common(self) -> dict[str, Any]:
        """What every line says; the same for all."""
        found = common_fields(self.args, self.model, self.seed)
        return {"spec": format_spec(self.decoder), **found, "stop": self.args.stop, "prompts": self.prompts.digest}

    def _add(self, record: Mapping[str, Any]) -> None:
        if self.lines:
            self.lines.add(record)
        else:
            sys.stdout.write(line(record).decode())
            sys.stdout.flush()


@contextmanager
def _progress(args: argparse.Namespace, rank: int, n_done: int, n_all: int) -> Iterator[Callable[[int], None]]:
    """A bar where standard error is a terminal, else a line now and then.

    Yields:
        A function that takes how many tokens a finished story has.
    """
    in_the_way = args.out is None and sys.stdout.isatty()  # the stories themselves are seen
    if args.quiet or rank or in_the_way:
        yield lambda _tokens: None
        return
    started = said = time.monotonic()
    stories, tokens = n_done, 0
    with progress_bar(args, "stories", n_all) as bar:

        def add(more: int) -> None:
            nonlocal stories, tokens, said
            stories, tokens, now = stories + 1, tokens + more, time.monotonic()
            speed = f"{tokens / max(now - started, 1e-9):,.0f} tokens/s"
            bar(stories, description=speed)
            if not sys.stderr.isatty() and now - said >= _NOTICE_SECONDS:
                said = now
                note(args, f"{stories:,} of {n_all:,} stories · {speed}")

        yield add


def _tell_the_end(
    args: argparse.Namespace, rank: int, size: int, n_all: int, lines: StoryLines | None, how: str, code: int
) -> None:
    if lines is None:
        note(args, how)
        return
    stopped = "; the same command goes on from here" if code > 128 else ""
    if rank == 0:
        note(args, f"{lines.n_done:,} of {n_all:,} stories are in {lines.path} · {how}{stopped}")
    if rank == 0 and size > 1 and code <= 128:
        parts, whole = _part(args.out, "*", size), args.out
        note(args, f"this was rank 0 of {size}; when all have ended, join what they wrote: cat {parts} > {whole}")
