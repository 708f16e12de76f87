"""The story tree: a turn for each step of a story, none of which is ever lost. It knows no model and no file.

A turn keeps a number of its parent's tokens, adds what the writer typed, and then adds what the model wrote. So a
retry is a branch, a cut is a turn that keeps fewer tokens, and an edit is a cut with something typed after it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, TypeVar, cast

from tinystory.decoding import FinishReason, Token
from tinystory.errors import UsageError

__all__ = ["ROOT", "PathToken", "StoryTree", "Turn", "Written"]

_Part = TypeVar("_Part", bound=Sequence[Any])

ROOT = 0
"""The number of the blank page, on which every story begins."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """The model's part of a turn, with everything that is needed to write it again.

    Attributes:
        spec: the decoder, as canonical text.
        seed: the seed of the noise.
        number: the number of the branch among those written at once, from 0; the noise depends on it.
        model: the model's name, as the user gave it.
        model_hash: the hash of weights, config and tokenizer, in hex.
        dtype: the dtype in which the model computed.
        max_new_tokens: the largest number of tokens that the model was allowed to write.
        stop: texts at which the turn would have ended.
        heal: the end of the typed text, which the first tokens had to spell again; empty if no word was cut.
        tokens: every picked token, in order, without EOS.
        finish_reason: why the turn ended.
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
    """One step of the story tree: what the writer typed, and what the model wrote after it.

    The story up to this turn has these tokens: the first `kept` tokens of the story up to the parent, then
    `typed_ids`, then the picked tokens without the last `hidden`, then `tail_ids`.

    Attributes:
        id: the number of the turn in the tree, from 1, in the order of writing.
        parent: the number of the turn before it; `ROOT` if it is a story's first turn.
        kept: how many tokens of the parent's story it keeps.
        typed: the text that the writer added.
        typed_ids: the tokens of `typed`; they begin with BOS if the turn begins a story.
        written: the model's part; None if the model wrote nothing.
        hidden: how many picked tokens at the end are not part of the story, because they spell a stop text.
        tail_ids: the tokens of the text that stands before a stop text, within the first hidden token.
        vocabulary: a hash of the vocabulary of the tokens. In another vocabulary, the same ids are other texts.
        shared: how many characters of the parent's text it keeps.
        own: the text after those characters.
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
        """The picked tokens that are part of the story."""
        tokens = self.written.tokens if self.written else ()
        return tokens[: len(tokens) - self.hidden]

    @property
    def n_tokens(self) -> int:
        """The number of tokens of the story up to this turn."""
        return self.kept + len(self.typed_ids) + len(self.picked) + len(self.tail_ids)

    @property
    def n_characters(self) -> int:
        """The number of characters of the story up to this turn."""
        return self.shared + len(self.own)

    @property
    def ended(self) -> bool:
        """True if the model ended the story with EOS."""
        return self.written is not None and self.written.finish_reason == "eos"


@dataclass(frozen=True, slots=True)
class PathToken:
    """A token of a story.

    Attributes:
        id: the token id.
        turn: the number of the turn that added it.
        token: how the model picked it; None if it was typed.
    """

    id: int
    turn: int
    token: Token | None = None


@dataclass
class StoryTree:
    """All stories of a session.

    Attributes:
        turns: the turns by number.
        current: the number of the turn on the desk; `ROOT` is a blank page.
        latest: the number of the child to which `redo` goes, by turn. The story of this child was on the desk last.
    """

    turns: dict[int, Turn] = field(default_factory=dict)
    current: int = ROOT
    latest: dict[int, int] = field(default_factory=dict)

    @property
    def turn(self) -> Turn | None:
        """The turn on the desk; None on a blank page."""
        return self.turns.get(self.current)

    @property
    def next_number(self) -> int:
        """The number of the next turn."""
        return max(self.turns, default=ROOT) + 1

    def add(self, turn: Turn, number: int | None = None) -> Turn:
        """Add a turn and put it on the desk.

        Args:
            turn: the new turn; its `id` is replaced by its number.
            number: a free number that was promised to the turn before turns with higher ones; None is the next number.

        Returns:
            The turn with its number.

        Raises:
            UsageError: the parent is unknown, or shorter than the part that the turn keeps.
        """
        if turn.parent != ROOT and turn.parent not in self.turns:
            raise UsageError(f"there is no turn {turn.parent}")
        parent = self.turns.get(turn.parent)
        n_tokens, n_characters = (parent.n_tokens, parent.n_characters) if parent else (0, 0)
        if not 0 <= turn.kept <= n_tokens:
            raise UsageError(f"turn {turn.parent} has {n_tokens} tokens, not {turn.kept}")
        if not 0 <= turn.shared <= n_characters:
            raise UsageError(f"turn {turn.parent} has {n_characters} characters, not {turn.shared}")
        next_number = self.next_number
        turn = replace(turn, id=next_number if number is None else number)
        self.turns[turn.id] = turn
        if turn.id < next_number:
            self.turns = dict(sorted(self.turns.items()))
        self.goto(turn.id)
        return turn

    def goto(self, number: int) -> None:
        """Put a turn on the desk.

        Raises:
            UsageError: there is no turn of that number.
        """
        if number != ROOT and number not in self.turns:
            last = max(self.turns, default=ROOT)
            raise UsageError(f"there is no turn {number}; they go from {ROOT}, the blank page, to {last}")
        self.current = number
        for turn in self.lineage(number):
            self.latest[turn.parent] = turn.id

    def undo(self, n: int = 1) -> int:
        """Go back n turns, or to the blank page if there are fewer; return the number of turns."""
        for done in range(n):
            turn = self.turn
            if turn is None:
                return done
            self.current = turn.parent
        return n

    def redo(self, n: int = 1) -> int:
        """Go forward n turns along `latest`, or to its end; return the number of turns."""
        for done in range(n):
            if self.current not in self.latest:
                return done
            self.current = self.latest[self.current]
        return n

    def children(self, number: int) -> list[Turn]:
        """Return the turns whose parent is this one, in the order of writing."""
        return [turn for turn in self.turns.values() if turn.parent == number]

    def lineage(self, number: int) -> list[Turn]:
        """Return the turns of a story, from its first turn to this one."""
        turns = []
        while number != ROOT:
            turns.append(self.turns[number])
            number = self.turns[number].parent
        return turns[::-1]

    def last_written(self, number: int) -> Written | None:
        """Return what the model wrote last in the story up to a turn; None if it wrote nothing."""
        return next((turn.written for turn in reversed(self.lineage(number)) if turn.written is not None), None)

    def path(self, number: int) -> list[PathToken]:
        """Return the tokens of the story up to a turn, each with the turn that added it."""

        def added(turn: Turn) -> list[PathToken]:
            typed = [PathToken(token_id, turn.id) for token_id in turn.typed_ids]
            picked = [PathToken(token.id, turn.id, token) for token in turn.picked]
            return [*typed, *picked, *(PathToken(token_id, turn.id) for token_id in turn.tail_ids)]

        return list(chain.from_iterable(self._parts(number, lambda turn: turn.kept, added)))

    def token_ids(self, number: int) -> tuple[int, ...]:
        """Return the token ids of the story up to a turn, BOS included."""

        def added(turn: Turn) -> tuple[int, ...]:
            return (*turn.typed_ids, *(token.id for token in turn.picked), *turn.tail_ids)

        return tuple(chain.from_iterable(self._parts(number, lambda turn: turn.kept, added)))

    def text(self, number: int) -> str:
        """Return the text of the story up to a turn, as it is shown."""
        return "".join(self._parts(number, lambda turn: turn.shared, lambda turn: turn.own))

    def _parts(self, number: int, kept: Callable[[Turn], int], added: Callable[[Turn], _Part]) -> list[_Part]:
        """Return the parts of a story up to a turn.

        They are found from the end, so that nothing is copied twice: thousands of turns may share a long text.

        Args:
            number: the number of the turn.
            kept: how much a turn keeps of its parent's story.
            added: what a turn adds.
        """
        parts: list[_Part] = []
        n_left = sys.maxsize
        for turn in reversed(self.lineage(number)):
            if n_left > kept(turn):
                parts.append(cast(_Part, added(turn)[: n_left - kept(turn)]))
                n_left = kept(turn)
        return parts[::-1]

    def n_prompt(self, number: int) -> int:
        """Return the number of tokens of a story's prompt, the text that its writer began it with."""
        n = 0
        for turn in self.lineage(number):
            n = len(turn.typed_ids) if turn.kept == 0 else min(n, turn.kept)
        return n
