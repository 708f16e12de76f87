"""Find the stop text in a growing text at which a story ends. It knows only text."""

from collections.abc import Sequence

__all__ = ["StopFilter"]


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

    def add(self, text: str) -> str:
        """Take the next part of the text, and return what is certain to be part of the story."""
        if not self.stops or self.hit:
            return "" if self.hit else text
        self._held += text
        end = self._end(self._held)
        if end is not None:
            self.hit = True
            return self._release(end)
        beginnings = (n for stop in self.stops for n in range(1, len(stop)) if self._held.endswith(stop[:n]))
        return self._release(len(self._held) - max(beginnings, default=0))

    def peek(self, text: str) -> str:
        """Return what would be passed on if this were the last part of the text; the filter stays as it is."""
        text = self._held + text
        return "" if self.hit else text[: self._end(text)]

    def finish(self) -> str:
        """Return the text that is still held back; call it after the last part."""
        return "" if self.hit else self._release(len(self._held))

    def _end(self, text: str) -> int | None:
        """Return the index at which the first stop text begins; None if there is none."""
        return min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=None)

    def _release(self, n: int) -> str:
        passed, self._held = self._held[:n], self._held[n:]
        return passed
