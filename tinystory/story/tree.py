"""The story tree: every continuation is a node, nothing is ever lost. Knows no model, no file and no terminal.

A node goes on from a piece of its parent's tokens, adds what the writer typed and then what the model wrote. So a retry
is a sibling, a cut is a node that keeps less, and an edit is a cut with something typed after it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tinystory.decoding import FinishReason, Token
from tinystory.errors import UsageError

__all__ = ["ROOT", "Node", "PathToken", "StoryTree", "Written"]

ROOT = 0
"""The blank page that every story begins on."""


@dataclass(frozen=True)
class Written:
    """The model's part of a node, with everything that it takes to write it again.

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


@dataclass(frozen=True)
class Node:
    """One turn of a story.

    Its tokens are the parent's first `kept`, then `typed_ids`, then those picked but for the last `hidden`, then
    `tail_ids`.

    Attributes:
        id: its number in the tree, from 1, in the order of writing.
        parent: the number of the node it goes on from; `ROOT` for a story's first.
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
        node: the number of the node that brought it.
        token: how the model picked it; None where it was typed.
    """

    id: int
    node: int
    token: Token | None = None


@dataclass
class StoryTree:
    """All stories of a session.

    Attributes:
        nodes: by number.
        current: the number of the node on the desk; `ROOT` is a blank page.
        latest: of a node the child that was last on the desk or above it: where `redo` goes.
    """

    nodes: dict[int, Node] = field(default_factory=dict)
    current: int = ROOT
    latest: dict[int, int] = field(default_factory=dict)

    @property
    def node(self) -> Node | None:
        """The one on the desk; None on a blank page."""
        return self.nodes.get(self.current)

    def add(self, node: Node) -> Node:
        """Put a new node on the desk; its number is given here, whatever it came with.

        Raises:
            UsageError: the parent is unknown, or is shorter than what is kept of it.
        """
        if node.parent != ROOT and node.parent not in self.nodes:
            raise UsageError(f"there is no node {node.parent}")
        if not 0 <= node.kept <= len(self.token_ids(node.parent)):
            raise UsageError(f"node {node.parent} has {len(self.token_ids(node.parent))} tokens, not {node.kept}")
        if not 0 <= node.shared <= len(self.text(node.parent)):
            raise UsageError(f"node {node.parent} has {len(self.text(node.parent))} characters, not {node.shared}")
        node = replace(node, id=max(self.nodes, default=ROOT) + 1)
        self.nodes[node.id] = node
        self.goto(node.id)
        return node

    def goto(self, number: int) -> None:
        """Put a node on the desk.

        Raises:
            UsageError: there is none of that number.
        """
        if number != ROOT and number not in self.nodes:
            last = max(self.nodes, default=ROOT)
            raise UsageError(f"there is no node {number}; they go from {ROOT}, the blank page, to {last}")
        self.current = number
        for node in self.lineage(number):
            self.latest[node.parent] = node.id

    def undo(self, n: int = 1) -> int:
        """Go back n turns, or as many as there are; how many it was."""
        for done in range(n):
            node = self.node
            if node is None:
                return done
            self.current = node.parent
        return n

    def redo(self, n: int = 1) -> int:
        """Go n turns towards where the desk last was; how many it was."""
        for done in range(n):
            if self.current not in self.latest:
                return done
            self.current = self.latest[self.current]
        return n

    def children(self, number: int) -> list[Node]:
        """The nodes that go on from this one, in the order of writing."""
        return [node for node in self.nodes.values() if node.parent == number]

    def by_parent(self) -> dict[int, list[Node]]:
        """The nodes that go on from each node, in the order of writing."""
        found: dict[int, list[Node]] = {}
        for node in self.nodes.values():
            found.setdefault(node.parent, []).append(node)
        return found

    def sibling(self, step: int) -> Node | None:
        """The child of the same parent `step` places further; None where there is none."""
        node = self.node
        if node is None:
            return None
        siblings = self.children(node.parent)
        place = siblings.index(node) + step
        return siblings[place] if 0 <= place < len(siblings) else None

    def lineage(self, number: int) -> list[Node]:
        """From a story's first node to this one."""
        found = []
        while number != ROOT:
            found.append(self.nodes[number])
            number = self.nodes[number].parent
        return found[::-1]

    def path(self, number: int) -> list[PathToken]:
        """Every token of a story, with where it came from."""
        path: list[PathToken] = []
        for node in self.lineage(number):
            del path[node.kept :]
            path += [PathToken(token_id, node.id) for token_id in node.typed_ids]
            path += [PathToken(token.id, node.id, token) for token in node.picked]
            path += [PathToken(token_id, node.id) for token_id in node.tail_ids]
        return path

    def token_ids(self, number: int) -> tuple[int, ...]:
        """The tokens of a story, BOS included."""
        return tuple(token.id for token in self.path(number))

    def text(self, number: int) -> str:
        """A story, as shown."""
        text = ""
        for node in self.lineage(number):
            text = text[: node.shared] + node.own
        return text

    def n_prompt(self, number: int) -> int:
        """How many of a story's tokens are what its writer began it with."""
        n = 0
        for node in self.lineage(number):
            n = len(node.typed_ids) if node.kept == 0 else min(n, node.kept)
        return n

    def walk(self) -> Iterator[tuple[Node, int]]:
        """Every node below its parent, with its depth, from 0."""
        children = self.by_parent()
        waiting: list[tuple[Node, int]] = [(node, 0) for node in reversed(children.get(ROOT, []))]
        while waiting:
            node, depth = waiting.pop()
            yield node, depth
            waiting += [(child, depth + 1) for child in reversed(children.get(node.id, []))]
