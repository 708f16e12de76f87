"""The cost of a decoder on this machine: its own time for each token, and how often it runs the model."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tinystory.decoding import Commit, Decoder, Request, Search, Session, Stage, Step
from tinystory.decoding.loop import run
from tinystory.noise import Noise
from tinystory.testing.toy_session import ToySession, toy_request

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Cost", "decode_microseconds", "measure"]

_VERBS = frozenset({"prefill", "decode", "reorder", "rewind", "hidden"})
_N_PROMPT, _N_TOKENS = 64, 128
"""Some stages cost more for a longer story, so these numbers give a story of a usual length."""


@dataclass(frozen=True)
class Cost:
    """The cost of one token.

    Attributes:
        microseconds: the median time of a stage for one token. For a search, the mean over a story, with the chain
            before it and without the time of the session.
        model_tokens: how many tokens the model computes for each token of the story; 1 for a plain chain.
    """

    microseconds: float
    model_tokens: float


class _TableSession(ToySession):
    """A session with logits from a small table, so that it takes almost no time. `seconds` is the time that it took."""

    def __init__(self, **options: Any) -> None:
        import torch

        super().__init__(**options)
        noise = 2 * Noise(0, "cost", 0, 0).gumbel(np.arange(16 * self.vocab_size)).reshape(16, -1)
        noise[:, list(self.eos_ids)] = -np.inf
        self._logits = torch.from_numpy(noise.astype(np.float32))
        self.seconds = 0.0

    def __getattribute__(self, name: str) -> Any:
        """Return an attribute. The verbs of a session are timed."""
        attribute = super().__getattribute__(name)
        return partial(self._timed, attribute) if name in _VERBS else attribute

    def _timed(self, verb: Callable[..., Any], *arguments: Any) -> Any:
        before = time.perf_counter()
        try:
            return verb(*arguments)
        finally:
            self.seconds += time.perf_counter() - before

    def logits_after(self, token_ids: Sequence[int]) -> "Tensor":
        return self._logits[sum(token_ids[-2:]) % len(self._logits)]

    def open(self, model: str | None = None) -> "_TableSession":
        return _TableSession(vocab_size=self.vocab_size, max_seq_len=self.max_seq_len)


def measure(stage: Stage, decoder: Decoder, vocab_size: int = 2048) -> Cost:
    """Return the cost of a stage, measured on one thread of the CPU.

    Args:
        stage: a processor or sampler, which is timed alone; or a search.
        decoder: the decoder with this stage, which is timed if the stage is a search.
        vocab_size: V, the number of logits.
    """
    import torch

    session = _TableSession(vocab_size=vocab_size, max_seq_len=512)
    request = toy_request([index % 30 + 2 for index in range(_N_PROMPT)], _N_TOKENS, vocab_size, opener=session.open)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as for a small model, where a second thread costs more than it gives
    try:
        if isinstance(stage, Search):
            return _search_cost(decoder, session, request)
        return _stage_cost(stage, session, request)
    finally:
        torch.set_num_threads(n_threads)


def _stage_cost(stage: Any, session: _TableSession, request: Request) -> Cost:
    token_ids, times = list(request.prompt_ids), []
    state = stage.start(request)
    for _ in range(_N_TOKENS):
        logits = session.logits_after(token_ids)
        token_id = int((logits + logits.roll(len(token_ids))).argmax())
        before = time.perf_counter()
        stage(logits, Step(request, token_ids, session.eos_ids, state))
        state = stage.observe(state, token_id, logits)
        times.append(time.perf_counter() - before)
        token_ids.append(token_id)
    return Cost(1e6 * statistics.median(times), 1.0)


def _search_cost(decoder: Decoder, session: _TableSession, request: Request) -> Cost:
    before = time.perf_counter()
    n_tokens = 0
    for _, event in run(session, [(decoder, request)]):
        n_tokens += len(event.tokens) if isinstance(event, Commit) else 0
    seconds = time.perf_counter() - before - session.seconds
    computed = sum(call.tokens for call in session.calls) - len(request.prompt_ids)
    return Cost(1e6 * seconds / max(n_tokens, 1), computed / max(n_tokens - 1, 1))


def decode_microseconds(session: Session) -> float:
    """Return the median time in microseconds that a model takes to decode one token of one row."""
    import torch

    ids = [session.bos_id or 0]
    session.prefill([ids])
    times = []
    for token_id in range(min(64, session.max_seq_len - 1)):
        token = torch.tensor([token_id % session.vocab_size])
        before = time.perf_counter()
        session.decode(token)
        times.append(time.perf_counter() - before)
    return 1e6 * statistics.median(times)
