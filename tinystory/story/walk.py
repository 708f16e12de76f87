"""Walk along a recorded story: the model's logits for each token, and what the stages of a chain do with them.

`tracing` is built on this module. It knows sessions and decoders, but no text.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinystory.decoding import Chain, ChainState, Decoder, Request, Session, Step, Window, shrunk
from tinystory.decoding.spec import shown_stage
from tinystory.decoding.stages import named
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WalkedToken", "story_logits", "walk"]

_LARGEST_RESULT = 2**30
"""The largest number of bytes of all logits together."""
_LARGEST_CHUNK = 2**26
"""The largest number of bytes of the logits that one call of the model gives."""


def story_logits(session: Session, token_ids: Sequence[int], window: Window, start: int = 1) -> "Tensor":
    """Compute the model's logits for each token of a story, in the contexts that the loop used.

    Args:
        session: a session of the model. It is not changed; a second session from its `open` does the work.
        token_ids: the T tokens of the story; the last one is only predicted.
        window: chooses what stays of a story that outgrows the context, as in its `Request`.
        start: the first position, from 1 to T. Give the length of the prompt: if a story outgrows the context, its
            contexts depend on where the model began to write.

    Returns:
        (T − start, V) float32 on the CPU; row i belongs to token_ids[start + i], given the tokens before it. The work
        needs about 64 MB more.

    Raises:
        UsageError: an id is outside the vocabulary, or the result would take more than 1 GB.
        ValueError: `start` is outside 1..T.
    """
    import torch

    if not 1 <= start <= len(token_ids):
        raise ValueError(f"start is {start}; it must be in 1..{len(token_ids)}")
    outside = next((token_id for token_id in token_ids if not 0 <= token_id < session.vocab_size), None)
    if outside is not None:
        raise UsageError(f"the story has token id {outside}; the vocabulary goes from 0 to {session.vocab_size - 1}")
    n_rows, row_bytes = len(token_ids) - start, 4 * session.vocab_size
    if n_rows * row_bytes > _LARGEST_RESULT:
        raise UsageError(
            f"the logits of {n_rows} tokens, {session.vocab_size} for each, take more than 1 GB: take a shorter story"
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
    """Yield the contexts from position `start` on as the loop makes them: a first context, and the tokens after it."""
    while start < len(token_ids):
        so_far = token_ids[:start]
        context = list(so_far) if len(so_far) <= max_seq_len else shrunk(so_far, window, max_seq_len)
        # The last token of a pass is predicted, not fed.
        following = list(token_ids[start : min(len(token_ids) - 1, start + max_seq_len - len(context))])
        yield context, following
        start += 1 + len(following)


class WalkedToken(NamedTuple):
    """One token of a walk; it is valid until the next one is asked for.

    Attributes:
        chain: the stages.
        token_id: the recorded token.
        wanted: the ids that count as the recorded token: every EOS id at the end of a story, else one id.
        step: the step that the stages see.
        state: the state of the chain after the tokens before this one.
        received: (V,) logits as each processor received them; the last item is the result of the last processor.
    """

    chain: Chain
    token_id: int
    wanted: frozenset[int]
    step: Step
    state: ChainState
    received: "list[Tensor]"

    @property
    def position(self) -> int:
        """The index of the token in the story."""
        return self.step.position

    @property
    def picked(self) -> int:
        """The token that the chain picks; -1 if the processors leave no token."""
        return self.sampled(self.received[-1])

    def sampled(self, logits: "Tensor") -> int:
        """Return the token that the sampler picks from (V,) logits; -1 if no token is left.

        A person's pick cannot be repeated, so there the recorded token counts as picked.
        """
        sampler = self.chain.sampler
        if sampler is None or not -np.inf < logits.numpy(force=True).max() < np.inf:
            return -1
        if not sampler.repeatable:
            return self.token_id if logits[self.token_id] > -math.inf else -1
        with named(sampler):
            return int(sampler(logits, self.step.for_stage(self.state[-1])))

    def sampled_of(self, logits: "Tensor", token_ids: Sequence[int]) -> int:
        """Return the token that the sampler picks if only `token_ids` are left."""
        only = logits.new_full(logits.shape, -math.inf)
        only[list(token_ids)] = logits[list(token_ids)]
        return self.sampled(only)

    def remover(self, token_ids: Collection[int]) -> str | None:
        """Return the stage, as in a spec, after which none of the tokens is left; None if one reaches the sampler."""
        left = [bool((logits[list(token_ids)] > -math.inf).any()) for logits in self.received]
        if left[-1]:
            return None
        # A stage may bring a token back, so it is the last removal that counts.
        n_passed = len(left) - left[::-1].index(True) if True in left else 0
        return ("model", *map(shown_stage, self.chain.processors))[n_passed]

    def log_prob(self) -> float | None:
        """Return the sampler's log-probability of the recorded token, in nats; None if the sampler does not know it."""
        sampler = self.chain.sampler
        assert sampler is not None
        with named(sampler):
            log_probs = sampler.log_probs(self.received[-1], self.step.for_stage(self.state[-1]))
        return None if log_probs is None else float(log_probs[list(self.wanted)].logsumexp(0))


def walk(
    decoder: Decoder, request: Request, token_ids: Sequence[int], logits: "Tensor", eos_ids: frozenset[int]
) -> Iterator[WalkedToken]:
    """Yield each recorded token after the prompt with what the chain does there; see `tracing.retrace` for the rest."""
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
        raise UsageError(f"{decoder.search.name} is a search: only a chain of stages can be traced")
    if decoder.sampler is None:
        raise UsageError("this decoder has no sampler: write one at the end of its spec")
    return decoder.chain
