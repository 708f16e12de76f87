"""Commands that show the tree of stories and go to its turns."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, takewhile

from tinystory.decoding import common_prefix
from tinystory.decoding.plugins import Registry
from tinystory.decoding.spec import spec_as_shown
from tinystory.errors import UsageError
from tinystory.repl.commands.base import DeskStory, Reply, command, whole_number
from tinystory.safe.reading import shown
from tinystory.screen.blocks import Line, Outline
from tinystory.screen.colours import Style
from tinystory.story.branches import Branches, typed_end
from tinystory.story.tree import ROOT, StoryTree, Turn
from tinystory.studio.studio import Studio
from tinystory.writing.generate import bits_per_token

__all__ = ["step_aside"]

_LONGEST_OPENING = 10_000
"""Characters of a turn's own text that are read for its row; the row is cut to one line."""
_MOST_ROWS = 200
"""Rows that /tree shows without `all`."""
_WIDEST_LINES = 24
"""Cells of the lines before a row."""
_MOST_COMPARED = 20
"""Earlier branches with which the words of a branch are compared."""
_TYPED = "┬"
"""The mark of a row that has only a typed text, with the branches that begin with it below. It is no turn."""


@dataclass
class _Place:
    """A place where turns hang side by side.

    Attributes:
        turns: the turns in their order.
        typed: the typed text that a row above them shows; empty if there is no such row.
        branches: the tree that they belong to.
    """

    turns: Sequence[Turn]
    typed: str
    branches: Branches

    @cached_property
    def words(self) -> dict[int, list[str]]:
        """The model's first words of each turn that goes on after the same text, by number."""
        return {
            turn.id: turn.own[typed_end(turn) :][:_LONGEST_OPENING].split()
            for turn in self.turns
            if turn.id not in self.branches.changes and (self.typed or not turn.typed.strip())
        }

    @cached_property
    def n_shared(self) -> int:
        """The number of words with which all of them begin, if there are several."""
        first, *others = self.words.values() or [[]]
        return min((common_prefix(first, other) for other in others), default=0)


@dataclass(frozen=True)
class _Row:
    """A row of /tree: a turn, or a typed text whose branches hang below.

    Attributes:
        lines: the lines before the row.
        place: where the turn hangs; for a typed text, where its branches hang.
        turn: the turn; None for a typed text.
    """

    lines: str
    place: _Place
    turn: Turn | None


@command("tree", "[all]", "show the stories of this session and their branches")
def _tree(studio: Studio, argument: str) -> Reply:
    """Show a line for each turn: number, words, decoder, seed, tokens, bits per token. /goto N goes to turn N.

    Branches of one typed text hang below a row with this text. A turn that changes another one, as /pick does, stands
    beside it. A row has only the words that differ from the branches before it, and decoder and seed only if they
    differ. Of more than 200 rows, it shows the 200 around the turn on the desk; /tree all shows every turn.
    """
    if argument not in ("", "all"):
        raise UsageError(f"/tree takes nothing, or `all` for every turn, not {shown(argument)}")
    tree = studio.tree
    if not tree.turns:
        return Reply((Line("nothing has been written yet", "dim"),))
    branches = Branches(tree)
    rows = list(_in_order(branches))
    desk = next((place for place, row in enumerate(rows) if row.turn and row.turn.id == tree.current), 0)
    first = 0 if argument else max(0, min(desk - _MOST_ROWS // 2, len(rows) - _MOST_ROWS))
    seen = rows[first:] if argument else rows[first : first + _MOST_ROWS]
    outline = Outline(tuple(_shown_rows(studio.registry, tree, branches, seen)))
    return Reply((*_left_out(rows[:first], "before"), outline, *_left_out(rows[first + len(seen) :], "after")))


def _left_out(rows: Sequence[_Row], where: str) -> tuple[Line, ...]:
    n_turns = sum(row.turn is not None for row in rows)
    return (Line(f"… {n_turns:,} turns {where} these; /tree all shows them", "note"),) if n_turns else ()


def _in_order(branches: Branches) -> Iterator[_Row]:
    """Yield the rows of a tree, each after the row that it hangs below, with lines for up to 12 branches in depth."""
    waiting = _hung(_items(branches, ROOT), "")
    while waiting:
        row, below = waiting.pop()
        yield row
        if row.turn is None:
            items = [_Row("", row.place, turn) for turn in row.place.turns]
        else:
            items = _items(branches, row.turn.id)
        waiting += _hung(items, below)


def _items(branches: Branches, number: int) -> list[_Row]:
    """Return the rows that hang directly below a turn, without lines."""
    groups = branches.groups(number)
    named = [len(group.turns) > 1 and bool(group.typed.strip()) for group in groups]
    alone = [turn for group, name in zip(groups, named, strict=True) if not name for turn in group.turns]
    place = _Place(alone, "", branches)
    rows: list[_Row] = []
    for group, name in zip(groups, named, strict=True):
        if name:
            rows.append(_Row("", _Place(group.turns, group.typed, branches), None))
        else:
            rows += [_Row("", place, turn) for turn in group.turns]
    return rows


def _hung(rows: Sequence[_Row], above: str) -> list[tuple[_Row, str]]:
    """Return rows with their lines, the last row first, each with the lines of what hangs below it."""
    hung = []
    for place, row in enumerate(rows):
        # A row without others beside it needs no line that joins it.
        joint, below = ("", "") if len(rows) == 1 else ("└ ", "  ") if place == len(rows) - 1 else ("├ ", "│ ")
        longer = above + below
        if len(longer) > _WIDEST_LINES:
            longer = "…" + longer[1 - _WIDEST_LINES :]
        hung.append((replace(row, lines=above + joint), longer))
    return hung[::-1]


def _shown_rows(
    registry: Registry, tree: StoryTree, branches: Branches, rows: Sequence[_Row]
) -> Iterator[tuple[str, str, str, Style]]:
    """Yield the branch, words, facts and style of each row."""
    on_desk = set(branches.lineage(tree.current))
    facts = _Facts(registry, branches)
    for row in rows:
        turn = row.turn
        if turn is None:
            style: Style = "" if on_desk.intersection(one.id for one in row.place.turns) else "dim"
            yield f"{row.lines}{_TYPED}", _typed_words(row.place), "", style
        else:
            here = "● " if turn.id == tree.current else ""
            style = "bold" if turn.id == tree.current else "" if turn.id in on_desk else "dim"
            yield f"{row.lines}{here}{turn.id}", _words(row.place, turn), facts.of(turn), style


def _typed_words(place: _Place) -> str:
    """Return a typed text with the words that all branches below it share."""
    first = next(turn for turn in place.turns if turn.id in place.words)
    shared = " ".join(place.words[first.id][: place.n_shared])
    space = " " * first.own[typed_end(first) :][:1].isspace()  # a comma follows the typed text without one
    return " ".join(place.typed.split()) + (space + shared if shared else "")


def _words(place: _Place, turn: Turn) -> str:
    """Return the words of a turn that the branches before it do not have; from the change on, if it changes a turn."""
    changed = place.branches.changes.get(turn.id)
    if changed is not None:
        kept = re.search(r"\S*$", changed.own[: turn.shared - changed.shared])
        words = f"{kept[0] if kept else ''}{turn.own[:_LONGEST_OPENING]}".split()
        return " ".join(["…", *words]) if words else "(cut)"
    own = place.words.get(turn.id)
    if own is None:  # no other branch begins with what was typed here
        return " ".join(turn.own[:_LONGEST_OPENING].split()) or "(cut)"
    earlier = takewhile(lambda number: number != turn.id, place.words)
    n_shared = max(
        [place.n_shared, *(common_prefix(place.words[number], own) for number in islice(earlier, _MOST_COMPARED))]
    )
    if n_shared == len(own):
        return "(the same words)" if own else "(cut)"
    return " ".join(["…"] * (n_shared > (place.n_shared if place.typed else 0)) + own[n_shared:])


# --- facts ---


@dataclass
class _Facts:
    """The facts of turns, in the order of the rows: decoder and seed only where they change.

    Attributes:
        registry: the stages of decoders.
        branches: where they hang.
        last: decoder and seed of the row before; empty if there is none.
        below: decoder and seed of the latest branch below each turn, by the turn's number.
        of_turn: decoder and seed of each turn.
    """

    registry: Registry
    branches: Branches
    last: tuple[str, str] = ("", "")
    below: dict[int, tuple[str, str]] = field(default_factory=dict)
    of_turn: dict[int, tuple[str, str]] = field(default_factory=dict)

    def of(self, turn: Turn) -> str:
        """Return the facts of a turn. What the row before and the branch beside or above have, too, is left out."""
        written = turn.written
        if written is None:
            return "typed" if turn.typed else "cut"
        above = self.branches.above[turn.id]
        number = f"/{written.number}" if written.number else ""
        new = spec_as_shown(written.spec, self.registry), f"seed {written.seed}{number}"
        nearest = self.below.get(above) or self.of_turn.get(above) or self.last
        changed = [fact for fact, *others in zip(new, self.last, nearest, strict=True) if others != [fact, fact]]
        self.last = self.below[above] = self.of_turn[turn.id] = new
        return " · ".join([*changed, f"{len(written.tokens)} tok", f"{bits_per_token(written.tokens):.2f} bits"])


@command("goto", "N", "go to turn N of the tree; 0 is the blank page", "turn")
def _goto(studio: Studio, argument: str) -> Reply:
    studio.goto(whole_number(argument, "/goto", 0))
    return Reply((DeskStory(),))


def step_aside(studio: Studio, step: int) -> Reply:
    """Put the branch that is `step` places further on the desk; return a reply that shows its story.

    Raises:
        UsageError: there is no such branch.
    """
    turn = Branches(studio.tree).aside(step)
    if turn is None:
        raise UsageError(f"there is no branch {'after' if step > 0 else 'before'} this one")
    studio.goto(turn.id)
    return Reply((DeskStory(),))
