"""DRY ("don't repeat yourself", p-e-w 2024, oobabooga/text-generation-webui pull request 5677), as in llama.cpp.

If the last tokens of the story have stood in it before, the token that followed them there gets a penalty. The penalty
grows exponentially with the length of the repetition. So short repetitions, names and phrases pass, and loops do not.
No repetition reaches over a sequence breaker such as a newline, so a format that has to come again is not penalized.
Breakers are looked for in the text, so they may begin and end inside of tokens. llama.cpp spells them in tokens and
finds no other spelling.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinystory.decoding import LogitsProcessor, Request, Step, option
from tinystory.errors import UsageError
from tinystory.words import HALF

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_EXPONENT = 60.0
"""e to this power is a penalty that no token survives, and it is far below the largest float32."""
_MOST_BYTES = 4
"""The most bytes, and so the most tokens, of one character."""


class _End(NamedTuple):
    """The end of a text, as far as a breaker may begin in it.

    Attributes:
        text: the last characters.
        half: the tokens after them, of which the last character is not complete yet.
    """

    text: str = ""
    half: tuple[int, ...] = ()


class _Breakers:
    """The breakers, which are found in a text that grows token by token.

    Args:
        texts: the breakers; none of them is empty.
        pieces: the text that each token adds to a text, by id.
        detokenize: returns the text of token ids, for characters of several tokens.
    """

    def __init__(self, texts: Sequence[str], pieces: Sequence[str], detokenize: Callable[[Sequence[int]], str]) -> None:
        self._texts = texts
        self._pieces = pieces
        self._detokenize = detokenize
        self._n_kept = max(map(len, texts), default=1) - 1

    def add(self, end: _End, token_id: int) -> tuple[_End, bool]:
        """Return the end of a text after one more token, and True if this token completes a breaker."""
        added = self._pieces[token_id] if token_id < len(self._pieces) else ""
        if not added:  # a special token
            return end, False
        n_before = len(end.text)
        if end.half or HALF in added:
            n_before += len(self._detokenize(end.half).rstrip(HALF)) if end.half else 0
            added = self._detokenize((*end.half, token_id))
        text = end.text + added
        completes = any(text.find(breaker, max(0, n_before + 1 - len(breaker))) >= 0 for breaker in self._texts)
        half: tuple[int, ...] = ()
        if added.endswith(HALF):
            half = (*end.half, token_id)
            broken, half = half[: 1 - _MOST_BYTES], half[1 - _MOST_BYTES :]
            text = end.text + (self._detokenize(broken) if broken else "")
        return _End(text[-self._n_kept :] if self._n_kept else "", half), completes


@dataclass(frozen=True, eq=False)
class _Story:
    """The story, with the length of the match between its end and each place in it.

    Attributes:
        token_ids: (T,), the story.
        matches: (T,). matches[j] is how many tokens before place j equal the last tokens of the story, up to a breaker.
        breakers: the breakers.
        end: the end of its text.
    """

    token_ids: NDArray[np.int64]
    matches: NDArray[np.int64]
    breakers: _Breakers
    end: _End

    def add(self, token_id: int) -> "_Story":
        """Return the story with one more token. A match grows if the same token follows it. The cost is linear in T."""
        end, completes = self.breakers.add(self.end, token_id)
        matches = np.zeros(len(self.token_ids) + 1, dtype=np.int64)
        if not completes:
            matches[1:] = (self.matches + 1) * (self.token_ids == token_id)
        return replace(self, token_ids=np.append(self.token_ids, token_id), matches=matches, end=end)

    def breaks_with(self, token_id: int) -> bool:
        """Return True if this token would complete a breaker."""
        return self.breakers.add(self.end, token_id)[1]


@dataclass(frozen=True)
class Dry(LogitsProcessor):
    """Lower the logits of tokens that would continue a repetition. A longer repetition costs more.

    If the last L tokens have stood in the story before, and L is at least `allowed`, the token that followed them loses
    multiplier · base^(L − allowed). No repetition reaches over a breaker in the text, and a token that would complete
    a breaker is never penalized.
    """

    name = "dry"
    example = "dry 2"
    multiplier: float = option(
        0.8,
        ge=0,
        le=100,
        neutral=0,
        instead="leave the stage out",
        help="nats that a token loses after a repetition of the allowed length",
    )
    base: float = option(
        1.75, ge=1, instead="leave the stage out", help="each further repeated token multiplies the cost by this number"
    )
    allowed: int = option(2, ge=1, help="the length in tokens of the shortest repetition that costs")
    breakers: tuple[str, ...] = option(("\n", ":", '"', "*"), help="texts that no repetition reaches over")

    def __post_init__(self) -> None:
        """Check the options. Raise UsageError if one is wrong."""
        super().__post_init__()
        if not all(self.breakers):
            raise UsageError("dry: a breaker is empty, and every token contains an empty text")

    def start(self, request: Request) -> _Story:
        """Return the prompt as the beginning of the story."""
        breakers = _Breakers((), (), str)
        if self.breakers:
            vocabulary = request.require_vocabulary()
            breakers = _Breakers(self.breakers, vocabulary.pieces, vocabulary.detokenize)
        story = _Story(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), breakers, _End())
        for token_id in request.prompt_ids:
            story = story.add(token_id)
        return story

    def observe(self, state: _Story, token_id: int, logits: "Tensor") -> _Story:
        """Return the story with one more token."""
        return state.add(token_id)

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Lower the (V,) logits of tokens that would continue a repetition. For each token, the longest one counts."""
        story: _Story = step.state
        places = np.flatnonzero(story.matches >= self.allowed)
        following, lengths = story.token_ids[places], story.matches[places]
        longest = dict(sorted(zip(following.tolist(), lengths.tolist(), strict=True), key=itemgetter(1)))
        longest = {token_id: length for token_id, length in longest.items() if not story.breaks_with(token_id)}
        if not longest:
            return logits
        import torch

        exponents = [
            min((length - self.allowed) * math.log(self.base), _LARGEST_EXPONENT) for length in longest.values()
        ]
        nats = torch.tensor([-self.multiplier * math.exp(exponent) for exponent in exponents], device=logits.device)
        return logits.index_add(0, torch.tensor(list(longest), device=logits.device), nats.to(logits.dtype))
