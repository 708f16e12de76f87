"""A recorded story walked again: the model's view of every token, and a chain of stages along the recorded past.

The ground that `tracing` stands on; it knows sessions and decoders, but no text.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinystory.decoding import Chain, ChainState, Decoder, Request, Session, Step, Window, shrunk
from tinystory.decoding.spec import format_stage
from tinystory.decoding.stages import named
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WalkedToken", "story_logits", "walk"]

_LARGEST_RESULT = 2**30
_LARGEST_CHUNK = 2**26


def story_logits(session: Session, token_ids: Sequence[int], window: Window, start: int = 1) -> "Tensor":
    """The model's logits for each token of a story, in the context that the loop gave it.

    Args:
        session: left as it is; the work is done on a twin from its `open`.
        token_ids: the story; its last token is never fed.
        window: what stays of a story that outgrows the context, as in its Request.
        start: the first position wanted, at least 1: the length of the prompt from which the story was written in
            one go, since an overflowing story's contexts depend on where it began.

    Returns:
        (T − start, V) float32 on the CPU; row i is for token_ids[start + i], given the tokens before it. About 64 MB
        of further logits are held on the way.

    Raises:
        UsageError: an id is outside the vocabulary, or the result would take more than 1 GB.
        ValueError: start is outside 1..T.
    """
    import torch

    if not 1 <= start <= len(token_ids):
        raise ValueError(f"start is {start}; it must be in 1..{len(token_ids)}")
    wrong = next((i for i in token_ids if not 0 <= i < session.vocab_size), None)
    if wrong is not None:
        raise UsageError(f"the story has token id {wrong}; this vocabulary ends at {session.vocab_size - 1}")
    n_rows, row_bytes = len(token_ids) - start, 4 * session.vocab_size
    if n_rows * row_bytes > _LARGEST_RESULT:
        raise UsageError(
            f"looking back at {n_rows} tokens of {session.vocab_size} logits takes more than 1 GB: take a shorter story"
        )
    logits = torch.empty(n_rows, session.vocab_size)
    twin, chunk = session.open(), max(1, _LARGEST_CHUNK // row_bytes)
    row = 0
    for context, following in _passes(token_ids, window, start, session.max_seq_len):
        logits[row] = twin.prefill([context])[0]
        row += 1
        for first in range(0, len(following), chunk):
            fed = following[first : first + chunk]
            logits[row : row + len(fed)] = twin.decode(torch.tensor([fed]))[0]
            row += len(fed)
    return logits


def _passes(
    token_ids: Sequence[int], window: Window, start: int, max_seq_len: int
) -> Iterator[tuple[list[int], list[int]]]:
    """The contexts of positions start.. as the loop makes them: one to begin with, and what is appended to it."""
    while start < len(token_ids):
        so_far = token_ids[:start]
        context = list(so_far) if len(so_far) <= max_seq_len else shrunk(so_far, window, max_seq_len)
        # The last token of a pass is predicted, not fed.
        following = list(token_ids[start : min(len(token_ids) - 1, start + max_seq_len - len(context))])
        yield context, following
        start += 1 + len(following)


class WalkedToken(NamedTuple):
    """One position of a walk; good until the walk goes on.

    Attributes:
        chain: what is walked.
        token_id: the recorded token.
        wanted: what it stands for: every EOS at the story's end, else itself.
        step: as the stages see it.
        state: of the chain, after the recorded past.
        received: (V,) logits as each processor received them, and what came out of the last one.
    """

    chain: Chain
    token_id: int
    wanted: frozenset[int]
    step: Step
    state: ChainState
    received: "list[Tensor]"

    @property
    def position(self) -> int:
        """Absolute index in the story."""
        return self.step.position

    @property
    def picked(self) -> int:
        """What the chain picks; -1 for nothing."""
        return self.sampled(self.received[-1])

    def sampled(self, logits: "Tensor") -> int:
        """What the sampler takes of (V,) logits; -1 where they leave nothing. A person's pick is the recorded one."""
        sampler = self.chain.sampler
        if sampler is None or not -np.inf < logits.numpy(force=True).max() < np.inf:
            return -1
        if not sampler.repeatable:
            return self.token_id if logits[self.token_id] > -math.inf else -1
        with named(sampler):
            return int(sampler(logits, self.step.for_stage(self.state[-1])))

    def sampled_of(self, logits: "Tensor", token_ids: Sequence[int]) -> int:
        """The same with all other tokens removed."""
        only = logits.new_full(logits.shape, -math.inf)
        only[list(token_ids)] = logits[list(token_ids)]
        return self.sampled(only)

    def remover(self, token_ids: Collection[int]) -> str | None:
        """The stage after which none of the tokens is left; None where one reaches the sampler."""
        left = [bool((logits[list(token_ids)] > -math.inf).any()) for logits in self.received]
        if left[-1]:
            return None
        # A stage may bring a token back, so it is the last removal that counts.
        n_passed = len(left) - left[::-1].index(True) if True in left else 0
        return ("model", *map(format_stage, self.chain.processors))[n_passed]

    def log_prob(self) -> float | None:
        """Of the recorded token, under the sampler; in nats, None where the sampler does not know."""
        sampler = self.chain.sampler
        assert sampler is not None
        with named(sampler):
            log_probs = sampler.log_probs(self.received[-1], self.step.for_stage(self.state[-1]))
        return None if log_probs is None else float(log_probs[list(self.wanted)].logsumexp(0))


def walk(
    decoder: Decoder, request: Request, token_ids: Sequence[int], logits: "Tensor", eos_ids: frozenset[int]
) -> Iterator[WalkedToken]:
    """Replay a chain along the recorded tokens after the prompt; arguments and errors as `tracing.retrace`."""
    chain, n_prompt = _chain(decoder), len(request.prompt_ids)
    start = len(token_ids) - len(logits)
    if tuple(token_ids[:n_prompt]) != request.prompt_ids:
        raise UsageError("the story does not begin with the prompt of its request")
    if not 1 <= start <= n_prompt:
        raise ValueError(f"{len(logits)} rows of logits do not fit {len(token_ids)} tokens after {n_prompt}")
    state = chain.start(request)
    so_far = list(request.prompt_ids)
    for token_id in token_ids[n_prompt:]:
        step = Step(request, so_far, eos_ids)
        received = chain.receive(logits[step.position - start], step, state)
        wanted = eos_ids if token_id in eos_ids else frozenset({token_id})
        yield WalkedToken(chain, token_id, wanted, step, state, received)
        state = chain.observe(state, token_id, received)
        so_far.append(token_id)


def _chain(decoder: Decoder) -> Chain:
    if decoder.search is not None:
        raise UsageError(f"{decoder.search.name} is a search: only a chain of stages can be looked back at")
    if decoder.sampler is None:
        raise UsageError("this decoder has no sampler: write one at the end of its spec")
    return decoder.chain
