"""Show stories: while they are written, side by side, and again when the desk changes."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from tinystory.decoding import Token
from tinystory.decoding.spec import shown_spec
from tinystory.evaluation.comparison import figures
from tinystory.repl.pieces import spans, style_of
from tinystory.screen.blocks import Spans
from tinystory.screen.colours import Style
from tinystory.screen.columns import Columns
from tinystory.screen.screen import Screen
from tinystory.studio.backend import Backend
from tinystory.studio.studio import Studio
from tinystory.text.words import checklist, has_word
from tinystory.writing.generate import DraftText, Ended, StoryRequest, Text, TextEvent, Trimmed
from tinystory.writing.statistics import statistics_line

__all__ = ["show_columns", "show_picked", "show_story", "show_versus", "stream"]

_CONTEXT_FULL = "the story has outgrown the model's context: the model no longer sees its oldest sentences"

_MOST_SHOWN = 200_000
"""The largest number of characters of a story that are shown again. A session of somebody else may have far more."""

Notify = Callable[[str], None]
"""A function that shows one notice."""


def stream(studio: Studio, screen: Screen, events: Iterable[TextEvent], notice: Notify) -> None:
    """Show one story while it is written, then its statistics."""
    trimmed = False
    ticks = _Ticks(studio.wanted, studio.text)
    for event in events:
        if isinstance(event, Text):
            screen.story(event.text, _tint(studio, event.tokens))
            if screen.color and ticks.add(event.text):
                screen.story(" ✓", "good")
        elif isinstance(event, DraftText):
            screen.draft(event.text)
        elif isinstance(event, Trimmed):
            trimmed = True
        elif isinstance(event, Ended):
            if trimmed:
                notice(_CONTEXT_FULL)
            _show_statistics(studio, event, notice)


def _show_statistics(studio: Studio, end: Ended, notice: Notify) -> None:
    """Show the statistics of a turn in one line, and the words that are still wanted in another."""
    notice(statistics_line(end.result))
    if studio.wanted:
        notice(checklist(studio.wanted, studio.text))


def show_picked(studio: Studio, screen: Screen, events: Iterable[TextEvent], notice: Notify) -> None:
    """Let a person pick the tokens of a story, then show the whole story and its statistics.

    The chooser shows the end of the story before each choice.
    """
    end = None
    try:
        for event in events:
            end = event if isinstance(event, Ended) else end
    finally:
        screen.gap()
        show_story(studio, screen)
    if end is not None:
        _show_statistics(studio, end, notice)


def show_columns(
    studio: Studio, screen: Screen, titles: Sequence[str], events: Iterable[TextEvent], notice: Notify
) -> None:
    """Show stories side by side while they are written, each under the number of its turn, then their figures."""
    numbered = enumerate(titles, studio.tree.next_number)
    heads = [f"{number} {title}" if title else f"turn {number}" for number, title in numbered]
    columns = Columns(heads, screen.width, color=screen.color)
    before = set(studio.tree.turns)
    screen.fresh_line()
    try:
        for event in events:
            if isinstance(event, Text):
                screen.written(columns.add(event.story, event.text))
            elif isinstance(event, Ended):
                screen.written(columns.end(event.story, figures(event.result)))
    finally:  # also writes the text that waits in lines that are not full
        screen.written(columns.finish())
    new = [number for number in studio.tree.turns if number not in before]
    if new:
        studio.goto(new[0])
        span = f"{new[0]} to {new[-1]}" if len(new) > 1 else f"{new[0]}"
        notice(f"turns {span} of the tree; on the desk is {new[0]}, /goto N takes another")


def show_versus(
    screen: Screen, titles: Sequence[str], backends: Sequence[Backend], request: StoryRequest, notice: Notify
) -> None:
    """Let several models write the same story, a token each in turn, and show the stories side by side.

    The stories are only shown: nothing becomes a branch of the tree.

    Args:
        screen: shows the columns.
        titles: the titles of the columns.
        backends: the models, all in memory at once.
        request: the story that each model is asked for, as text. Its `cancel` ends all of them.
        notice: shows a notice.

    Raises:
        TinystoryError: a model does not load, or a decoder failed. The text up to then stays on the screen.
    """
    for backend in backends:
        if backend.loading:
            notice(f"loading {backend.name} …")
        if not backend.wait(request.cancel):
            notice("cancelled while the models were loading")
            return
        for warning in backend.take_warnings():
            notice(warning)
    columns = Columns(titles, screen.width, color=screen.color)
    screen.fresh_line()
    try:
        for index in range(len(backends)):
            screen.written(columns.add(index, request.prompt))
        for index, event in _in_turn(backends, request):
            if isinstance(event, Text):
                screen.written(columns.add(index, event.text))
            elif isinstance(event, Ended):
                screen.written(columns.end(index, figures(event.result)))
    finally:
        screen.written(columns.finish())
    notice(f"{shown_spec(request.decoder)} · seed {request.seed} · only shown: the tree has not changed")


def _in_turn(backends: Sequence[Backend], request: StoryRequest) -> Iterator[tuple[int, TextEvent]]:
    """Yield one event of each model in turn, with the index of the model, until all stories have ended."""
    with ExitStack() as stack:
        streams = {index: backend.write([request]) for index, backend in enumerate(backends)}
        for events in streams.values():
            if isinstance(events, Generator):
                stack.enter_context(closing(events))
        while streams:
            for index, events in list(streams.items()):
                event = next(events, None)
                if event is None:
                    del streams[index]
                else:
                    yield index, event


def show_story(studio: Studio, screen: Screen) -> None:
    """Show the story on the desk: typed text in bold, and the tokens in their tints if tints are on."""
    text = studio.text
    if len(text) > _MOST_SHOWN:
        hidden = f"(the first {len(text) - _MOST_SHOWN:,} characters are not shown; /export FILE writes all)\n"
        screen.show(Spans(((hidden, "dim"), (text[-_MOST_SHOWN:], ""))))
        return
    pieces = spans(studio)
    screen.show(Spans(tuple(pieces)) if pieces else Spans((("(a blank page)", "dim"),)))


def _tint(studio: Studio, tokens: Sequence[Token]) -> Style:
    return style_of(tokens[-1], studio.tint) if tokens else ""


@dataclass
class _Ticks:
    """The wanted words of a story that is being written.

    Attributes:
        words: the wanted words.
        text: the story so far.
    """

    words: tuple[str, ...]
    text: str

    def add(self, new_text: str) -> bool:
        """Add text; return whether it completes a wanted word that was missing."""
        missing = [word for word in self.words if not has_word(self.text, word)]
        self.text += new_text
        return any(has_word(self.text, word) for word in missing)
