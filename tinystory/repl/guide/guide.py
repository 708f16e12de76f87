"""The guide of a chat: it has the line that stands ready at the prompt, and leads through the tour."""

from tinystory.repl.guide.ready_line import ReadyLine
from tinystory.repl.guide.tour import LEFT, THE_END, Tour
from tinystory.screen.blocks import Line
from tinystory.screen.facts import is_dumb
from tinystory.screen.screen import Screen
from tinystory.studio.studio import Studio

__all__ = ["Guide"]


class Guide:
    """What a chat says and offers before each input line.

    Attributes:
        ready: the line that stands ready at the prompt.
    """

    def __init__(self, studio: Studio, screen: Screen) -> None:
        self.ready = ReadyLine()
        self._studio = studio
        self._screen = screen
        self._tour: Tour | None = None

    def begin_tour(self) -> None:
        """Begin the tour at its first step."""
        self._tour = Tour(self._studio)

    def announce(self) -> None:
        """Offer the next step of the tour, if there is a tour; end it after its last step."""
        if self._tour is None:
            return
        self._screen.gap()
        if self._tour.ended:
            self._tour = None
            self._screen.show(Line(THE_END, "note"))
            return
        sentence, self.ready.next = self._tour.offer()
        self._screen.show(Line(sentence, "note"))
        if is_dumb():  # no line can stand ready there
            self._screen.show(Line(f"Enter alone does {self.ready.next}", "note"))

    def meaning(self, typed: str) -> str:
        """Return the line to do. Anything but the step that was offered leaves the tour."""
        if self._tour is None:
            return typed
        line = self.ready.present if is_dumb() and not typed else typed
        if not self._tour.take(line):
            self.leave_tour()
        return line

    def leave_tour(self) -> None:
        """End the tour, if there is one."""
        if self._tour is not None:
            self._tour = None
            self._screen.show(Line(LEFT, "note"))
