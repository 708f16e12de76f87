"""The saved part of a chat: its tree of stories and its settings. It knows no file and no JSON."""

from dataclasses import dataclass
from datetime import UTC, datetime

import tinystory
from tinystory.story.tree import ROOT, StoryTree

__all__ = ["LONGEST_BEGINNING", "SavedChat", "Summary", "now", "summary_of"]

LONGEST_BEGINNING = 80
"""Characters of the first story that a summary shows."""


@dataclass(frozen=True, kw_only=True)
class SavedChat:
    """The content of a session file.

    Attributes:
        tree: the stories, with the turn on the desk and the turns that redo goes to.
        spec: the decoder as text.
        seed: the seed of every story; None draws a seed for each story.
        max_tokens: the largest number of new tokens in one turn.
        stop: texts at which a turn ends.
        words: words that the writer wants in the story.
        tint: the measure that colours the tokens; "off" for none.
        model: the model's name, as the user gave it.
        model_hash: the hash of the model that wrote last, in hex; empty if no model has written yet.
        dtype: the dtype in which the model computes.
        automatic: True if the program chose the session's name.
        created: when the chat began, in ISO 8601.
        changed: when the file was written, in ISO 8601.
        version: the version of the tinystory that wrote the file.
    """

    tree: StoryTree
    spec: str
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    tint: str = "off"
    model: str = "default"
    model_hash: str = ""
    dtype: str = "float32"
    automatic: bool = True
    created: str = ""
    changed: str = ""
    version: str = tinystory.__version__


@dataclass(frozen=True)
class Summary:
    """One row in the list of sessions.

    Attributes:
        stories: the number of stories that were begun.
        turns: the number of turns in the tree.
        begins: the first words of the first story, at most 80 characters.
    """

    stories: int
    turns: int
    begins: str


def summary_of(tree: StoryTree) -> Summary:
    """Return a tree's row in the list of sessions."""
    first_turns = tree.children(ROOT)
    text = next((turn.own for turn in first_turns if turn.own.strip()), "")
    # White space is shortened before the text is cut, so more characters are taken than are shown.
    begins = " ".join(text[: 4 * LONGEST_BEGINNING].split())[:LONGEST_BEGINNING]
    return Summary(len(first_turns), len(tree.turns), begins)


def now() -> str:
    """Return the local time in ISO 8601, with the offset of its zone."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")
