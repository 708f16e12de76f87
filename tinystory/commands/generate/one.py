"""One story, or several branches, from one prompt. They go to standard output, and notices to standard error."""

from collections.abc import Sequence
from typing import Any

from tinystory.checkpoint.shipped import find_model
from tinystory.commands.generate import GenerateOptions
from tinystory.commands.shared.decoders import find_decoders
from tinystory.commands.shared.fields import story_fields
from tinystory.commands.shared.models import import_torch_meanwhile, load_to_write
from tinystory.commands.shared.notices import note, warn
from tinystory.commands.shared.printers import JsonLines, Printer, print_json, print_stories, print_text
from tinystory.commands.shared.prompt import prompt_of, seed_of
from tinystory.decoding.spec import parse_spec
from tinystory.decoding.spec_text import temperature_notes
from tinystory.interrupts import Interrupts, exit_code
from tinystory.safe.showing import visible
from tinystory.session.loading import LoadedModel
from tinystory.writing.generate import Story, StoryRequest, Text, TextEvent, Trimmed, write

__all__ = ["run"]


def run(options: GenerateOptions) -> int:
    """Write the stories and return the exit code."""
    # All mistakes of the user are found before torch is imported.
    decoder = parse_spec(options.decoder, find_decoders(options))
    warn(options, temperature_notes(decoder))
    name, header = find_model(options.model)
    import_torch_meanwhile(options, header, decoder)
    prompt, seed = prompt_of(options.prompt), seed_of(options.seed)
    with Interrupts() as interrupts:
        model = load_to_write(options, name, header, decoder)
        requests = [
            StoryRequest(
                prompt,
                decoder,
                seed=seed,
                max_new_tokens=options.max_tokens,
                stop=options.stop,
                number=number,
                cancel=lambda: bool(interrupts.received),
            )
            for number in range(options.num)
        ]
        form = JsonLines if options.jsonl else _Json if options.json else _Plain
        print_stories(form(options, model, requests), write(model.session, model.tokenizer, requests))
    return exit_code(interrupts.received)


class _Plain(Printer):
    """Prompt and story as text. The first story streams, and the others follow in their order."""

    def __init__(self, options: GenerateOptions, model: LoadedModel, requests: Sequence[StoryRequest]) -> None:
        super().__init__(options, model, requests)
        self.current = 0
        self.begun = False

    def show(self, event: TextEvent) -> None:
        if not self.begun:  # the decoder has accepted the request; an earlier error is printed alone
            self.begun = True
            print_text(visible(self.prompt))
        super().show(event)
        if isinstance(event, Text) and event.story == 0:
            print_text(visible(event.text))
        elif isinstance(event, Trimmed) and event.story == 0:
            warn(
                self.options,
                ["the story has outgrown the model's context: the model no longer sees its oldest sentences"],
            )
        while self.current in self.stories:
            self._finish(self.stories[self.current])
            self.current += 1

    def broken(self) -> None:
        if self.begun:
            print_text("\n")

    def _finish(self, story: Story) -> None:
        print_text("\n" if self.current == 0 else f"\n{visible(story.text)}\n")
        figures = story.statistics
        parts = [
            f"{figures['tokens']:.0f} tokens",
            f"{figures['tokens_per_second']:.0f} tokens/s",
            f"{figures['bits_per_token']:.2f} bits/token",
            story.finish_reason,
            self.titles[0],
            f"seed {self.seed}",
        ]
        note(self.options, " · ".join(parts + [f"story {self.current}"] * (len(self.specs) > 1)))


class _Json(Printer):
    """One JSON object at the end; several stories are a list in it."""

    def end(self) -> None:
        stories: list[dict[str, Any]] = [story_fields(self.stories[number]) for number in sorted(self.stories)]
        several = len(self.specs) > 1
        record = {"prompt": self.prompt, "stories": stories} if several else stories[0]
        print_json(record | {"spec": self.specs[0]} | self.common())
