"""The token browser: a window on the story. Arrows go from token to token, and through the alternatives of each."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import FormattedTextControl, HSplit, Layout, Window
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.styles import Style as WindowStyle
from prompt_toolkit.utils import get_cwidth

from tinystory.repl.pieces import legend, style_of
from tinystory.safe.showing import visible
from tinystory.screen.colours import HEAT, Style, Theme, rgb
from tinystory.screen.wrapping import Wrapping
from tinystory.story.tracing import alternatives
from tinystory.studio.recall import desk_ids, index_of, n_bos_of
from tinystory.studio.studio import Studio
from tinystory.studio.views import Tint

__all__ = ["LONE_ESCAPE_SECONDS", "N_ALTERNATIVES", "Alternative", "Browser", "browser_of"]

N_ALTERNATIVES = 10
LONE_ESCAPE_SECONDS = 0.1
"""After this time an Escape is a key of its own, not the beginning of an arrow key."""

_BAR_CELLS = 20
_BAR = "█"
_MARKED = "class:marked"


@dataclass(frozen=True)
class Alternative:
    """A token that could stand at a place of the story.

    Attributes:
        text: the text of the token.
        probability: its probability in the model, from 0 to 1.
        taken: whether the story has this token there.
    """

    text: str
    probability: float
    taken: bool


class Browser:
    """A walk through the tokens of a story.

    Attributes:
        place: the index of the token that is looked at.
        choice: the index of the alternative that is looked at; 0 is the likeliest.
    """

    def __init__(
        self,
        texts: Sequence[str],
        alternatives: Callable[[int], Sequence[Alternative]],
        tint: Tint = "off",
        styles: Sequence[Style] = (),
    ) -> None:
        """Begin at the last token.

        Args:
            texts: the texts of the story's tokens, at least one.
            alternatives: gives the tokens that could stand at a place, the likeliest first.
            tint: the measure that colours the tokens.
            styles: the style of each token; none for a story without colours.
        """
        self._texts = texts
        self._alternatives = alternatives
        self._tint = tint
        self._styles = styles or [""] * len(texts)
        self.place = len(texts) - 1
        self.choice = 0

    def move(self, step: int) -> None:
        """Look at the token that is `step` places further."""
        self.place = min(max(self.place + step, 0), len(self._texts) - 1)
        self.choice = 0

    def choose(self, step: int) -> None:
        """Look at the alternative that is `step` places further down."""
        self.choice = min(max(self.choice + step, 0), len(self._alternatives(self.place)) - 1)

    def story(self, width: int) -> StyleAndTextTuples:
        """Return the story in lines of `width` cells, with the token marked. The window follows the cursor."""
        wrapping: Wrapping[str] = Wrapping(lambda: width)
        pieces: StyleAndTextTuples = []
        for index, (text, style) in enumerate(zip(map(visible, self._texts), self._styles, strict=True)):
            marked = index == self.place
            shown = (text.replace("\n", "⏎\n") or "·") if marked else text
            pieces += [(style, part) for part, style in wrapping.add(shown, _MARKED if marked else _class(style))]
        pieces += [(style, part) for part, style in wrapping.settle()]
        mark = next((n for n, piece in enumerate(pieces) if piece[0] == _MARKED), len(pieces))
        return [*pieces[:mark], ("[SetCursorPosition]", ""), *pieces[mark:]]

    def where(self) -> StyleAndTextTuples:
        """Return the place in the story, and the tint with its colours."""
        place = f"token {self.place + 1:,} of {len(self._texts):,}, "
        if self._tint == "off":
            return [("", f"{place}no tint (/color) ")]
        return [("", place), *((_class(style), text) for text, style in legend(self._tint)), ("", " ")]

    def list(self) -> StyleAndTextTuples:
        """Return the alternatives with bars: an arrow marks the choice, a dot the token of the story."""
        alternatives = self._alternatives(self.place)
        shown = [visible(repr(alternative.text)[1:-1]) for alternative in alternatives]
        width = max(map(get_cwidth, shown), default=0)
        pieces: StyleAndTextTuples = []
        for index, (alternative, text) in enumerate(zip(alternatives, shown, strict=True)):
            mark = "→" if index == self.choice else " "
            bar = _BAR * round(alternative.probability * _BAR_CELLS)
            taken, space = "•" if alternative.taken else " ", " " * (width - get_cwidth(text))
            line = f"{mark} {taken} “{text}”{space} {alternative.probability:6.1%} {bar}\n"
            pieces.append(("class:chosen" if index == self.choice else "", line))
        return pieces

    def application(self, *, color: bool, theme: Theme = "any") -> "Application[tuple[int, int] | None]":
        """Return the window. Its result is (place, choice) after Enter, and None after leaving.

        Args:
            color: whether text may have a weight and a colour.
            theme: the background of the terminal.
        """
        keys = KeyBindings()

        def go(key: str, act: Callable[[], None]) -> None:
            keys.add(key)(lambda event: act())

        go("left", lambda: self.move(-1))
        go("right", lambda: self.move(1))
        go("home", lambda: self.move(-len(self._texts)))
        go("end", lambda: self.move(len(self._texts)))
        go("up", lambda: self.choose(-1))
        go("down", lambda: self.choose(1))

        @keys.add("enter")
        def _take(event: KeyPressEvent) -> None:
            event.app.exit(result=(self.place, self.choice))

        @keys.add("escape", eager=True)
        @keys.add("q")
        @keys.add("c-c")
        @keys.add("c-d")
        @keys.add("<sigint>")
        def _leave(event: KeyPressEvent) -> None:
            event.app.exit(result=None)

        rows = [
            Window(
                FormattedTextControl("← → token   ↑ ↓ alternative   Enter branches   Esc leaves"),
                height=1,
                wrap_lines=False,
            ),
            Window(
                FormattedTextControl(
                    lambda: self.story(get_app().output.get_size().columns), focusable=True, show_cursor=False
                ),
                wrap_lines=True,
                height=Dimension(min=1, max=10),
            ),
            Window(FormattedTextControl(self.where), height=1, char="─", wrap_lines=False),
            Window(FormattedTextControl(self.list), height=Dimension(min=1, max=N_ALTERNATIVES), wrap_lines=False),
        ]
        weights = {"chosen": "bold", "bold": "bold", **{f"heat{n}": rgb(i) for n, i in enumerate(HEAT[theme])}}
        style = WindowStyle.from_dict({"marked": "reverse", **(weights if color else {})})
        window: Application[tuple[int, int] | None] = Application(
            Layout(HSplit(rows)), key_bindings=keys, style=style, erase_when_done=True
        )
        window.ttimeoutlen = LONE_ESCAPE_SECONDS
        return window


def browser_of(studio: Studio, position: str = "-1") -> Browser:
    """Return a browser of the story on the desk that begins at a position, as users count it.

    Raises:
        UsageError: the page is blank, or there is no such position.
    """
    index = index_of(studio, position, "the browser")
    studio.backend.wait(lambda: False)
    ids = desk_ids(studio)
    start = max(1, n_bos_of(studio, ids))
    logits = studio.backend.logits(ids, start)
    text = studio.backend.token_text

    def alternatives_at(place: int) -> list[Alternative]:
        likeliest = alternatives(logits[place], N_ALTERNATIVES)
        return [Alternative(text(i), math.exp(log_prob), i == ids[start + place]) for i, log_prob in likeliest]

    browser = Browser([text(i) for i in ids[start:]], alternatives_at, studio.tint, _styles(studio, ids)[start:])
    browser.place = index - start
    return browser


def _styles(studio: Studio, ids: Sequence[int]) -> list[Style]:
    """Return the style of each token of the story: typed ones are bold, the others have the studio's tint."""
    path = list(studio.tree.path(studio.tree.current))
    if [token.id for token in path] != list(ids):  # the story has the vocabulary of another model
        return [""] * len(ids)
    return [style_of(token.token, studio.tint) if token.token else "bold" for token in path]


def _class(style: str) -> str:
    return f"class:{style}" if style else ""
