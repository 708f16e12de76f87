"""DRY ("don't repeat yourself", p-e-w 2024, oobabooga/text-generation-webui pull request 5677), as in llama.cpp.

Where the story's last tokens have stood in it before, the token that followed there is penalised, exponentially in
the length of what would be repeated. Short echoes, names and phrases pass, loops do not. Sequence breakers, such as a
newline, keep a format that has to come again from counting as repetition.
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
"""e to this is a penalty that nothing survives, and far below float32's end."""


@dataclass(frozen=True, eq=False)
class _Story:
    """The story, and how far each place in it is like its end.

    Attributes:
        token_ids: (T,) the story.
        matches: (T,) at j: how many tokens before place j equal the story's last ones, breakers apart.
        breaks: tokens that have a breaker in their text.
    """

    token_ids: NDArray[np.int64]
    matches: NDArray[np.int64]
    breaks: frozenset[int]

    def add(self, token_id: int) -> "_Story":
        """One more token: what matched before goes on where the same token follows. Linear in T."""
        matches = np.zeros(len(self.token_ids) + 1, dtype=np.int64)
        if token_id not in self.breaks:
            matches[1:] = (self.matches + 1) * (self.token_ids == token_id)
        return _Story(np.append(self.token_ids, token_id), matches, self.breaks)


@dataclass(frozen=True)
class Dry(LogitsProcessor):
    """Penalise a token that would make a repetition longer, the more the longer it is.

    Where the last L tokens, at least `allowed`, have stood in the story before, the token that followed there loses
    multiplier · base^(L − allowed). No repetition reaches over a token with a breaker in it, and such a token is
    never penalised.
    """

    name = "dry"
    multiplier: float = option(0.8, ge=0, le=100, neutral=0, help="nats that a repetition of the allowed length costs")
    base: float = option(1.75, ge=1, help="each further token multiplies the cost by it")
    allowed: int = option(2, ge=1, help="tokens that may be repeated before it costs")
    breakers: tuple[str, ...] = option(("\n", ":", '"', "*"), help="texts that no repetition reaches over")

    def __post_init__(self) -> None:
        """Check the options; raises UsageError."""
        super().__post_init__()
        if not all(self.breakers):
            raise UsageError("dry: a breaker is empty, it would be in every token")

    def start(self, request: Request) -> _Story:
        """Read the prompt."""
        breaks = frozenset[int]()
        if self.breakers:
            pieces = request.require_vocabulary().pieces
            breaks = frozenset(i for i, piece in enumerate(pieces) if any(text in piece for text in self.breakers))
        story = _Story(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), breaks)
        for token_id in request.prompt_ids:
            story = story.add(token_id)
        return story

    def observe(self, state: _Story, token_id: int, logits: "Tensor") -> _Story:
        """One more token."""
        return state.add(token_id)

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> less for each token that a repetition would go on with; the longest counts."""
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
