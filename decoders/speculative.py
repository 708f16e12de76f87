"""Speculative decoding (Leviathan et al. 2022, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318) with coupled luck.

Draft and model see the same noise, so a guess is right where it is the very token that the model picks, and the story
is that of plain decoding; there is no rejection sampling. `ngram` is prompt lookup (Saxena 2023).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tinystory.decoding import (
    Chain,
    ChainState,
    Commit,
    Event,
    Finish,
    FinishReason,
    Request,
    Search,
    Session,
    Step,
    Token,
    option,
)
from tinystory.decoding.companion import Companion
from tinystory.decoding.loop import shrunk
from tinystory.errors import TinystoryError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

_NGRAM = "ngram"
_LONGEST_MATCH = 16


@dataclass(frozen=True)
class Speculative(Search):
    """Write the story that the chain before it writes, only faster: a draft guesses ahead, the model checks.

    The draft is a smaller checkpoint with the same tokens, or `ngram`: what followed in the story where its last
    tokens, two at least, have stood before. The model reads k guesses at once, which costs little more than one token;
    guesses count up to the first that the model does not pick itself. Where few are right it guesses fewer.
    """

    name = "speculative"
    example = "speculative draft=mini"
    takes_sampler = True
    needs_rewind = True
    draft: str = option("mini", help="a checkpoint, or ngram for the story's own repetitions")
    k: int = option(4, ge=1, le=64, help="guesses at a time, at most")

    def models(self) -> tuple[str, ...]:
        """The draft, where it is one."""
        return () if self.draft == _NGRAM else (self.draft,)

    def search(self, session: Session, request: Request, chain: Chain) -> Iterator[Event]:
        """Commit the tokens that the chain picks, one by one; guessed ones come in a burst.

        Raises:
            UsageError: a person picks; they would be asked twice.
        """
        if chain.sampler is not None and not chain.sampler.repeatable:
            raise UsageError(f"speculative guesses what is picked; with {chain.sampler.name} nobody can know")
        reason = request.interrupted() or ("length" if request.max_new_tokens == 0 else None)
        if reason:
            yield Finish(reason)
            return
        writer = _Writer(session, request, chain, self._drafter(session, request, chain), self.k)
        while True:
            for token, reason in writer.advance():
                if token:
                    yield Commit((token,))
                    reason = request.interrupted() or ("length" if writer.n_left == 0 else None)
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
    """Guesses how a story goes on."""

    def guess(self, story: Sequence[int], state: ChainState, n: int) -> list[int]:
        """At most n ids, no EOS among them; `state` is the chain's."""
        ...


@dataclass(frozen=True)
class _Lookup:
    """The tokens that followed where the longest end of the story, of those the latest, has stood before."""

    def guess(self, story: Sequence[int], state: ChainState, n: int) -> list[int]:
        ids = np.asarray(story)
        ends = np.flatnonzero(ids[:-1] == ids[-1]) + 1  # where the last token has stood before, the place after it
        for length in range(2, _LONGEST_MATCH + 1):
            longer = ends[ends >= length]
            longer = longer[ids[longer - length] == ids[-length]] if length <= len(ids) else longer[:0]
            if not len(longer):
                return ids[ends[-1] : ends[-1] + n].tolist() if length > 2 else []
            ends = longer
        following: list[int] = ids[ends[-1] : ends[-1] + n].tolist()
        return following


@dataclass(frozen=True)
class _Model:
    """The chain over another model's logits, with the luck of the same positions."""

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
            except TinystoryError:  # a guess is no place to fail: the model's own logits may do
                break
            if token_id in self.eos_ids:
                break
            ids.append(token_id)
        return ids[len(story) :]


class _Writer:
    """A story on its way, with what the model has read of it."""

    def __init__(self, session: Session, request: Request, chain: Chain, drafter: _Drafter, k: int) -> None:
        self._session = session
        self._request = request
        self._chain = chain
        self._drafter = drafter
        self._k = self._n_guesses = k
        self._state = chain.start(request)
        self._story = list(request.prompt_ids)
        self._context = list(request.prompt_ids)
        self._read = False  # whether the model has read the context, but for its last token
        self._proposed = self._accepted = self._calls = 0
        self._draft_seconds = 0.0

    @property
    def n_left(self) -> int:
        """How many tokens may still come."""
        return self._request.max_new_tokens - (len(self._story) - len(self._request.prompt_ids))

    def advance(self) -> Iterator[tuple[Token | None, FinishReason | None]]:
        """Run the model once, and give the tokens that this settles, at least one, or the story's end."""
        guesses = self._guess()
        n_accepted = 0
        for logits, guess in zip(self._logits(guesses), [*guesses, None], strict=True):
            step = Step(self._request, self._story, self._session.eos_ids)
            token_id, self._state = self._chain.pick(logits, step, self._state)
            if token_id in self._session.eos_ids:
                yield None, "eos"
                return
            self._story.append(token_id)
            self._context.append(token_id)
            right = token_id == guess
            n_accepted += right
            self._accepted += right
            yield Token.of(logits, token_id), None
            if not right:
                break
        if n_accepted < len(guesses):
            self._session.rewind([len(guesses) - n_accepted])
        if guesses:  # after a wrong guess try one more than was right, as long as all are right one more each time
            self._n_guesses = min(self._k, n_accepted + 1)

    def statistics(self) -> dict[str, float]:
        """How well the guesses did, and what the stages tell."""
        return {
            "acceptance": self._accepted / self._proposed if self._proposed else 0.0,
            "proposed": float(self._proposed),
            "accepted": float(self._accepted),
            "target_calls": float(self._calls),
            "draft_seconds": self._draft_seconds,
            **self._chain.statistics(self._state),
        }

    def _guess(self) -> list[int]:
        """As many guesses as there is room for, in the story and in the model's context."""
        room = self._session.max_seq_len - len(self._context)
        n = min(self._n_guesses, self.n_left - 1, room)
        if n < 1 or not self._read:
            return []
        started = time.perf_counter()
        guesses = self._drafter.guess(self._story, self._state, n)
        self._draft_seconds += time.perf_counter() - started
        self._proposed += len(guesses)
        return guesses

    def _logits(self, guesses: list[int]) -> "Tensor":
        """(1 + n, V) logits after the context and after each of the n guesses."""
        import torch

        self._calls += 1
        if self._read and len(self._context) <= self._session.max_seq_len:
            new = [self._context[-1], *guesses]
            return self._session.decode(torch.tensor([new] if guesses else new)).view(len(new), -1)
        if len(self._context) > self._session.max_seq_len:
            self._context = shrunk(self._story, self._request.window, self._session.max_seq_len)
        self._read = True
        return self._session.prefill([self._context])
