"""Commands that show the tree of stories and move in it."""

from tinystory.errors import UsageError
from tinystory.repl.commands.base import Reply, command, whole_number
from tinystory.screen.blocks import DeskStory, Line, Outline, Style
from tinystory.story.tree import ROOT, Turn
from tinystory.studio.studio import Studio
from tinystory.writing.generate import bits_per_token

__all__ = ["step_aside"]

_LONG = 10_000
"""Characters of a node's own text that are looked at."""


@command("tree", "", "all stories of this session and their branches")
def _tree(studio: Studio, argument: str) -> Reply:
    """A line a turn: its number, how it begins, decoder, seed, tokens, bits per token. /goto N goes there."""
    tree = studio.tree
    if not tree.turns:
        return Reply((Line("nothing has been written yet", "dim"),))
    on_desk = {turn.id for turn in tree.lineage(tree.current)}
    children, lines, rows = tree.by_parent(), {ROOT: ""}, []
    for turn, _ in tree.walk():
        siblings = children[turn.parent]
        last = siblings[-1].id == turn.id
        # Only where stories part is there a line.
        joint, below = ("", "") if len(siblings) == 1 else ("└ ", "  ") if last else ("├ ", "│ ")
        lines[turn.id] = lines[turn.parent] + below
        here = "● " if turn.id == tree.current else ""
        opening = " ".join(turn.own[:_LONG].split()) or "(cut)"
        style: Style = "bold" if turn.id == tree.current else "" if turn.id in on_desk else "dim"
        rows.append((f"{lines[turn.parent]}{joint}{here}{turn.id}", opening, _facts(turn), style))
    return Reply((Outline(tuple(rows)),))


@command("goto", "N", "go to a turn of the tree; 0 is the blank page")
def _goto(studio: Studio, argument: str) -> Reply:
    studio.goto(whole_number(argument, "/goto", 0))
    return Reply((DeskStory(),))


def step_aside(studio: Studio, step: int) -> Reply:
    """Go to the branch before or after the one on the desk.

    Raises:
        UsageError: there is none.
    """
    turn = studio.tree.branch(step)
    if turn is None:
        raise UsageError(f"there is no branch {'after' if step > 0 else 'before'} this one")
    studio.goto(turn.id)
    return Reply((DeskStory(),))


def _facts(turn: Turn) -> str:
    written = turn.written
    if written is None:
        return "not written on"
    n_tokens, sibling = len(written.tokens), f"/{written.number}" if written.number else ""
    surprise = f"{bits_per_token(written.tokens):.2f} bits"
    return f"{written.spec} · seed {written.seed}{sibling} · {n_tokens} tok · {surprise}"
