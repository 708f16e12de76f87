"""Find the stop text in a growing text at which a story ends. It knows only text."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from tinystory.errors import UsageError

__all__ = ["MAX_STOPS", "MAX_STOP_CHARACTERS", "StopFilter", "check_stops"]

MAX_STOPS = 1_000
"""The largest number of stop texts."""
MAX_STOP_CHARACTERS = 20_000
"""The largest number of characters of all stop texts together."""


def check_stops(stops: Sequence[str]) -> None:
    """Check stop texts; raise UsageError if one is empty, if there are too many, or if they are too long."""
    if not all(stops):
        raise UsageError("a stop text is empty; it would end the story before its first word")
    n_characters = sum(map(len, stops))
    if len(stops) > MAX_STOPS or n_characters > MAX_STOP_CHARACTERS:
        raise UsageError(
            f"there are {len(stops):,} stop texts with {n_characters:,} characters; "
            f"at most {MAX_STOPS:,} with {MAX_STOP_CHARACTERS:,} are allowed"
        )


@dataclass(eq=False)
class _Node:
    """One beginning of a stop text.

    Attributes:
        depth: its number of characters.
        following: the longer beginnings, by their last character.
        shorter: the longest other beginning with which this one ends; the root has itself.
        longest: the length of the longest stop text with which this one ends; 0 if there is none.
    """

    depth: int
    following: "dict[str, _Node]" = field(default_factory=dict)
    shorter: "_Node" = field(init=False)
    longest: int = 0

    def __post_init__(self) -> None:
        self.shorter = self

    def after(self, character: str) -> "_Node":
        """Return the longest beginning with which the text ends after one more character."""
        node = self
        while character not in node.following and node.depth:
            node = node.shorter
        return node.following.get(character, node)


@lru_cache(maxsize=8)
def _beginnings(stops: tuple[str, ...]) -> _Node:
    """Return the root of all beginnings of stop texts.

    With it, a character costs the same for one stop text and for a thousand (Aho and Corasick, 1975).
    """
    root = _Node(0)
    for stop in stops:
        node = root
        for character in stop:
            node = node.following.setdefault(character, _Node(node.depth + 1))
        node.longest = len(stop)
    waiting = deque([root])
    while waiting:  # the shorter ones first, because the longer ones need them
        node = waiting.popleft()
        for character, longer in node.following.items():
            longer.shorter = root if node is root else node.shorter.after(character)
            longer.longest = longer.longest or longer.shorter.longest
            waiting.append(longer)
    return root


class StopFilter:
    """A filter that passes text on up to the first stop text.

    It holds back the end of the text while this may be the beginning of a stop text.

    Attributes:
        stops: the stop texts, none of them empty.
        hit: True once a stop text was complete; nothing is passed on after that.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.hit = False
        self._held = ""
        self._node = _beginnings(tuple(stops))

    def add(self, text: str) -> str:
        """Take the next part of the text, and return what is certain to be part of the story."""
        if not self.stops or self.hit:
            return "" if self.hit else text
        end, self._node = self._search(text)
        self._held += text
        if end is not None:
            self.hit = True
            return self._release(end)
        return self._release(len(self._held) - self._node.depth)

    def peek(self, text: str) -> str:
        """Return what would be passed on if this were the last part of the text; the filter stays as it is."""
        return "" if self.hit else (self._held + text)[: self._search(text)[0]]

    def finish(self) -> str:
        """Return the text that is still held back; call it after the last part."""
        return "" if self.hit else self._release(len(self._held))

    def _search(self, text: str) -> tuple[int | None, _Node]:
        """Return where in the held text and this text the first stop text begins, if any, and the last beginning."""
        ends = []
        node = self._node
        for position, character in enumerate(text, start=len(self._held) + 1):
            node = node.after(character)
            if node.longest:
                ends.append(position - node.longest)
        return min(ends, default=None), node

    def _release(self, n: int) -> str:
        passed, self._held = self._held[:n], self._held[n:]
        return passed
