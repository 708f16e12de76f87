"""DRY ("don't repeat yourself", p-e-w 2024, oobabooga/text-generation-webui pull request 5677), as in llama.cpp.

If the last tokens of the story have stood in it before, the token that followed them there gets a penalty. The penalty
grows exponentially with the length of the repetition. So short repetitions, names and phrases pass, and loops do not.
No repetition reaches over a sequence breaker such as a newline, so a format that has to come again is not penalized.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tinystory.decoding import LogitsProcessor, Request, Step, option
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_EXPONENT = 60.0
"""e to this power is a penalty that no token survives, and it is far below the largest float32."""


@dataclass(frozen=True, eq=False)
class _Story:
    """The story, with the length of the match between its end and each place in it.

    Attributes:
        token_ids: (T,), the story.
        matches: (T,). matches[j] is how many tokens before place j equal the last tokens of the story, up to a breaker.
        breaks: the tokens that have a breaker in their text.
    """

    token_ids: NDArray[np.int64]
    matches: NDArray[np.int64]
    breaks: frozenset[int]

    def add(self, token_id: int) -> "_Story":
        """Return the story with one more token. A match grows if the same token follows it. The cost is linear in T."""
        matches = np.zeros(len(self.token_ids) + 1, dtype=np.int64)
        if token_id not in self.breaks:
            matches[1:] = (self.matches + 1) * (self.token_ids == token_id)
        return _Story(np.append(self.token_ids, token_id), matches, self.breaks)


@dataclass(frozen=True)
class Dry(LogitsProcessor):
    """Lower the logits of tokens that would continue a repetition. A longer repetition costs more.

    If the last L tokens have stood in the story before, and L is at least `allowed`, the token that followed them loses
    multiplier · base^(L − allowed). No repetition reaches over a token with a breaker in its text, and such a token is
    never penalized.
    """

    name = "dry"
    multiplier: float = option(
        0.8, ge=0, le=100, neutral=0, help="nats that a token loses after a repetition of the allowed length"
    )
    base: float = option(1.75, ge=1, help="each further repeated token multiplies the cost by this number")
    allowed: int = option(2, ge=1, help="the length in tokens of the shortest repetition that costs")
    breakers: tuple[str, ...] = option(("\n", ":", '"', "*"), help="texts that no repetition reaches over")

    def __post_init__(self) -> None:
        """Check the options. Raise UsageError if one is wrong."""
        super().__post_init__()
        if not all(self.breakers):
            raise UsageError("dry: a breaker is empty, and every token contains an empty text")

    def start(self, request: Request) -> _Story:
        """Return the prompt as the beginning of the story."""
        breaks = frozenset[int]()
        if self.breakers:
            pieces = request.require_vocabulary().pieces
            breaks = frozenset(i for i, piece in enumerate(pieces) if any(text in piece for text in self.breakers))
        story = _Story(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), breaks)
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
        longest = {
            token_id: length
            for length, token_id in sorted(zip(lengths.tolist(), following.tolist(), strict=True))
            if token_id not in story.breaks
        }
        if not longest:
            return logits
        import torch

        exponents = [
            min((length - self.allowed) * math.log(self.base), _LARGEST_EXPONENT) for length in longest.values()
        ]
        nats = torch.tensor([-self.multiplier * math.exp(exponent) for exponent in exponents], device=logits.device)
        return logits.index_add(0, torch.tensor(list(longest), device=logits.device), nats.to(logits.dtype))
