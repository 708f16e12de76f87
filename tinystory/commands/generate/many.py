"""`tinystory generate --prompts`: one story, or several, from each prompt of a file, as lines of JSON.

A line is the `end` event of `generate --jsonl` with the index of the prompt and with all fields of `generate --json`.
The seed of a prompt is the seed of the call plus the index. So prompts do not share their noise, and
`generate PROMPT -s SEED` with the seed of a line writes its story again.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystory.checkpoint.shipped import find_model
from tinystory.commands.generate import GenerateOptions
from tinystory.commands.shared.decoders import find_decoders
from tinystory.commands.shared.fields import common_fields, event_fields
from tinystory.commands.shared.models import load_to_write, load_with_torch
from tinystory.commands.shared.notices import note, warn
from tinystory.commands.shared.prompt import seed_of
from tinystory.commands.shared.streams import apart
from tinystory.data.prompts import PromptFile
from tinystory.decoding import Decoder
from tinystory.decoding.spec import format_spec, parse_spec, shown_spec
from tinystory.decoding.spec_text import temperature_notes
from tinystory.errors import TinystoryError, UsageError
from tinystory.interrupts import Interrupts, exit_code
from tinystory.screen.console import progress_bar
from tinystory.session.loading import LoadedModel, code_for
from tinystory.training.ranks import local_rank, place_among_ranks
from tinystory.writing.batches import PlannedStory, rows_that_fit, story_batches
from tinystory.writing.generate import Ended, StoryRequest, write
from tinystory.writing.story_lines import StoryLines, line

if TYPE_CHECKING:
    from tinystory.checkpoint import CheckpointHeader

__all__ = ["run"]

_MOST_ROWS = 4096
_FEW_STORIES = 200
"""Up to this number, importing torch takes longer than its faster prefill saves; measured with the shipped model."""
_NOTICE_SECONDS = 30


@dataclass(frozen=True)
class _Share:
    """The share of the prompts that this process writes: of every `size` prompts, the one with number `rank`."""

    rank: int
    size: int

    def count(self, n_prompts: int) -> int:
        """Return how many of the prompts belong to the share."""
        return len(range(self.rank, n_prompts, self.size))

    def part(self, path: Path, rank: int | str | None = None) -> Path:
        """Return the file that a rank writes; None stands for this rank.

        The number of ranks is part of the name, because other ranks share the prompts in another way.
        """
        if self.size == 1:
            return path
        return path.with_name(f"{path.name}.{self.rank if rank is None else rank}-of-{self.size}")


def run(options: GenerateOptions, file: Path) -> int:
    """Write from the prompts of a file, to a file or to standard output, and return the exit code.

    Raises:
        UsageError: options do not go together or are out of range, or a file is wrong.
    """
    share = _Share(*place_among_ranks())
    _check(options, file, share)
    # All mistakes of the user are found before torch is imported.
    decoder = parse_spec(options.decoder, find_decoders(options))
    warn(options, temperature_notes(decoder))
    name, header = find_model(options.model)
    if options.device == "cuda" and share.size > 1:
        options = replace(options, device=f"cuda:{local_rank()}")
    with ExitStack() as stack:
        prompts = stack.enter_context(PromptFile(file))
        lines = None
        if options.out is not None:
            lines = stack.enter_context(_lines(options, share.part(options.out), decoder, header, prompts))
            if options.seed is None:
                options = replace(options, seed=lines.seed)
        options = replace(options, seed=seed_of(options.seed))
        n_all = share.count(prompts.count) * options.num
        n_done = lines.n_done if lines else 0
        code = 0
        if n_done < n_all:
            compiled = code_for(header, options.dtype, options.device, options.engine) is not None
            light = compiled or n_all - n_done <= _FEW_STORIES
            model = load_to_write(options, name, header, decoder) if light else load_with_torch(options, name, header)
            writer = _Writer(options, model, decoder, prompts, lines)
            with _progress(options, share, n_done, n_all) as progress:
                code = writer.write(_places(options, share, prompts, lines), progress)
        how = f"{shown_spec(decoder)} · seed {options.seed}"
        if lines is None:
            note(options, how)
        elif share.rank == 0:
            _report_file(options, share, lines, n_all, how, stopped=code > 128)
    return code


def _check(options: GenerateOptions, file: Path, share: _Share) -> None:
    if options.prompt is not None:
        raise UsageError("PROMPT and --prompts were both given: put the prompt into the file, or leave one out")
    if options.json:
        raise UsageError("--prompts writes a JSON object on each line, not one for all: leave out --json")
    if options.batch_size is not None and not 1 <= options.batch_size <= _MOST_ROWS:
        raise UsageError(f"--batch-size is {options.batch_size}; it must be from 1 to {_MOST_ROWS:,}")
    if share.size > 1:
        if options.out is None:
            raise UsageError("several ranks cannot share standard output: give -o FILE, and each writes a part of it")
        if file == Path("-"):
            raise UsageError("several ranks cannot share standard input: give --prompts a file")
        if options.seed is None:
            raise UsageError("several ranks have to agree on a seed: give one with -s")


def _lines(
    options: GenerateOptions, path: Path, decoder: Decoder, header: "CheckpointHeader", prompts: PromptFile
) -> StoryLines:
    """Open the file of stories. If it has stories, they must come from the same model, decoder and prompts."""
    from tinystory.checkpoint import model_hash

    subject = {
        "prompts": prompts.digest,
        "model_hash": model_hash(header.directory),
        "spec": format_spec(decoder),
        "dtype": options.dtype,
        "max_tokens": options.max_tokens,
        "stop": list(options.stop),
    }
    return StoryLines(path, subject, prompts.count, options.num, seed=options.seed)


def _places(
    options: GenerateOptions, share: _Share, prompts: PromptFile, lines: StoryLines | None
) -> Iterator[PlannedStory]:
    """Yield the stories of this share that are not written yet."""
    for index, prompt in enumerate(prompts):
        if index % share.size == share.rank:
            for number in range(options.num):
                if lines is None or not lines.has(index, number):
                    yield PlannedStory(index, number, prompt)


@dataclass(frozen=True)
class _Writer:
    """Writes batches of stories as lines. The options have the seed of the first prompt."""

    options: GenerateOptions
    model: LoadedModel
    decoder: Decoder
    prompts: PromptFile
    lines: StoryLines | None

    def write(self, places: Iterator[PlannedStory], progress: Callable[[int], None]) -> int:
        """Write all stories, or until a signal comes, and return the exit code.

        Raises:
            TinystoryError: nothing can be written from some prompts; all other stories are written before.
        """
        rows = self.options.batch_size or rows_that_fit(self.model.header.config)
        common = self._common()
        without_token: list[int] = []
        with Interrupts() as interrupts:
            for batch in story_batches(places, self.model.tokenizer, rows):
                usable = [place for place in batch if place.prompt_ids]
                without_token += [place.index for place in batch if not place.prompt_ids]
                for place, event in self._ended(usable, lambda: bool(interrupts.received)):
                    seed = self._seed(place)
                    self._add({"index": place.index, **event_fields(event), **common, "seed": seed})
                    progress(len(event.result.tokens))
                if self.lines:
                    self.lines.sync()
                if interrupts.received:
                    return exit_code(interrupts.received)
        if without_token:
            raise TinystoryError(
                f"{len(without_token)} stories could not be begun: their prompts have no token, and this model's "
                f"vocabulary has no BOS; the first is the prompt with index {min(without_token)}"
            )
        return 0

    def _seed(self, place: PlannedStory) -> int:
        assert self.options.seed is not None
        return self.options.seed + place.index

    def _ended(self, places: list[PlannedStory], cancel: Callable[[], bool]) -> Iterator[tuple[PlannedStory, Ended]]:
        """Yield the stories of a batch as they end, but not those that a signal has cut off."""
        requests = [
            StoryRequest(
                place.prompt, self.decoder, seed=self._seed(place), max_new_tokens=self.options.max_tokens,
                stop=self.options.stop, number=place.number, cancel=cancel, prompt_ids=place.prompt_ids,
            )
            for place in places
        ]  # fmt: skip
        for event in apart(write(self.model.session, self.model.tokenizer, requests)):
            if isinstance(event, Ended) and event.result.finish_reason != "cancelled":
                yield places[event.story], Ended(places[event.story].number, event.result)

    def _common(self) -> dict[str, Any]:
        """Return the fields that every line has, the seed of the call among them."""
        assert self.options.seed is not None
        common = common_fields(self.options, self.model, self.options.seed)
        spec = format_spec(self.decoder)
        return {"spec": spec, **common, "stop": list(self.options.stop), "prompts": self.prompts.digest}

    def _add(self, record: Mapping[str, Any]) -> None:
        if self.lines:
            self.lines.add(record)
        else:
            sys.stdout.write(line(record).decode())
            sys.stdout.flush()


@contextmanager
def _progress(options: GenerateOptions, share: _Share, n_done: int, n_all: int) -> Iterator[Callable[[int], None]]:
    """Show a bar if standard error is a terminal, else a line now and then.

    Yields:
        A function that takes the number of tokens of a story that has ended.
    """
    stories_are_seen = options.out is None and sys.stdout.isatty()
    if options.quiet or share.rank or stories_are_seen:
        yield lambda _tokens: None
        return
    started = last_notice = time.monotonic()
    stories, tokens = n_done, 0
    with progress_bar("stories", n_all, quiet=options.quiet, color=options.color) as bar:

        def add(more: int) -> None:
            nonlocal stories, tokens, last_notice
            stories, tokens, now = stories + 1, tokens + more, time.monotonic()
            speed = f"{tokens / max(now - started, 1e-9):,.0f} tokens/s"
            bar(stories, description=speed)
            if not sys.stderr.isatty() and now - last_notice >= _NOTICE_SECONDS:
                last_notice = now
                note(options, f"{stories:,} of {n_all:,} stories · {speed}")

        yield add


def _report_file(
    options: GenerateOptions, share: _Share, lines: StoryLines, n_all: int, how: str, *, stopped: bool
) -> None:
    """Print how many stories the file has, and how to go on or how to join the files of all ranks."""
    assert options.out is not None
    go_on = "; the same command goes on from here" if stopped else ""
    note(options, f"{lines.n_done:,} of {n_all:,} stories are in {lines.path} · {how}{go_on}")
    if share.size > 1 and not stopped:
        parts = share.part(options.out, "*")
        note(options, f"this was rank 0 of {share.size}; when all ranks have ended, join: cat {parts} > {options.out}")
