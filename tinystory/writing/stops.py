"""XXX-DOC."""

from collections.abc import Sequence

__all__: list[str] = []


class StopFilter:
    """Passes text on, up to the first stop text; holds back an end that may turn out to be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.hit = False
        self._held = ""

    def add(self, text: str) -> str:
        if not self.stops or self.hit:
            return "" if self.hit else text
        self._held += text
        end = self._end(self._held)
        if end is not None:
            self.hit = True
            return self._release(end)
        maybe = max((n for stop in self.stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        return self._release(len(self._held) - maybe)

    def peek(self, text: str) -> str:
        """What would be shown after what has been passed on, if nothing followed this text."""
        text = self._held + text
        return "" if self.hit else text[: self._end(text)]

    def finish(self) -> str:
        return "" if self.hit else self._release(len(self._held))

    def _end(self, text: str) -> int | None:
        """Where the first stop text begins."""
        return min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=None)

    def _release(self, n: int) -> str:
        passed, self._held = self._held[:n], self._held[n:]
        return passed
