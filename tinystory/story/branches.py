"""Where each turn hangs in the picture of a tree: which turns stand beside it, in which order. It knows no screen.

A turn goes on from its parent, or it changes what was there: /pick takes another token, /edit another word, and /trim
cuts. A turn that goes on hangs below its parent. A turn that changes another one stands beside it, directly after it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tinystory.story.tree import ROOT, StoryTree, Turn

__all__ = ["Branches", "Group", "changed_turn", "typed_end"]


@dataclass
class Group:
    """Branches that begin with the same typed text; a turn without typed text may be alone in its group.

    Attributes:
        typed: what the writer typed; empty if that is nothing, or if the turn has changed it.
        turns: the branches, in their order.
    """

    typed: str
    turns: list[Turn] = field(default_factory=list)


class Branches:
    """The turns of a tree as they hang. It is made for one look at a tree and does not follow later changes.

    Attributes:
        above: the number of the turn below which each turn hangs, by number; `ROOT` for the first turns.
        changes: the turn that each turn changes, by number, for those that change one.
    """

    def __init__(self, tree: StoryTree) -> None:
        self._tree = tree
        self.above: dict[int, int] = {}
        self.changes: dict[int, Turn] = {}
        self._heads: dict[int, list[Turn]] = {}
        self._changed_by: dict[int, list[Turn]] = {}
        for turn in tree.turns.values():
            changed = changed_turn(tree, turn)
            if changed is None:
                self.above[turn.id] = turn.parent
                self._heads.setdefault(turn.parent, []).append(turn)
            else:
                self.above[turn.id] = self.above[changed.id]
                self.changes[turn.id] = changed
                self._changed_by.setdefault(changed.id, []).append(turn)

    def groups(self, number: int) -> list[Group]:
        """Return the branches below a turn, or below the blank page, in groups of the same typed text."""
        groups: dict[object, Group] = {}
        keys: dict[int, object] = {}
        for turn in self._in_order(self._heads.get(number, [])):
            changed = self.changes.get(turn.id)
            key: object = turn.id
            if changed is None:
                key = (turn.kept, turn.typed) if turn.typed.strip() else turn.id
            elif turn.shared >= changed.shared + typed_end(changed):
                key = keys[changed.id]
            keys[turn.id] = key
            groups.setdefault(key, Group(turn.typed if changed is None else "")).turns.append(turn)
        return list(groups.values())

    def aside(self, step: int) -> Turn | None:
        """Return the branch `step` places after the turn on the desk, or before it if negative; None past the ends."""
        desk = self._tree.turn
        if desk is None:
            return None
        branches = [turn for group in self.groups(self.above[desk.id]) for turn in group.turns]
        place = next(place for place, turn in enumerate(branches) if turn.id == desk.id) + step
        return branches[place] if 0 <= place < len(branches) else None

    def lineage(self, number: int) -> list[int]:
        """Return a turn and the turns above it, the nearest first."""
        numbers = []
        while number != ROOT:
            numbers.append(number)
            number = self.above[number]
        return numbers

    def _in_order(self, heads: Sequence[Turn]) -> Iterator[Turn]:
        """Yield turns, each followed by those that change it: the latest change stands nearest to its turn."""
        waiting = list(reversed(heads))
        while waiting:
            turn = waiting.pop()
            yield turn
            waiting += self._changed_by.get(turn.id, [])


def changed_turn(tree: StoryTree, turn: Turn) -> Turn | None:
    """Return the turn of its story in which a turn first changes the text; None if it goes on where its parent ends."""
    before = tree.turns.get(turn.parent)
    if before is None or turn.kept >= before.n_tokens or turn.shared >= before.n_characters:
        return None
    while before is not None and before.shared > turn.shared:
        before = tree.turns.get(before.parent)
    return before


def typed_end(turn: Turn) -> int:
    """Return how many characters of a turn's own text were typed."""
    typed = turn.typed.strip()
    start = turn.own.find(typed, 0, len(typed) + 2) if typed else -1
    return start + len(typed) if start >= 0 else 0
