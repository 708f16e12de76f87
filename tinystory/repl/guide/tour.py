"""The tour: ten steps on the story on the desk, each a sentence and a line that does it."""

from collections.abc import Callable
from dataclasses import dataclass

from tinystory.screen.facts import is_dumb
from tinystory.story.tree import PathToken
from tinystory.studio.studio import Studio

__all__ = ["Tour"]

COMPARED = "top-k 40 | sample 0.8 ; greedy ; sample 1.5"
OWN_DECODER = "top-k 40 | min-p 0.05 | sample 0.9"
THE_END = (
    "That was the tour. /help has more, and /reset goes back to the first decoder. A stage of your own is one short"
    " file: `tinystory decoders new NAME` in the shell writes its beginning."
)
LEFT = "you have left the tour; /tour begins it again"


@dataclass(frozen=True)
class Step:
    """A step of the tour.

    Attributes:
        sentence: what there is to see.
        line: gives the line that does it, from the story on the desk.
    """

    sentence: str
    line: Callable[[Studio], str]


class Tour:
    """A walk through ten steps. Until the story on the desk has a part that the model wrote, it offers to write."""

    def __init__(self, studio: Studio) -> None:
        """Begin at the first step, with the story on the desk."""
        self._studio = studio
        self._n_done = 0
        self._offered = ""
        self._writes = False

    @property
    def ended(self) -> bool:
        """Whether all steps are done."""
        return self._n_done == len(_STEPS)

    def offer(self) -> tuple[str, str]:
        """Return the sentence of the next step with its number, and the line to offer."""
        self._writes = not self._n_done or not _is_written(self._studio)
        n = 0 if self._writes else self._n_done
        self._offered = _STEPS[n].line(self._studio)
        return f"{n + 1}/{len(_STEPS)} {_STEPS[n].sentence}", self._offered

    def take(self, typed: str) -> bool:
        """Return whether a typed line is the offered step, and count it; where a story is begun, any text is."""
        own_words = self._writes and self._studio.tree.turn is None and typed.strip() != "" and typed[0] != "/"
        if typed != self._offered and not own_words:
            return False
        self._n_done = max(self._n_done, 1) if self._writes else self._n_done + 1
        return True


def _is_written(studio: Studio) -> bool:
    turn = studio.tree.turn
    return turn is not None and turn.written is not None and turn.vocabulary == studio.backend.vocabulary


def _beginning(studio: Studio) -> str:
    return "/go 40" if studio.tree.turn else "Once upon a time"


def _least_expected(studio: Studio) -> str:
    """Return a /pick at the token of the latest turn that the model expected least."""
    path = _path(studio)
    picked = [(token.token.logprob, place) for place, token in enumerate(path) if place and token.token]
    own = [pair for pair in picked if path[pair[1]].turn == studio.tree.current] or picked
    if not own:
        return "/pick -1 #2"
    _, place = min(own)
    token = path[place].token
    rank = 1 if token is not None and token.rank > 0 else 2  # another token than the one in the story
    return f"/pick {place - len(path)} #{rank}"


def _funnel(studio: Studio) -> str:
    """Return a /trace at the latest token that a decoder of several stages picked; else at the latest one."""
    path = _path(studio)
    picked = [place for place, token in enumerate(path) if place and token.token]
    several = [place for place in picked if _has_stages(studio, path[place])]
    places = several or picked
    return f"/trace {places[-1] - len(path)}" if places else "/trace"


def _has_stages(studio: Studio, token: PathToken) -> bool:
    written = studio.tree.turns[token.turn].written
    return written is not None and " | " in written.spec


def _path(studio: Studio) -> list[PathToken]:
    return list(studio.tree.path(studio.tree.current))


_STEPS = (
    Step("You type a beginning, and the model goes on. Enter does each step.", _beginning),
    Step("The same beginning with a fresh seed. The old turn stays, as a branch.", lambda _: "/retry"),
    Step(
        "Three decoders with one noise; the first column then is on the desk.",
        lambda _: f"/compare {COMPARED}",
    ),
    Step(
        "How expected was each token? Colours show it; /color off ends them.",
        lambda studio: "/stats" if studio.plain else "/color surprise",
    ),
    Step(
        "Arrows walk through the tokens and what else could stand there; Escape ends it.",
        lambda _: "/top -1 5" if is_dumb() else "/walk",
    ),
    Step("Where the token was least expected: take another, and the model goes on.", _least_expected),
    Step("The funnel: how many tokens each stage left, and which one was picked.", _funnel),
    Step("What greedy cannot say: the marked tokens were not the likeliest.", lambda _: "/whatif greedy"),
    Step("Nothing is lost: /undo goes back by a turn, /goto N to any turn.", lambda _: "/tree"),
    Step("A decoder of your own: join stages with |, from /decoders.", lambda _: f"/decoder {OWN_DECODER}"),
)
