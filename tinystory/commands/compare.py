"""`tinystory compare`: one prompt, several decoders, the same noise, side by side."""

import argparse
import json
import sys
from collections.abc import Sequence
from shutil import get_terminal_size
from typing import Any

from tinystory.checkpoint.shipped import find_model
from tinystory.commands.shared import (
    check_stop,
    common_fields,
    event_fields,
    import_torch_meanwhile,
    interrupts,
    load_to_write,
    note,
    prompt_of,
    seed_of,
    story_fields,
    styled,
    warn,
)
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import TinystoryError
from tinystory.evaluation.comparison import Measures, check_count, measures, requests
from tinystory.safe.showing import visible
from tinystory.screen.columns import Columns
from tinystory.session.loading import LoadedModel
from tinystory.writing.generate import Ended, Story, StoryRequest, Text, TextEvent, Trimmed, write

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Write to standard output: columns on a terminal, else plain text or JSON."""
    check_count(len(args.decoders))
    check_stop(args)
    # All that can be wrong is found before torch is imported.
    registry = discover(args.decoder_file)
    warn(args, registry.warnings)
    decoders = [parse_spec(spec, registry) for spec in args.decoders]
    name, header = find_model(args.model)
    import_torch_meanwhile(args, header, *decoders)
    prompt, seed = prompt_of(args), seed_of(args)
    with interrupts() as interrupted:
        model = load_to_write(args, name, header, *decoders)
        asked = requests(prompt, decoders, seed, args.max_tokens, args.stop, lambda: bool(interrupted))
        printer = _form(args)(args, model, asked)
        try:
            for event in write(model.session, model.tokenizer, asked):
                printer.show(event)
        except TinystoryError:
            printer.broken()
            raise
        printer.end()
    return 128 + interrupted[0] if interrupted else 0


def _form(args: argparse.Namespace) -> "type[_Printer]":
    if args.jsonl:
        return _JsonLines
    if args.json:
        return _Json
    return _SideBySide if sys.stdout.isatty() else _Piped


class _Printer:
    """Shows events in one form."""

    def __init__(self, args: argparse.Namespace, model: LoadedModel, asked: Sequence[StoryRequest]) -> None:
        self.args, self.model, self.prompt, self.seed = args, model, asked[0].prompt, asked[0].seed
        self.specs = [format_spec(request.decoder) for request in asked]
        self.stories: dict[int, Story] = {}
        self.trimmed: list[str] = []

    def show(self, event: TextEvent) -> None:
        """Take one text event."""
        if isinstance(event, Ended):
            self.stories[event.story] = event.result
        elif isinstance(event, Trimmed):
            self.trimmed.append(self.specs[event.story])

    def end(self) -> None:
        """All stories have ended."""
        # Said at the end: a line in between would stand among the columns.
        outgrown = "has outgrown the model's context: its oldest sentences were out of sight"
        warn(self.args, [f"the story of {spec} {outgrown}" for spec in self.trimmed])

    def broken(self) -> None:
        """An error follows on standard error."""

    def story(self, index: int) -> dict[str, Any]:
        """What holds for one story."""
        story = self.stories[index]
        found = measures(story)
        shares = {"distinct_2": found.distinct_2, "repeated_4grams": found.repeated_4grams}
        return {"spec": self.specs[index]} | story_fields(story) | {"statistics": story.statistics | shares}

    def common(self) -> dict[str, Any]:
        """What holds for all of them."""
        return common_fields(self.args, self.model, self.seed)


class _SideBySide(_Printer):
    """Columns, row by row as they are complete."""

    def __init__(self, args: argparse.Namespace, model: LoadedModel, asked: Sequence[StoryRequest]) -> None:
        super().__init__(args, model, asked)
        self.columns = Columns(self.specs, get_terminal_size().columns, color=styled(args, sys.stdout))
        for index in range(len(asked)):
            _print(self.columns.add(index, self.prompt))

    def show(self, event: TextEvent) -> None:
        super().show(event)
        if isinstance(event, Text):
            _print(self.columns.add(event.story, event.text))
        elif isinstance(event, Ended):
            footer = [] if self.args.quiet else _said(measures(event.result))
            _print(self.columns.end(event.story, footer))

    def end(self) -> None:
        _print(self.columns.finish())
        super().end()
        note(self.args, f"seed {self.seed}")

    def broken(self) -> None:
        _print(self.columns.finish())


class _Piped(_Printer):
    """`== SPEC` and the story as text; the first streams, and the others wait for their turn."""

    def __init__(self, args: argparse.Namespace, model: LoadedModel, asked: Sequence[StoryRequest]) -> None:
        super().__init__(args, model, asked)
        gaps = ["", *["\n"] * (len(asked) - 1)]
        self.waiting = [f"{gap}== {spec}\n{self.prompt}" for gap, spec in zip(gaps, self.specs, strict=True)]
        self.turn = 0
        self._flush()

    def show(self, event: TextEvent) -> None:
        super().show(event)
        if isinstance(event, Text):
            self.waiting[event.story] += event.text
        elif isinstance(event, Ended):
            self.waiting[event.story] += "\n"
        self._flush()

    def end(self) -> None:
        super().end()
        for index, spec in enumerate(self.specs):
            said = _said(measures(self.stories[index]))
            note(self.args, " · ".join([*said, visible(spec), f"seed {self.seed}"]))

    def broken(self) -> None:
        _print("\n")

    def _flush(self) -> None:
        while self.turn < len(self.waiting):
            _print(visible(self.waiting[self.turn]))
            self.waiting[self.turn] = ""
            if self.turn not in self.stories:
                return
            self.turn += 1


class _Json(_Printer):
    """One object at the end."""

    def end(self) -> None:
        super().end()
        stories = [self.story(index) for index in range(len(self.specs))]
        for story in stories:
            del story["prompt"]  # it is everybody's
        _print(json.dumps({"prompt": self.prompt} | self.common() | {"stories": stories}) + "\n")


class _JsonLines(_Printer):
    """One event a line."""

    def show(self, event: TextEvent) -> None:
        super().show(event)
        ended = self.story(event.story) | self.common() if isinstance(event, Ended) else {}
        _print(json.dumps(event_fields(event) | ended) + "\n")


def _print(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _said(found: Measures) -> list[str]:
    """Measures in words, each short enough for the narrowest column."""
    return [
        f"{found.tokens} token{'' if found.tokens == 1 else 's'}, {found.finish_reason}",
        f"{found.tokens_per_second:.0f} tokens/s",
        f"{found.bits_per_token:.2f} bits/token",
        f"distinct-2 {_share(found.distinct_2)}",
        f"repeated 4-grams {_share(found.repeated_4grams)}",
    ]


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.2f}"
