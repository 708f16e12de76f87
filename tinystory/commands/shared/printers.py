"""The forms of output of `generate` and `compare`. A printer takes the events of stories as they are written."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinystory.commands.shared.fields import common_fields, event_fields, story_fields
from tinystory.commands.shared.groups import StoryOptions
from tinystory.commands.shared.streams import apart
from tinystory.decoding.spec import format_spec, shown_spec
from tinystory.errors import TinystoryError
from tinystory.session.loading import LoadedModel
from tinystory.writing.generate import Ended, Story, StoryRequest, TextEvent

__all__ = ["JsonLines", "Printer", "print_json", "print_stories", "print_text"]


class Printer:
    """One form of output, for the stories of one call.

    Attributes:
        options: the options of the command.
        model: the model that writes.
        prompt: the prompt of every story.
        seed: the seed of the call.
        specs: the canonical spec of each story.
        titles: the spec of each story, as people see it.
        stories: the finished stories by their place in `specs`.
    """

    def __init__(self, options: StoryOptions, model: LoadedModel, requests: Sequence[StoryRequest]) -> None:
        self.options, self.model = options, model
        self.prompt, self.seed = requests[0].prompt, requests[0].seed
        self.specs = [format_spec(request.decoder) for request in requests]
        self.titles = [shown_spec(request.decoder) for request in requests]
        self.stories: dict[int, Story] = {}

    def show(self, event: TextEvent) -> None:
        """Take one event."""
        if isinstance(event, Ended):
            self.stories[event.story] = event.result

    def end(self) -> None:
        """Finish the output after the end of all stories."""

    def broken(self) -> None:
        """Finish the line: a message about an error follows on standard error."""

    def fields(self, index: int) -> dict[str, Any]:
        """Return the JSON fields of a finished story."""
        return {"spec": self.specs[index]} | story_fields(self.stories[index])

    def common(self) -> dict[str, Any]:
        """Return the JSON fields that are the same for all stories."""
        return common_fields(self.options, self.model, self.seed)


class JsonLines(Printer):
    """One JSON object for each event; the event `end` has all fields of its story."""

    def show(self, event: TextEvent) -> None:
        """Print one event."""
        super().show(event)
        ended = self.fields(event.story) | self.common() if isinstance(event, Ended) else {}
        print_json(event_fields(event) | ended)


def print_stories(printer: Printer, events: Iterable[TextEvent]) -> None:
    """Print stories while they are written.

    Raises:
        TinystoryError: a decoder failed; the output then ends with a whole line.
    """
    try:
        for event in apart(events):
            printer.show(event)
    except TinystoryError:
        printer.broken()
        raise
    printer.end()


def print_json(record: Mapping[str, Any]) -> None:
    """Write a line of JSON to standard output at once."""
    print_text(json.dumps(record) + "\n")


def print_text(text: str) -> None:
    """Write a text to standard output at once."""
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()
