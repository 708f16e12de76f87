"""Compute from a story's tokens what each stage did at each token, and what another decoder would have done.

`story_logits` computes the model's logits again. The other functions run a chain over them, and each step goes on
from the recorded tokens. This module knows sessions and decoders, but no text, no terminal and no file.

Conventions: `token_ids` is the whole story, with its prompt. If the model ended the story, an EOS id follows the last
token; the end then counts as a token, and every id of `eos_ids` counts as the same. `logits` is the result of
`story_logits` for these ids, from the end of the prompt or from an earlier position. V is vocab_size, and T is the
number of ids.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tinystory.decoding import Chain, Decoder, Request
from tinystory.decoding.spec import shown_stage
from tinystory.errors import UsageError
from tinystory.story.walk import WalkedToken, story_logits, walk

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Parting", "Pick", "StageEffect", "TurnLogits", "Verdict", "alternatives", "changed", "funnel", "parting",
    "retrace", "story_logits", "whatif",
]  # fmt: skip

TIE = 1e-3
"""A numerical tie: logits that differ by less than this may change places by float32 rounding."""

_N_NAMED = 10
"""The largest number of removed tokens that an effect names."""


@dataclass(frozen=True, eq=False)
class Pick:
    """One token of a story, picked again.

    Attributes:
        position: the index of the token in the story.
        token_id: the recorded token. At the end of the story, this is the EOS that is picked now, if one is.
        picked: the token that the decoder picks after the recorded tokens; -1 if its processors leave no token.
        received: (V,) logits as each active stage received them: first the model's own, last those of the sampler.
        tie: True if the two tokens differ only by a numerical tie.
    """

    position: int
    token_id: int
    picked: int
    received: "tuple[Tensor, ...]"
    tie: bool


@dataclass(frozen=True)
class StageEffect:
    """The effect of one stage at one position.

    Attributes:
        stage: the stage as in a spec; "model" for the model itself.
        left: the number of tokens that are possible after the stage; 1 after the sampler.
        removed: the tokens that the stage removed, most likely first (by the model), at most 10.
        n_removed: the number of tokens that the stage removed.
        mass: the model's own probability of the tokens that are left, from 0 to 1.
    """

    stage: str
    left: int
    removed: tuple[int, ...]
    n_removed: int
    mass: float


@dataclass(frozen=True)
class Verdict:
    """The verdict of a decoder on a story that it may not have written.

    Attributes:
        forbidden: the positions of tokens that the decoder cannot pick there, each with the stage that removes it.
        log_prob: the log-probability in nats with which the decoder writes these tokens after the prompt; −inf if
            one of them is forbidden, None if the sampler does not know its probabilities.
        bits_per_token: the mean surprise of the tokens that are not forbidden, 0 if there are none; None if the
            sampler does not know its probabilities.
        n_tokens: the number of tokens that were judged.
    """

    forbidden: tuple[tuple[int, str], ...]
    log_prob: float | None
    bits_per_token: float | None
    n_tokens: int


@dataclass(frozen=True)
class Parting:
    """The first place where two stories differ, and the cause.

    Attributes:
        position: the index of the first token that differs.
        a_token: the token of the first story.
        b_token: the token of the second story.
        cause: one line for people, such as "top-k 5 removed it".
        stage: the stage as in a spec, or "seed", or "model" (the logits differ: another model or context, or
            rounding), or "sampler" (the two samplers pick differently).
        side: "a" or "b", the story whose stage it is; "" for neither.
    """

    position: int
    a_token: int
    b_token: int
    cause: str
    stage: str
    side: str


TurnLogits = tuple[Decoder, Request, Sequence[int], "Tensor"]
"""A story with the decoder and the request that wrote it: (decoder, request, token_ids, logits)."""


def retrace(
    decoder: Decoder,
    request: Request,
    token_ids: Sequence[int],
    logits: "Tensor",
    *,
    eos_ids: frozenset[int] = frozenset(),
) -> Iterator[Pick]:
    """Pick every token after the prompt again. Each pick comes after the recorded tokens, not after the picked ones.

    Args:
        decoder: a chain with a sampler.
        request: the prompt, the seed and the number of the story.
        token_ids: the story.
        logits: (T − start, V), with 1 ≤ start ≤ len(request.prompt_ids).
        eos_ids: the ids with which the model ends a story.

    Yields:
        One Pick for each recorded token after the prompt; a recorded end of the story is one of them.

    Raises:
        UsageError: the decoder has a search or no sampler, or the story does not begin with the prompt.
        TinystoryError: a stage failed.
        ValueError: the logits do not fit the tokens.
    """
    for place in walk(decoder, request, token_ids, logits, eos_ids):
        picked = place.picked
        same = picked in place.wanted
        tie = not same and _is_tie(place)
        yield Pick(place.position, picked if same else place.token_id, picked, tuple(place.received), tie)


def _is_tie(place: WalkedToken) -> bool:
    """Return whether the recorded token is picked after the model's logit for it is raised by `TIE`."""
    raised = place.received[0].clone()
    raised[list(place.wanted)] += TIE
    return place.sampled(place.chain.receive(raised, place.step, place.state)[-1]) in place.wanted


def funnel(decoder: Decoder, pick: Pick) -> tuple[StageEffect, ...]:
    """Return the effect of each stage at one token: first the model, then the active stages, last the sampler.

    Args:
        decoder: the decoder that was given to `retrace`.
        pick: a result of `retrace`.
    """
    probs = pick.received[0].softmax(dim=-1).numpy(force=True)
    masks = [(logits > -math.inf).numpy(force=True) for logits in pick.received]
    masks.append(np.arange(len(probs)) == pick.picked)
    effects = [_effect("model", np.ones_like(masks[0]), masks[0], probs)]
    for stage, before, after in zip(decoder.chain.stages, masks[:-1], masks[1:], strict=True):
        effects.append(_effect(shown_stage(stage), before, after, probs))
    return tuple(effects)


def _effect(stage: str, before: NDArray[np.bool_], after: NDArray[np.bool_], probs: NDArray[np.float32]) -> StageEffect:
    """Return the effect of a stage from (V,) masks of the possible tokens before and after it."""
    removed = np.flatnonzero(before & ~after)
    likeliest = removed[np.argsort(-probs[removed], kind="stable")[:_N_NAMED]]
    mass = min(1.0, float(probs[after].sum(dtype=np.float64)))
    return StageEffect(stage, int(after.sum()), tuple(likeliest.tolist()), len(removed), mass)


def alternatives(logits: "Tensor", k: int) -> list[tuple[int, float]]:
    """Return the k most likely tokens under (V,) logits, best first, as pairs of id and log-probability in nats."""
    top = logits.log_softmax(dim=-1).topk(min(k, len(logits)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def changed(
    decoder: Decoder,
    request: Request,
    token_ids: Sequence[int],
    logits: "Tensor",
    *,
    eos_ids: frozenset[int] = frozenset(),
) -> tuple[int, ...]:
    """Count at how many tokens each stage changed the pick.

    Arguments and errors are those of `retrace`.

    Returns:
        For each processor of `decoder.chain.stages`: at how many positions another token would be picked without it,
        after the recorded tokens. For the sampler: at how many positions it did not pick the most likely token of
        those that it received.
    """
    chain = decoder.chain
    counts = [0] * len(chain.stages)
    for place in walk(decoder, request, token_ids, logits, eos_ids):
        picked = place.picked
        for index in range(len(chain.processors)):
            rest = Chain(chain.processors[index + 1 :], chain.sampler)
            received = rest.receive(place.received[index], place.step, place.state[index + 1 :])
            counts[index] += picked != place.sampled(received[-1])
        counts[-1] += picked >= 0 and picked != int(place.received[-1].argmax())
    return tuple(counts)


def whatif(
    decoder: Decoder,
    request: Request,
    token_ids: Sequence[int],
    logits: "Tensor",
    *,
    eos_ids: frozenset[int] = frozenset(),
) -> Verdict:
    """Judge a story by a decoder that did not write it.

    Arguments and errors are those of `retrace`.
    """
    forbidden: list[tuple[int, str]] = []
    log_probs: list[float | None] = []
    for place in walk(decoder, request, token_ids, logits, eos_ids):
        stage = place.remover(place.wanted)
        log_prob = None if stage else place.log_prob()
        if log_prob == -math.inf:
            stage = shown_stage(place.chain.stages[-1])
        if stage:
            forbidden.append((place.position, stage))
        else:
            log_probs.append(log_prob)
    numbers = [log_prob for log_prob in log_probs if log_prob is not None]
    total, bits = None, None
    if len(numbers) == len(log_probs):
        total = math.fsum(numbers)
        bits = abs(total) / math.log(2) / len(numbers) if numbers else 0.0
    n_tokens = len(forbidden) + len(log_probs)
    return Verdict(tuple(forbidden), -math.inf if forbidden else total, bits, n_tokens)


def parting(a: TurnLogits, b: TurnLogits, *, eos_ids: frozenset[int] = frozenset()) -> Parting | None:
    """Find the first token at which two stories of one prompt differ, and the stage that caused it.

    Args:
        a: the first story, as for `retrace`.
        b: the second story.
        eos_ids: the ids with which the model ends a story.

    Returns:
        The difference; None if the stories are equal, or if one is the beginning of the other.

    Raises:
        UsageError: the prompts differ, or as `retrace`.
    """
    if a[1].prompt_ids != b[1].prompt_ids:
        raise UsageError("the stories begin with different prompts: only stories of one prompt can part")
    for a_place, b_place in zip(walk(*a, eos_ids), walk(*b, eos_ids), strict=False):
        if a_place.wanted != b_place.wanted:
            cause, stage, side = _cause(a_place, b_place, a[1], b[1])
            return Parting(a_place.position, a_place.token_id, b_place.token_id, cause, stage, side)
    return None


def _cause(a: WalkedToken, b: WalkedToken, a_request: Request, b_request: Request) -> tuple[str, str, str]:
    """Return why two walks differ here: cause, stage and side, as in `Parting`."""
    if a_request.seed != b_request.seed:
        return f"the seeds differ: {a_request.seed} and {b_request.seed}", "seed", ""
    if a_request.story != b_request.story:
        return f"they are stories {a_request.story} and {b_request.story} of one seed", "seed", ""
    for place, lost, side in ((b, a.wanted, "b"), (a, b.wanted, "a")):
        stage = place.remover(lost)
        if stage:
            return f"{stage} removed it", stage, side
    if a.chain == b.chain:
        return "the decoder is the same, but the model's logits are not", "model", ""
    # Give both samplers the same logits. If they still disagree, the processors are not the cause.
    pair = a.token_id, b.token_id
    if b.sampled_of(a.received[-1], pair) == a.token_id:
        return _turning_stage(a, b, pair)
    specs = " and ".join(shown_stage(place.chain.stages[-1]) for place in (a, b))
    return f"the samplers pick differently: {specs}", "sampler", ""


def _turning_stage(a: WalkedToken, b: WalkedToken, pair: tuple[int, int]) -> tuple[str, str, str]:
    """Return the first stage after which a sampler that has only a pair of tokens picks differently in two chains."""
    a_winners, b_winners = ([b.sampled_of(logits, pair) for logits in place.received] for place in (a, b))
    processors = zip(a.chain.processors, b.chain.processors, strict=False)
    shortest = min(len(a_winners), len(b_winners))
    n_shared = next((n for n, (a_stage, b_stage) in enumerate(processors) if a_stage != b_stage), shortest - 1)
    if a_winners[: n_shared + 1] != b_winners[: n_shared + 1]:
        return "the model's logits differ", "model", ""
    for place, winners, side in ((a, a_winners, "a"), (b, b_winners, "b")):
        if winners[-1] != winners[n_shared]:
            n_kept = next(n for n, winner in enumerate(reversed(winners)) if winner != winners[-1])
            stage = shown_stage(place.chain.processors[len(winners) - n_kept - 1])
            return f"{stage} turned the choice", stage, side
    return "rounding turned a near tie", "model", ""
