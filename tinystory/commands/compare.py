"""`tinystory compare`: one prompt, several decoders, the same noise, side by side."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinystory.checkpoint.shipped import find_model
from tinystory.commands.shared.decoders import find_decoders
from tinystory.commands.shared.groups import JsonOptions, PromptOptions
from tinystory.commands.shared.models import import_torch_meanwhile, load_to_write
from tinystory.commands.shared.notices import note, warn
from tinystory.commands.shared.printers import JsonLines, Printer, print_json, print_stories, print_text
from tinystory.commands.shared.prompt import prompt_of, seed_of, stops_of
from tinystory.decoding.spec import parse_spec
from tinystory.decoding.spec_text import temperature_notes
from tinystory.evaluation.comparison import Measures, check_count, measures, requests
from tinystory.interrupts import Interrupts, exit_code
from tinystory.safe.showing import visible
from tinystory.screen.columns import Columns
from tinystory.screen.facts import styled, width_of
from tinystory.session.loading import LoadedModel
from tinystory.writing.generate import Ended, StoryRequest, Text, TextEvent, Trimmed, write

__all__ = ["CompareOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class CompareOptions(PromptOptions, JsonOptions):
    """The options of `tinystory compare`.

    Attributes:
        decoders: the specs, 2 to 8 of them.
    """

    decoders: tuple[str, ...] = ()


def run(options: CompareOptions) -> int:
    """Write to standard output in columns on a terminal, else as text or JSON. Return the exit code."""
    check_count(len(options.decoders))
    stop = stops_of(options.stop)
    # All mistakes of the user are found before torch is imported.
    registry = find_decoders(options)
    decoders = [parse_spec(spec, registry) for spec in options.decoders]
    warn(options, [line for decoder in decoders for line in temperature_notes(decoder)])
    name, header = find_model(options.model)
    import_torch_meanwhile(options, header, *decoders)
    prompt, seed = prompt_of(options.prompt), seed_of(options.seed)
    with Interrupts() as interrupts:
        model = load_to_write(options, name, header, *decoders)
        asked = requests(prompt, decoders, seed, options.max_tokens, stop, lambda: bool(interrupts.received))
        printer = _form(options)(options, model, asked)
        print_stories(printer, write(model.session, model.tokenizer, asked))
    return exit_code(interrupts.received)


def _form(options: CompareOptions) -> type[Printer]:
    if options.jsonl:
        return _JsonLines
    if options.json:
        return _Json
    return _SideBySide if sys.stdout.isatty() else _Piped


class _Compared(Printer):
    """A form of output with figures for each story, and with a notice for each one that outgrew the context."""

    def __init__(self, options: CompareOptions, model: LoadedModel, asked: Sequence[StoryRequest]) -> None:
        super().__init__(options, model, asked)
        self.trimmed: list[str] = []

    def show(self, event: TextEvent) -> None:
        super().show(event)
        if isinstance(event, Trimmed):
            self.trimmed.append(self.titles[event.story])

    def end(self) -> None:
        # The notices come at the end: before, they would stand among the columns.
        outgrown = "has outgrown the model's context: at the end, the model did not see its oldest sentences"
        warn(self.options, [f"the story of {spec} {outgrown}" for spec in self.trimmed])

    def fields(self, index: int) -> dict[str, Any]:
        figures = measures(self.stories[index])
        shares = {"distinct_2": figures.distinct_2, "repeated_4grams": figures.repeated_4grams}
        return super().fields(index) | {"statistics": self.stories[index].statistics | shares}


class _SideBySide(_Compared):
    """Columns; a row is printed when it is complete."""

    def __init__(self, options: CompareOptions, model: LoadedModel, asked: Sequence[StoryRequest]) -> None:
        super().__init__(options, model, asked)
        self.columns = Columns(self.titles, width_of(sys.stdout), color=styled(options.color, sys.stdout))
        for index in range(len(asked)):
            print_text(self.columns.add(index, self.prompt))

    def show(self, event: TextEvent) -> None:
        super().show(event)
        if isinstance(event, Text):
            print_text(self.columns.add(event.story, event.text))
        elif isinstance(event, Ended):
            footer = [] if self.options.quiet else _in_words(measures(event.result))
            print_text(self.columns.end(event.story, footer))

    def end(self) -> None:
        print_text(self.columns.finish())
        super().end()
        note(self.options, f"seed {self.seed}")

    def broken(self) -> None:
        print_text(self.columns.finish())


class _Piped(_Compared):
    """`== SPEC` and the story as text. The first story streams, and the others wait for their turn."""

    def __init__(self, options: CompareOptions, model: LoadedModel, asked: Sequence[StoryRequest]) -> None:
        super().__init__(options, model, asked)
        gaps = ["", *["\n"] * (len(asked) - 1)]
        self.waiting = [f"{gap}== {spec}\n{self.prompt}" for gap, spec in zip(gaps, self.titles, strict=True)]
        self.current = 0
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
        for index, spec in enumerate(self.titles):
            figures = _in_words(measures(self.stories[index]))
            note(self.options, " · ".join([*figures, visible(spec), f"seed {self.seed}"]))

    def broken(self) -> None:
        print_text("\n")

    def _flush(self) -> None:
        while self.current < len(self.waiting):
            print_text(visible(self.waiting[self.current]))
            self.waiting[self.current] = ""
            if self.current not in self.stories:
                return
            self.current += 1


class _Json(_Compared):
    """One JSON object at the end."""

    def end(self) -> None:
        super().end()
        stories = [self.fields(index) for index in range(len(self.specs))]
        for story in stories:
            del story["prompt"]  # the prompt stands once, beside the stories
        print_json({"prompt": self.prompt} | self.common() | {"stories": stories})


class _JsonLines(_Compared, JsonLines):
    """One JSON object for each event."""


def _in_words(figures: Measures) -> list[str]:
    """Return the measures in words. Each text fits into the narrowest column."""
    return [
        f"{figures.tokens} token{'' if figures.tokens == 1 else 's'}, {figures.finish_reason}",
        f"{figures.tokens_per_second:.0f} tokens/s",
        f"{figures.bits_per_token:.2f} bits/token",
        f"distinct-2 {_share(figures.distinct_2)}",
        f"repeated 4-grams {_share(figures.repeated_4grams)}",
    ]


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.2f}"
