"""The story so far, as text and as the exact tokens it is made of."""

import re
from dataclasses import dataclass

from tinystory.decoding import FinishReason
from tinystory.repl.backend import Backend

__all__ = ["Manuscript", "joint"]

_CLOSING = re.compile(r"""[\s.,;:!?…)\]}”’»—]|'(s|t|d|m|re|ve|ll)\b|['"]\s*$""")
_OPENING = "([{“‘«—-/"
_MOST_WITHHELD = 256
"""Tokens of a stop text and what came with it."""


@dataclass(frozen=True)
class Manuscript:
    """A story on the desk.

    Attributes:
        text: what was typed and written, as shown.
        prompt: the part it began with, the writer's.
        seed: of its latest piece.
        finish_reason: why that ended; None before the model has added anything.
        token_ids: the exact tokens, BOS included; None while they are not known to the model that is loaded.
        n_prompt: how many of them were the prompt.
    """

    text: str
    prompt: str
    seed: int
    finish_reason: FinishReason | None = None
    token_ids: tuple[int, ...] | None = None
    n_prompt: int = 0

    @property
    def ended(self) -> bool:
        """Whether the model has said that this story is over."""
        return self.finish_reason == "eos"

    def tokens(self, backend: Backend) -> tuple[tuple[int, ...], int]:
        """The tokens of `text` and how many of them are the prompt's.

        What was generated keeps its tokens, but for those of a stop text in whose place something was typed.
        """
        if self.token_ids is not None:
            kept = list(self.token_ids)
            while len(kept) >= max(1, self.n_prompt, len(self.token_ids) - _MOST_WITHHELD):
                known = backend.detokenize(kept)
                if self.text.startswith(known):
                    added = self._added(backend, kept, self.text[len(known) :])
                    if added is not None:
                        return (*kept, *added), self.n_prompt
                    break
                kept.pop()
        return tuple(backend.encode(self.text, bos=True)), len(backend.encode(self.prompt, bos=True))

    def _added(self, backend: Backend, kept: list[int], rest: str) -> list[int] | None:
        """The tokens that lengthen others by exactly this text; None where there are none.

        Some vocabularies put a space before whatever they are given, so one that is there already has to go.
        """
        if not rest:
            return []
        for candidate in (rest, rest.removeprefix(" ")):
            ids = backend.encode(candidate, bos=False)
            if backend.detokenize([*kept, *ids]) == self.text:
                return ids
        return None


def joint(text: str, addition: str) -> str:
    """What belongs between a story and what its writer adds: a space, or nothing.

    >>> joint("The cat sat", "on the mat"), joint("The cat sat", ", and"), joint('He said "', "Hello")
    (' ', '', '')
    """
    if not text or not addition or text[-1].isspace() or text[-1] in _OPENING or _CLOSING.match(addition):
        return ""
    paragraph = text.rpartition("\n")[2]
    inside_quotes = paragraph.count('"') % 2 == 1
    if inside_quotes and (text.endswith('"') or addition.startswith('"')):
        return ""
    return " "
