"""How stories are shown: while they are being written, and again when the desk changes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from shutil import get_terminal_size

from tinystory.decoding import Token
from tinystory.decoding.spec import format_spec
from tinystory.evaluation.comparison import measures
from tinystory.repl.pieces import spans, style_of
from tinystory.screen.blocks import Spans, Style
from tinystory.screen.columns import Columns
from tinystory.screen.screen import Screen
from tinystory.studio.studio import Studio
from tinystory.text.words import checklist, has_word
from tinystory.writing import generate
from tinystory.writing.generate import DraftText, Ended, Text, TextEvent, Trimmed

__all__ = ["REASONS", "show_columns", "show_picked", "show_story", "statistics_line", "stream"]

_OUTGROWN = "the story has outgrown the model's context: its oldest sentences are out of sight"


def stream(studio: Studio, screen: Screen, events: Iterable[TextEvent], notice: Callable[[str], None]) -> None:
    """Show one story as it comes, and say in one line what it was."""
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
                notice(_OUTGROWN)
            _tell(studio, event, notice)


def _tell(studio: Studio, end: Ended, notice: Callable[[str], None]) -> None:
    """Say in one line what a piece was, and which words are still wanted."""
    notice(statistics_line(end.result))
    if studio.wanted:
        notice(checklist(studio.wanted, studio.text))


def show_picked(studio: Studio, screen: Screen, events: Iterable[TextEvent], notice: Callable[[str], None]) -> None:
    """Let a person write a story: with every choice they see its end, and here the whole once they are done."""
    end = None
    try:
        for event in events:
            end = event if isinstance(event, Ended) else end
    finally:
        screen.gap()
        show_story(studio, screen)
    if end is not None:
        _tell(studio, end, notice)


def show_columns(
    studio: Studio, screen: Screen, titles: Sequence[str], events: Iterable[TextEvent], notice: Callable[[str], None]
) -> None:
    """Show stories side by side as they come, with their figures, and say which turns they are."""
    columns = Columns(titles, get_terminal_size().columns, color=screen.color)
    before = set(studio.tree.turns)
    screen.fresh_line()
    try:
        for event in events:
            if isinstance(event, Text):
                screen.written(columns.add(event.story, event.text))
            elif isinstance(event, Ended):
                screen.written(columns.end(event.story, figures(event)))
    finally:  # also what waits in lines that are not full
        screen.written(columns.finish())
    new = [number for number in studio.tree.turns if number not in before]
    if new:
        studio.goto(new[0])
        span = f"{new[0]} to {new[-1]}" if len(new) > 1 else f"{new[0]}"
        notice(f"turns {span} of the tree; on the desk is {new[0]}, /goto N takes another")


def figures(event: Ended) -> list[str]:
    """The statistics under a column."""
    found = measures(event.result)
    shares = (("distinct-2", found.distinct_2), ("repeats", found.repeated_4grams))
    return [
        f"{found.tokens} tokens",
        f"{found.bits_per_token:.2f} bits/token",
        *(f"{name} {'–' if share is None else f'{share:.0%}'}" for name, share in shares),
        f"{found.tokens_per_second:.0f} tokens/s",
        REASONS[found.finish_reason],
    ]


def show_story(studio: Studio, screen: Screen) -> None:
    """Show the story on the desk, what was typed in bold or all tokens tinted."""
    pieces = spans(studio)
    screen.show(Spans(tuple(pieces)) if pieces else Spans((("(a blank page)", "dim"),)))


def _tint(studio: Studio, tokens: Sequence[Token]) -> Style:
    return style_of(tokens[-1], studio.tint) if tokens else ""


@dataclass
class _Ticks:
    """Tells when a wanted word has come."""

    words: tuple[str, ...]
    text: str

    def add(self, piece: str) -> bool:
        """Add text; whether a word is whole now that was not there before."""
        missing = [word for word in self.words if not has_word(self.text, word)]
        self.text += piece
        return any(has_word(self.text, word) for word in missing)


REASONS = {"eos": "the end", "length": "length", "stop": "stop text", "cancelled": "cancelled"}
"""Why a piece ended, for a writer."""


def statistics_line(story: generate.Story) -> str:
    """The line under a piece: what it took, why it ended, and what it takes to write it again."""
    statistics = story.statistics
    n_tokens = len(story.tokens)
    return " · ".join(
        [
            f"{n_tokens} token{'' if n_tokens == 1 else 's'}",
            f"{statistics['tokens_per_second']:.0f} tokens/s",
            f"{statistics['bits_per_token']:.2f} bits/token",
            REASONS[story.finish_reason],
            format_spec(story.request.decoder),
            f"seed {story.request.seed}",
        ]
    )
