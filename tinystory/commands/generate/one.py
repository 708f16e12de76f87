"""`tinystory generate`: one story, or several from the same prompt. With `--prompts`, see `generate_prompts`."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

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
    warn,
)
from tinystory.decoding import Decoder
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import TinystoryError, UsageError
from tinystory.safe.showing import visible
from tinystory.session.loading import LoadedModel

if TYPE_CHECKING:
    from tinystory.writing.generate import Story, StoryRequest, TextEvent

__all__ = ["run"]

MAX_BRANCHES = 10_000


def run(args: argparse.Namespace) -> int:
    """Write to standard output; notices go to standard error."""
    if not 1 <= args.num <= MAX_BRANCHES:
        raise UsageError(f"--num is {args.num}; it must be from 1 to {MAX_BRANCHES:,}")
    check_stop(args)
    if args.prompts is not None:
        from tinystory.commands.generate import many as generate_prompts

        return generate_prompts.run(args)
    for flag, value in (("-o", args.out), ("--batch-size", args.batch_size)):
        if value is not None:
            raise UsageError(f"{flag} belongs to --prompts FILE; one story goes to standard output")
    # All that can be wrong is found before torch is imported.
    registry = discover(args.decoder_file)
    warn(args, registry.warnings)
    decoder = parse_spec(args.decoder, registry)
    name, header = find_model(args.model)
    import_torch_meanwhile(args, header, decoder)
    prompt, seed = prompt_of(args), seed_of(args)
    with interrupts() as interrupted:
        model = load_to_write(args, name, header, decoder)
        requests = _requests(args, decoder, prompt, seed, lambda: bool(interrupted))
        printer = (_JsonLines if args.jsonl else _Json if args.json else _Plain)(args, model, requests[0])
        try:
            for event in _write(model, requests):
                printer.show(event)
        except TinystoryError:
            printer.broken()
            raise
        printer.end()
    return 128 + interrupted[0] if interrupted else 0


def _requests(
    args: argparse.Namespace, decoder: Decoder, prompt: str, seed: int, cancel: Callable[[], bool]
) -> "list[StoryRequest]":
    from tinystory.writing.generate import StoryRequest

    return [
        StoryRequest(
            prompt,
            decoder,
            seed=seed,
            max_new_tokens=args.max_tokens,
            stop=tuple(args.stop),
            number=number,
            cancel=cancel,
        )
        for number in range(args.num)
    ]


def _write(model: LoadedModel, requests: "list[StoryRequest]") -> "Iterator[TextEvent]":
    from tinystory.writing.generate import write

    return write(model.session, model.tokenizer, requests)


class _Printer:
    """Shows events in one form."""

    def __init__(self, args: argparse.Namespace, model: LoadedModel, request: "StoryRequest") -> None:
        self.args, self.model, self.prompt, self.seed = args, model, request.prompt, request.seed
        self.spec = format_spec(request.decoder)

    def show(self, event: "TextEvent") -> None:
        """Take one text event."""
        raise TypeError

    def end(self) -> None:
        """All stories have ended."""

    def broken(self) -> None:
        """An error follows on standard error."""

    def common(self) -> dict[str, Any]:
        """What holds for every story of the call."""
        return {"spec": self.spec} | common_fields(self.args, self.model, self.seed)


class _Plain(_Printer):
    """Prompt and story as text, streamed; of several stories the first streams and the rest follow in order."""

    def __init__(self, args: argparse.Namespace, model: LoadedModel, request: "StoryRequest") -> None:
        super().__init__(args, model, request)
        self.waiting: dict[int, Story] = {}
        self.current = 0
        self.begun = False

    def show(self, event: "TextEvent") -> None:
        from tinystory.writing.generate import Ended, Text, Trimmed

        if not self.begun:  # not before a decoder has accepted its work: an error stands alone
            self.begun = True
            self._print(self.prompt)
        if isinstance(event, Text) and event.story == 0:
            self._print(event.text)
        elif isinstance(event, Trimmed) and event.story == 0:
            warn(self.args, ["the story has outgrown the model's context: its oldest sentences are out of sight"])
        elif isinstance(event, Ended):
            if event.story == 0:
                self._finish(event.result)
            else:
                self.waiting[event.story] = event.result
            while self.current in self.waiting:
                story = self.waiting.pop(self.current)
                self._print("\n" + story.text)
                self._finish(story)

    def broken(self) -> None:
        if self.begun:
            self._print("\n")

    def _print(self, text: str) -> None:
        sys.stdout.write(visible(text))
        sys.stdout.flush()

    def _finish(self, story: "Story") -> None:
        self._print("\n")
        self.current += 1
        s = story.statistics
        note(
            self.args,
            f"{s['tokens']:.0f} tokens · {s['tokens_per_second']:.0f} tokens/s · "
            f"{s['bits_per_token']:.2f} bits/token · {story.finish_reason} · {self.spec} · seed {self.seed}"
            + (f" · story {story.request.number}" if self.args.num > 1 else ""),
        )


class _Json(_Printer):
    """One object at the end."""

    def __init__(self, args: argparse.Namespace, model: LoadedModel, request: "StoryRequest") -> None:
        super().__init__(args, model, request)
        self.stories: dict[int, dict[str, Any]] = {}

    def show(self, event: "TextEvent") -> None:
        from tinystory.writing.generate import Ended

        if isinstance(event, Ended):
            self.stories[event.story] = story_fields(event.result)

    def end(self) -> None:
        stories = [self.stories[number] for number in sorted(self.stories)]
        found = stories[0] if self.args.num == 1 else {"prompt": stories[0]["prompt"], "stories": stories}
        sys.stdout.write(json.dumps(found | self.common()) + "\n")


class _JsonLines(_Printer):
    """One event a line."""

    def show(self, event: "TextEvent") -> None:
        from tinystory.writing.generate import Ended

        line = event_fields(event) | (self.common() if isinstance(event, Ended) else {})
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
