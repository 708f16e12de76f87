"""Speculative decoding (Leviathan et al. 2022, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318), coupled noise.

Draft and model get the same noise. So a guess is right if it is exactly the token that the model picks, and the story
is the same as without this search. There is no rejection sampling. `ngram` is prompt lookup (Saxena 2023).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tinystory.decoding import (
    Chain,
    ChainState,
    Commit,
    Companion,
    Event,
    Finish,
    FinishReason,
    Request,
    Search,
    Session,
    Step,
    Token,
    option,
    shrunk,
)
from tinystory.errors import TinystoryError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

_NGRAM = "ngram"
_LONGEST_MATCH = 16


@dataclass(frozen=True)
class Speculative(Search):
    """Write the same story as the chain before it, but faster: a draft guesses tokens, and the model checks them.

    The draft is a smaller checkpoint with the same tokens, or `ngram`: the tokens that followed in the story when its
    last tokens, at least two, have stood in it before. The model reads k guesses at once, which costs little more than
    one token. The guesses before the first wrong one are kept. If few guesses are right, the draft guesses fewer.
    """

    name = "speculative"
    example = "speculative draft=mini"
    takes_sampler = True
    needs_rewind = True
    draft: str = option("mini", help="a checkpoint, or ngram for repetitions inside the story")
    k: int = option(4, ge=1, le=64, instead="leave the stage out", help="the largest number of guesses at a time")

    def models(self) -> tuple[str, ...]:
        """Return the name of the draft, if it is a checkpoint."""
        return () if self.draft == _NGRAM else (self.draft,)

    def search(self, session: Session, request: Request, chain: Chain) -> Iterator[Event]:
        """Commit the tokens that the chain picks, one by one. Guessed tokens come in quick succession.

        Raises:
            UsageError: a person picks the tokens, and they would be asked twice.
        """
        if chain.sampler is not None and not chain.sampler.repeatable:
            raise UsageError(
                f"speculative guesses the picked tokens, and it cannot guess those of {chain.sampler.name}"
            )
        writer = _Writer(session, request, chain, self._drafter(session, request, chain), self.k)
        while True:
            for token, reason in writer.advance():
                if token:
                    yield Commit((token,))
                    reason = request.reason_to_end(writer.n_new)
                if reason:
                    yield Finish(reason, writer.statistics())
                    return

    def _drafter(self, session: Session, request: Request, chain: Chain) -> "_Drafter":
        if self.draft == _NGRAM:
            return _Lookup()
        companion = Companion(request, self.draft)
        companion.check_size(session.vocab_size)
        return _Model(companion, request, chain, session.eos_ids)


class _Drafter(Protocol):
    """A drafter, which guesses how a story continues."""

    def guess(self, story: Sequence[int], state: ChainState, n: int) -> list[int]:
        """Return at most n ids without an EOS. `state` is the state of the chain after the story."""
        ...


@dataclass(frozen=True)
class _Lookup:
    """Guesses the tokens that followed the longest match of the story's end; of equal matches, the latest counts."""

    def guess(self, story: Sequence[int], state: ChainState, n: int) -> list[int]:
        ids = np.asarray(story)
        after_match = _after_longest_match(ids)
        if after_match is None:
            return []
        guesses: list[int] = ids[after_match : after_match + n].tolist()
        return guesses


def _after_longest_match(ids: NDArray[np.int64]) -> int | None:
    """Return the place after the longest match of the story's last tokens; None if fewer than two tokens match."""
    places = np.flatnonzero(ids[:-1] == ids[-1]) + 1  # after each place at which the last token stands
    for length in range(2, min(_LONGEST_MATCH, len(ids)) + 1):
        longer = places[places >= length]
        longer = longer[ids[longer - length] == ids[-length]]
        if not len(longer):
            return int(places[-1]) if length > 2 else None
        places = longer
    return int(places[-1]) if len(ids) >= 2 else None


@dataclass(frozen=True)
class _Model:
    """Guesses with the same chain on the logits of another model, with the noise of the same positions."""

    companion: Companion
    request: Request
    chain: Chain
    eos_ids: frozenset[int]

    def guess(self, story: Sequence[int], state: ChainState, n: int) -> list[int]:
        ids = list(story)
        for _ in range(n):
            step = Step(self.request, ids, self.eos_ids)
            try:
                token_id, state = self.chain.pick(self.companion.logits(ids), step, state)
            except TinystoryError:  # a failed guess does no harm: the model's own logits may still work
                break
            if token_id in self.eos_ids:
                break
            ids.append(token_id)
        return ids[len(story) :]


class _Writer:
    """A story that is being written, with the part of it that the model has read."""

    def __init__(self, session: Session, request: Request, chain: Chain, drafter: _Drafter, k: int) -> None:
        self._session = session
        self._request = request
        self._chain = chain
        self._drafter = drafter
        self._k = self._n_guesses = k
        self._state = chain.start(request)
        self._story = list(request.prompt_ids)
        self._context = list(request.prompt_ids)
        self._has_read = False  # True if the model has read the context except for its last token
        self._n_proposed = self._n_accepted = self._n_calls = 0
        self._draft_seconds = 0.0

    @property
    def n_new(self) -> int:
        """The number of tokens that have come."""
        return len(self._story) - len(self._request.prompt_ids)

    def advance(self) -> Iterator[tuple[Token | None, FinishReason | None]]:
        """Run the model once. Yield the tokens that this decides, at least one, or the end of the story."""
        guesses = self._guess()
        n_right = 0
        for logits, guess in zip(self._logits(guesses), [*guesses, None], strict=True):
            step = Step(self._request, self._story, self._session.eos_ids)
            token_id, self._state = self._chain.pick(logits, step, self._state)
            if token_id in self._session.eos_ids:
                yield None, "eos"
                return
            self._story.append(token_id)
            self._context.append(token_id)
            is_right = token_id == guess
            n_right += is_right
            self._n_accepted += is_right
            yield Token.of(logits, token_id), None
            if not is_right:
                break
        if n_right < len(guesses):
            self._session.rewind([len(guesses) - n_right])
        if guesses:  # one more than were right: fewer after wrong guesses, and more as long as all are right
            self._n_guesses = min(self._k, n_right + 1)

    def statistics(self) -> dict[str, float]:
        """Return how good the guesses were, and the figures of the stages."""
        return {
            "acceptance": self._n_accepted / self._n_proposed if self._n_proposed else 0.0,
            "proposed": float(self._n_proposed),
            "accepted": float(self._n_accepted),
            "target_calls": float(self._n_calls),
            "draft_seconds": self._draft_seconds,
            **self._chain.statistics(self._state),
        }

    def _guess(self) -> list[int]:
        """Return as many guesses as fit into the story and into the model's context."""
        room = self._session.max_seq_len - len(self._context)
        n = min(self._n_guesses, self._request.max_new_tokens - self.n_new - 1, room)
        if n < 1 or not self._has_read:
            return []
        started = time.perf_counter()
        guesses = self._drafter.guess(self._story, self._state, n)
        self._draft_seconds += time.perf_counter() - started
        self._n_proposed += len(guesses)
        return guesses

    def _logits(self, guesses: list[int]) -> "Tensor":
        """Return (1 + n, V) logits: after the context, and after each of the n guesses."""
        import torch

        self._n_calls += 1
        if self._has_read and len(self._context) <= self._session.max_seq_len:
            new = [self._context[-1], *guesses]
            return self._session.decode(torch.tensor([new] if guesses else new)).view(len(new), -1)
        if len(self._context) > self._session.max_seq_len:
            self._context = shrunk(self._story, self._request.window, self._session.max_seq_len)
        self._has_read = True
        return self._session.prefill([self._context])
