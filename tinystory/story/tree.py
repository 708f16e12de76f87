"""The story tree: every continuation is a turn, nothing is ever lost. Knows no model, no file and no terminal.

A turn goes on from a piece of its parent's tokens, adds what the writer typed and then what the model wrote. So a retry
is a sibling, a cut is a turn that keeps less, and an edit is a cut with something typed after it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tinystory.decoding import FinishReason, Token
from tinystory.errors import UsageError

__all__ = ["ROOT", "PathToken", "StoryTree", "Turn", "Written"]

ROOT = 0
"""The blank page that every story begins on."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """The model's part of a turn, with everything that it takes to write it again.

    Attributes:
        spec: the decoder, canonically.
        seed: of the coupled noise.
        number: among siblings written at once; enters the noise.
        model: as the user gave it.
        model_hash: of weights, config and tokenizer, in hex.
        dtype: of the computation.
        max_new_tokens: the limit it was written under.
        stop: texts at which it would end.
        heal: the text that its first tokens had to begin with, the end of what was typed.
        tokens: every token picked, in order; an EOS is not among them.
        finish_reason: why it ended.
    """

    spec: str
    seed: int
    number: int
    model: str
    model_hash: str
    dtype: str
    max_new_tokens: int
    stop: tuple[str, ...]
    heal: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a story.

    Its tokens are the parent's first `kept`, then `typed_ids`, then those picked but for the last `hidden`, then
    `tail_ids`.

    Attributes:
        id: its number in the tree, from 1, in the order of writing.
        parent: the number of the turn it goes on from; `ROOT` for a story's first.
        kept: how many of the parent's tokens it keeps.
        typed: what the writer added.
        typed_ids: the tokens of that, BOS included where it begins a story.
        written: the model's part; None where it was not asked.
        hidden: picked tokens at the end that are not part of the story: a stop text, and what it came with.
        tail_ids: tokens of the text that came with a stop text, before it.
        vocabulary: of the tokens; ids of another mean other texts.
        shared: how many characters of the parent's text it keeps.
        own: the rest of its text.
    """

    id: int
    parent: int
    kept: int
    typed: str
    typed_ids: tuple[int, ...]
    written: Written | None
    vocabulary: str
    shared: int
    own: str
    hidden: int = 0
    tail_ids: tuple[int, ...] = ()

    @property
    def picked(self) -> tuple[Token, ...]:
        """The model's tokens that are part of the story."""
        tokens = self.written.tokens if self.written else ()
        return tokens[: len(tokens) - self.hidden]

    @property
    def ended(self) -> bool:
        """Whether the model has said that the story is over."""
        return self.written is not None and self.written.finish_reason == "eos"


@dataclass(frozen=True, slots=True)
class PathToken:
    """A token of a story.

    Attributes:
        id: the token id.
        turn: the number of the turn that brought it.
        token: how the model picked it; None where it was typed.
    """

    id: int
    turn: int
    token: Token | None = None


@dataclass
class StoryTree:
    """All stories of a session.

    Attributes:
        turns: by number.
        current: the number of the turn on the desk; `ROOT` is a blank page.
        latest: of a turn the child that was last on the desk or above it: where `redo` goes.
    """

    turns: dict[int, Turn] = field(default_factory=dict)
    current: int = ROOT
    latest: dict[int, int] = field(default_factory=dict)

    @property
    def turn(self) -> Turn | None:
        """The one on the desk; None on a blank page."""
        return self.turns.get(self.current)

    def add(self, turn: Turn) -> Turn:
        """Put a new turn on the desk; its number is given here, whatever it came with.

        Raises:
            UsageError: the parent is unknown, or is shorter than what is kept of it.
        """
        if turn.parent != ROOT and turn.parent not in self.turns:
            raise UsageError(f"there is no turn {turn.parent}")
        if not 0 <= turn.kept <= len(self.token_ids(turn.parent)):
            raise UsageError(f"node {turn.parent} has {len(self.token_ids(turn.parent))} tokens, not {turn.kept}")
        if not 0 <= turn.shared <= len(self.text(turn.parent)):
            raise UsageError(f"node {turn.parent} has {len(self.text(turn.parent))} characters, not {turn.shared}")
        turn = replace(turn, id=max(self.turns, default=ROOT) + 1)
        self.turns[turn.id] = turn
        self.goto(turn.id)
        return turn

    def goto(self, number: int) -> None:
        """Put a turn on the desk.

        Raises:
            UsageError: there is none of that number.
        """
        if number != ROOT and number not in self.turns:
            last = max(self.turns, default=ROOT)
            raise UsageError(f"there is no turn {number}; they go from {ROOT}, the blank page, to {last}")
        self.current = number
        for turn in self.lineage(number):
            self.latest[turn.parent] = turn.id

    def undo(self, n: int = 1) -> int:
        """Go back n turns, or as many as there are; how many it was."""
        for done in range(n):
            turn = self.turn
            if turn is None:
                return done
            self.current = turn.parent
        return n

    def redo(self, n: int = 1) -> int:
        """Go n turns towards where the desk last was; how many it was."""
        for done in range(n):
            if self.current not in self.latest:
                return done
            self.current = self.latest[self.current]
        return n

    def children(self, number: int) -> list[Turn]:
        """The turns that go on from this one, in the order of writing."""
        return [turn for turn in self.turns.values() if turn.parent == number]

    def by_parent(self) -> dict[int, list[Turn]]:
        """The turns that go on from each turn, in the order of writing."""
        found: dict[int, list[Turn]] = {}
        for turn in self.turns.values():
            found.setdefault(turn.parent, []).append(turn)
        return found

    def sibling(self, step: int) -> Turn | None:
        """The child of the same parent `step` places further; None where there is none."""
        turn = self.turn
        if turn is None:
            return None
        siblings = self.children(turn.parent)
        place = siblings.index(turn) + step
        return siblings[place] if 0 <= place < len(siblings) else None

    def lineage(self, number: int) -> list[Turn]:
        """From a story's first turn to this one."""
        found = []
        while number != ROOT:
            found.append(self.turns[number])
            number = self.turns[number].parent
        return found[::-1]

    def path(self, number: int) -> list[PathToken]:
        """Every token of a story, with where it came from."""
        path: list[PathToken] = []
        for turn in self.lineage(number):
            del path[turn.kept :]
            path += [PathToken(token_id, turn.id) for token_id in turn.typed_ids]
            path += [PathToken(token.id, turn.id, token) for token in turn.picked]
            path += [PathToken(token_id, turn.id) for token_id in turn.tail_ids]
        return path

    def token_ids(self, number: int) -> tuple[int, ...]:
        """The tokens of a story, BOS included."""
        return tuple(token.id for token in self.path(number))

    def text(self, number: int) -> str:
        """A story, as shown."""
        text = ""
        for turn in self.lineage(number):
            text = text[: turn.shared] + turn.own
        return text

    def n_prompt(self, number: int) -> int:
        """How many of a story's tokens are what its writer began it with."""
        n = 0
        for turn in self.lineage(number):
            n = len(turn.typed_ids) if turn.kept == 0 else min(n, turn.kept)
        return n

    def walk(self) -> Iterator[tuple[Turn, int]]:
        """Every turn below its parent, with its depth, from 0."""
        children = self.by_parent()
        waiting: list[tuple[Turn, int]] = [(turn, 0) for turn in reversed(children.get(ROOT, []))]
        while waiting:
            turn, depth = waiting.pop()
            yield turn, depth
            waiting += [(child, depth + 1) for child in reversed(children.get(turn.id, []))]
