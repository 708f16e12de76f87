"""Commands that show the tree of stories and go to its turns."""

from collections.abc import Collection, Iterator, Sequence

from tinystory.errors import UsageError
from tinystory.repl.commands.base import DeskStory, Reply, command, whole_number
from tinystory.safe.reading import shown
from tinystory.screen.blocks import Line, Outline
from tinystory.screen.colours import Style
from tinystory.story.tree import ROOT, StoryTree, Turn
from tinystory.studio.studio import Studio
from tinystory.writing.generate import bits_per_token

__all__ = ["step_aside"]

_LONGEST_OPENING = 10_000
"""Characters of a turn's own text that are read for its row; the row is cut to one line."""
_MOST_ROWS = 200
"""Turns that /tree shows without `all`."""
_WIDEST_LINES = 24
"""Cells of the lines before a row."""


@command("tree", "[all]", "show the stories of this session and their branches")
def _tree(studio: Studio, argument: str) -> Reply:
    """Show a line for each turn: number, first words, decoder, seed, tokens, bits per token. /goto N goes to turn N.

    Of more than 200 turns, it shows the 200 around the turn on the desk; /tree all shows every turn.
    """
    if argument not in ("", "all"):
        raise UsageError(f"/tree takes nothing, or `all` for every turn, not {shown(argument)}")
    tree = studio.tree
    if not tree.turns:
        return Reply((Line("nothing has been written yet", "dim"),))
    order = [turn for turn, _ in tree.walk()]
    desk = next((place for place, turn in enumerate(order) if turn.id == tree.current), 0)
    first = 0 if argument else max(0, min(desk - _MOST_ROWS // 2, len(order) - _MOST_ROWS))
    seen = order[first:] if argument else order[first : first + _MOST_ROWS]
    rows = Outline(tuple(_rows(tree, order, {turn.id for turn in seen})))
    return Reply((*_left_out(first, "before"), rows, *_left_out(len(order) - first - len(seen), "after")))


def _left_out(n_turns: int, where: str) -> tuple[Line, ...]:
    return (Line(f"… {n_turns:,} turns {where} these; /tree all shows them", "note"),) if n_turns else ()


def _rows(tree: StoryTree, order: Sequence[Turn], seen: Collection[int]) -> Iterator[tuple[str, str, str, Style]]:
    """Yield the rows of some turns, each after its parent; the lines of a row show its depth, up to 12 branches."""
    on_desk = {turn.id for turn in tree.lineage(tree.current)}
    children, lines = tree.by_parent(), {ROOT: ""}
    for turn in order:
        branches = children[turn.parent]
        last = branches[-1].id == turn.id
        # A turn without other branches needs no line that joins it to its parent.
        joint, below = ("", "") if len(branches) == 1 else ("└ ", "  ") if last else ("├ ", "│ ")
        above = lines[turn.parent]
        longer = above + below
        lines[turn.id] = longer if len(longer) <= _WIDEST_LINES else "…" + longer[1 - _WIDEST_LINES :]
        if turn.id in seen:
            here = "● " if turn.id == tree.current else ""
            opening = " ".join(turn.own[:_LONGEST_OPENING].split()) or "(cut)"
            style: Style = "bold" if turn.id == tree.current else "" if turn.id in on_desk else "dim"
            yield f"{above}{joint}{here}{turn.id}", opening, _facts(turn), style


@command("goto", "N", "go to turn N of the tree; 0 is the blank page")
def _goto(studio: Studio, argument: str) -> Reply:
    studio.goto(whole_number(argument, "/goto", 0))
    return Reply((DeskStory(),))


def step_aside(studio: Studio, step: int) -> Reply:
    """Put the branch that is `step` places further on the desk; return a reply that shows its story.

    Raises:
        UsageError: there is no such branch.
    """
    turn = studio.tree.branch(step)
    if turn is None:
        raise UsageError(f"there is no branch {'after' if step > 0 else 'before'} this one")
    studio.goto(turn.id)
    return Reply((DeskStory(),))


def _facts(turn: Turn) -> str:
    written = turn.written
    if written is None:
        return "typed"
    n_tokens, branch = len(written.tokens), f"/{written.number}" if written.number else ""
    surprise = f"{bits_per_token(written.tokens):.2f} bits"
    return f"{written.spec} · seed {written.seed}{branch} · {n_tokens} tok · {surprise}"
