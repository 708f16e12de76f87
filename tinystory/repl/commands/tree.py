"""Commands that show the tree of stories and move in it."""

from tinystory.errors import UsageError
from tinystory.repl.commands.base import Reply, command, whole_number
from tinystory.screen.blocks import Line, Outline, Story, Style
from tinystory.story.tree import ROOT, Node
from tinystory.studio.studio import Studio
from tinystory.writing.generate import bits_per_token

__all__ = ["step_aside"]

_LONG = 10_000
"""Characters of a node's own text that are looked at."""


@command("tree", "", "all stories of this session and their branches")
def _tree(studio: Studio, argument: str) -> Reply:
    """A line a turn: its number, how it begins, decoder, seed, tokens, bits per token. /goto N goes there."""
    tree = studio.tree
    if not tree.nodes:
        return Reply((Line("nothing has been written yet", "dim"),))
    on_desk = {node.id for node in tree.lineage(tree.current)}
    children, lines, rows = tree.by_parent(), {ROOT: ""}, []
    for node, _ in tree.walk():
        siblings = children[node.parent]
        last = siblings[-1].id == node.id
        # Only where stories part is there a line.
        joint, below = ("", "") if len(siblings) == 1 else ("└ ", "  ") if last else ("├ ", "│ ")
        lines[node.id] = lines[node.parent] + below
        here = "● " if node.id == tree.current else ""
        opening = " ".join(node.own[:_LONG].split()) or "(cut)"
        style: Style = "bold" if node.id == tree.current else "" if node.id in on_desk else "dim"
        rows.append((f"{lines[node.parent]}{joint}{here}{node.id}", opening, _facts(node), style))
    return Reply((Outline(tuple(rows)),))


@command("goto", "N", "go to a turn of the tree; 0 is the blank page")
def _goto(studio: Studio, argument: str) -> Reply:
    studio.goto(whole_number(argument, "/goto", 0))
    return Reply((Story(),))


def step_aside(studio: Studio, step: int) -> Reply:
    """Go to the branch before or after the one on the desk.

    Raises:
        UsageError: there is none.
    """
    node = studio.tree.sibling(step)
    if node is None:
        raise UsageError(f"there is no branch {'after' if step > 0 else 'before'} this one")
    studio.goto(node.id)
    return Reply((Story(),))


def _facts(node: Node) -> str:
    written = node.written
    if written is None:
        return "not written on"
    n_tokens, sibling = len(written.tokens), f"/{written.number}" if written.number else ""
    surprise = f"{bits_per_token(written.tokens):.2f} bits"
    return f"{written.spec} · seed {written.seed}{sibling} · {n_tokens} tok · {surprise}"
