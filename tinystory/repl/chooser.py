"""A chooser that asks the person at the terminal for the next token. The sampler `human` uses it."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.output import ColorDepth

from tinystory.decoding import Decoder, Step
from tinystory.errors import UsageError, one_line
from tinystory.repl.input_line import read_line
from tinystory.repl.keys import plain_line
from tinystory.screen.blocks import Bars, Line
from tinystory.screen.cells import shorten_start
from tinystory.screen.colours import Style
from tinystory.screen.facts import is_dumb
from tinystory.screen.screen import Screen
from tinystory.studio.backend import Backend
from tinystory.studio.recall import quoted
from tinystory.studio.studio import Studio

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Chooser", "asks", "check_alone"]

N_SHOWN = 10
PROMPT = "pick> "
HELP = "a number, or a token's text; Enter takes the likeliest, Ctrl-C stops"
THE_END = "(the end)"


def asks(decoder: Decoder) -> bool:
    """Return whether a decoder lets a person pick."""
    return decoder.sampler is not None and not decoder.sampler.repeatable


def check_alone(decoders: Iterable[Decoder]) -> None:
    """Refuse to write several stories at once if a person picks the tokens of one.

    Raises:
        UsageError: one of the decoders asks a person.
    """
    if any(map(asks, decoders)):
        raise UsageError("human picks for one story at a time, not side by side")


class Chooser:
    """A question for the next token: the end of the story, the likeliest tokens, and a line to type the choice.

    Ctrl-C and Ctrl-D raise KeyboardInterrupt. They end the turn, which keeps the tokens picked so far.
    """

    def __init__(self, studio: Studio, screen: Screen) -> None:
        self._studio = studio
        self._screen = screen
        self._prompt: PromptSession[str] | None = None
        self._helped = False

    def __call__(self, logits: "Tensor", step: Step) -> int:
        """Return the id of the token that the person chose, from (V,) logits; its logit is above -inf."""
        shown = self._show(logits, step)
        if not self._helped:
            self._screen.show(Line(HELP, "note"))
            self._helped = True
        while True:
            try:
                typed = self._read()
            except EOFError:
                raise KeyboardInterrupt from None
            token_id = self._meant(typed, shown, logits)
            if token_id is not None:
                return token_id
            self._screen.show(Line(f"no possible token is {quoted(typed)}; {HELP}", "note"))

    def _show(self, logits: "Tensor", step: Step) -> list[int]:
        backend, width = self._studio.backend, self._screen.width
        probs = logits.softmax(dim=-1)
        n_left = int((probs > 0).sum())
        likeliest = probs.topk(max(1, min(N_SHOWN, n_left)))
        shares, ids = likeliest.values.tolist(), likeliest.indices.tolist()
        rows: list[tuple[str, float, str, Style]] = [
            (str(n + 1), share, THE_END if i in step.eos_ids else quoted(backend.token_text(i)), "")
            for n, (i, share) in enumerate(zip(ids, shares, strict=True))
        ]
        self._screen.gap()
        self._screen.show(Line(_last_words(backend, step.token_ids, width), "bold"), Bars(tuple(rows)))
        return list(ids)

    def _read(self) -> str:
        if is_dumb():
            return plain_line(PROMPT)
        if self._prompt is None:
            depth = None if self._screen.color else ColorDepth.DEPTH_1_BIT
            self._prompt = PromptSession(PROMPT, erase_when_done=True, color_depth=depth)
        return read_line(self._prompt, lambda error: self._screen.show(Line(one_line(error, kind=True), "note")))

    def _meant(self, typed: str, shown: list[int], logits: "Tensor") -> int | None:
        """Return the token that a typed line names by its number in the list or by its text, even without a space."""
        if not typed:
            return shown[0]
        if typed.strip().isdecimal() and 1 <= int(typed) <= len(shown):
            return shown[int(typed) - 1]
        left = (logits > -float("inf")).nonzero()[:, 0].tolist()
        named = [i for i in left if self._studio.backend.token_text(i) in (typed, " " + typed)]
        return max(named, key=lambda i: float(logits[i]), default=None)


def _last_words(backend: Backend, token_ids: Sequence[int], width: int) -> str:
    """Return the end of a story that fits on a line of `width` cells."""
    return shorten_start(" ".join(backend.detokenize(token_ids).split()), width - 1)
