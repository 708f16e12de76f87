"""Commands that show the tree of stories and go to its turns."""

from tinystory.errors import UsageError
from tinystory.repl.commands.base import DeskStory, Reply, command, whole_number
from tinystory.screen.blocks import Line, Outline
from tinystory.screen.colours import Style
from tinystory.story.tree import ROOT, Turn
from tinystory.studio.studio import Studio
from tinystory.writing.generate import bits_per_token

__all__ = ["step_aside"]

_LONGEST_OPENING = 10_000
"""Characters of a turn's own text that are read for its row; the row is cut to one line."""


@command("tree", "", "show all stories of this session and their branches")
def _tree(studio: Studio, argument: str) -> Reply:
    """Show a line for each turn: number, first words, decoder, seed, tokens, bits per token. /goto N goes to turn N."""
    tree = studio.tree
    if not tree.turns:
        return Reply((Line("nothing has been written yet", "dim"),))
    on_desk = {turn.id for turn in tree.lineage(tree.current)}
    children, lines, rows = tree.by_parent(), {ROOT: ""}, []
    for turn, _ in tree.walk():
        branches = children[turn.parent]
        last = branches[-1].id == turn.id
        # A turn without other branches needs no line that joins it to its parent.
        joint, below = ("", "") if len(branches) == 1 else ("└ ", "  ") if last else ("├ ", "│ ")
        lines[turn.id] = lines[turn.parent] + below
        here = "● " if turn.id == tree.current else ""
        opening = " ".join(turn.own[:_LONGEST_OPENING].split()) or "(cut)"
        style: Style = "bold" if turn.id == tree.current else "" if turn.id in on_desk else "dim"
        rows.append((f"{lines[turn.parent]}{joint}{here}{turn.id}", opening, _facts(turn), style))
    return Reply((Outline(tuple(rows)),))


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
