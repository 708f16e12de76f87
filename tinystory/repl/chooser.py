"""Asks the person at the terminal for the next token: what the sampler `human` stands on."""

from collections.abc import Iterable, Sequence
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.output import ColorDepth

from tinystory.decoding import Decoder, Step
from tinystory.errors import UsageError
from tinystory.screen.blocks import Bars, Line, Style
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
    """Whether a decoder lets a person pick."""
    return decoder.sampler is not None and not decoder.sampler.repeatable


def check_alone(decoders: Iterable[Decoder]) -> None:
    """Refuse to write several stories at once where one of them asks; raises UsageError."""
    if any(map(asks, decoders)):
        raise UsageError("human picks for one story at a time, not side by side")


class Chooser:
    """Shows the likeliest tokens under the end of the story, by plain writes, and reads a choice.

    Ctrl-C and Ctrl-D end the turn: they arrive as KeyboardInterrupt, and what was picked so far is kept.
    """

    def __init__(self, studio: Studio, screen: Screen) -> None:
        self._studio = studio
        self._screen = screen
        self._prompt: PromptSession[str] | None = None
        self._helped = False

    def __call__(self, logits: "Tensor", step: Step) -> int:
        """(V,) logits -> the id of a token that is left."""
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
            self._screen.show(Line(f"no token that is left reads {quoted(typed)}; {HELP}", "note"))

    def _show(self, logits: "Tensor", step: Step) -> list[int]:
        backend, width = self._studio.backend, get_terminal_size().columns
        probs = logits.softmax(dim=-1)
        n_left = int((probs > 0).sum())
        shares, ids = (found.tolist() for found in probs.topk(max(1, min(N_SHOWN, n_left))))
        rows: list[tuple[str, float, str, Style]] = [
            (str(n + 1), share, THE_END if i in step.eos_ids else quoted(backend.token_text(i)), "")
            for n, (i, share) in enumerate(zip(ids, shares, strict=True))
        ]
        self._screen.gap()
        self._screen.show(Line(_last_words(backend, step.token_ids, width), "bold"), Bars(tuple(rows)))
        return list(ids)

    def _read(self) -> str:
        if self._prompt is None:
            depth = None if self._screen.color else ColorDepth.DEPTH_1_BIT
            self._prompt = PromptSession(PROMPT, erase_when_done=True, color_depth=depth)
        return self._prompt.prompt()

    def _meant(self, typed: str, shown: list[int], logits: "Tensor") -> int | None:
        """The token that a line stands for: a number of the list, or a text, with a space before it or without."""
        if not typed:
            return shown[0]
        if typed.strip().isdecimal() and 1 <= int(typed) <= len(shown):
            return shown[int(typed) - 1]
        left = (logits > -float("inf")).nonzero()[:, 0].tolist()
        named = [i for i in left if self._studio.backend.token_text(i) in (typed, " " + typed)]
        return max(named, key=lambda i: float(logits[i]), default=None)


def _last_words(backend: Backend, token_ids: Sequence[int], width: int) -> str:
    """The end of a story that fits on a line."""
    text = " ".join(backend.detokenize(token_ids).split())
    return text if len(text) < width else "…" + text[2 - width :]
