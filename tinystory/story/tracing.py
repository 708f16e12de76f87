"""Looking back at a story from its tokens: what each stage of a decoder did, and what another would have done.

`story_logits` brings back the model's view of every token; the rest replays a chain over it, the recorded past given.
It knows sessions and decoders, but no text, no terminal and no file.

Conventions: `token_ids` is the whole story, prompt included. A story that ended by itself is given with an EOS id
after its last token; any of `eos_ids` stands for all, and the end is then judged like a token. `logits` is what
`story_logits` gives for the same ids, from the end of the prompt or from before it. V is vocab_size, T the number
of ids.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tinystory.decoding import Chain, Decoder, Request
from tinystory.decoding.spec import format_stage
from tinystory.errors import UsageError
from tinystory.story.walk import WalkedToken, story_logits, walk

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Parting", "Pick", "StageEffect", "TurnLogits", "Verdict", "alternatives", "changed", "funnel", "parting",
    "retrace", "story_logits", "whatif",
]  # fmt: skip

TIE = 1e-3
"""Scores closer than this are a numerical tie: float32 rounding may turn it."""

_N_NAMED = 10


@dataclass(frozen=True, eq=False)
class Pick:
    """One token of a story, looked back at.

    Attributes:
        position: absolute index in the story.
        token_id: the recorded token; at the story's end the EOS that is picked, where one is.
        picked: what the decoder picks, given the recorded past; -1 where its processors leave no token.
        received: (V,) logits as each active stage received them; the last is what the sampler got, the first the
            model's own.
        tie: the two differ, but by a numerical tie.
    """

    position: int
    token_id: int
    picked: int
    received: "tuple[Tensor, ...]"
    tie: bool


@dataclass(frozen=True)
class StageEffect:
    """What a stage left of the vocabulary at one position.

    Attributes:
        stage: as in a spec; "model" for the model itself.
        left: how many tokens are possible after it; after the sampler, the picked one.
        removed: tokens it made impossible, the model's likeliest first, at most 10.
        n_removed: how many there are.
        mass: the model's own probability of what is left, 0 to 1.
    """

    stage: str
    left: int
    removed: tuple[int, ...]
    n_removed: int
    mass: float


@dataclass(frozen=True)
class Verdict:
    """What a decoder says of a story that another may have written.

    Attributes:
        forbidden: positions of tokens it could not have picked there, each with the first stage that removed it.
        log_prob: natural logarithm of the probability with which it writes these tokens after the prompt, −inf
            where one is forbidden; None where its sampler does not know.
        bits_per_token: mean surprise of the tokens that are not forbidden, 0 for none; None where its sampler does
            not know.
        n_tokens: how many were judged.
    """

    forbidden: tuple[tuple[int, str], ...]
    log_prob: float | None
    bits_per_token: float | None
    n_tokens: int


@dataclass(frozen=True)
class Parting:
    """Where two stories part, and why.

    Attributes:
        position: of the first token that differs.
        a_token: the first story's.
        b_token: the second story's.
        cause: one line for people, such as "top-k 5 removed it".
        stage: as in a spec; "seed", "model" (its logits differ: another model or context, or rounding) or
            "sampler" (of no side alone).
        side: "a" or "b", whose stage it is; "" for neither.
    """

    position: int
    a_token: int
    b_token: int
    cause: str
    stage: str
    side: str


TurnLogits = tuple[Decoder, Request, Sequence[int], "Tensor"]
"""A story and how it came about: decoder, request, token_ids, logits."""


def retrace(
    decoder: Decoder,
    request: Request,
    token_ids: Sequence[int],
    logits: "Tensor",
    *,
    eos_ids: frozenset[int] = frozenset(),
) -> Iterator[Pick]:
    """Pick every token after the prompt again, each time going on with the recorded one.

    Args:
        decoder: a chain with a sampler.
        request: its prompt, seed and story number.
        token_ids: the story.
        logits: (T − start, V), with 1 ≤ start ≤ len(request.prompt_ids).
        eos_ids: of the model.

    Yields:
        One Pick for each recorded token after the prompt, the end included where it is recorded.

    Raises:
        UsageError: the decoder has a search or no sampler, or the story does not begin with the prompt.
        TinystoryError: a stage failed.
        ValueError: the logits are of another length.
    """
    for place in walk(decoder, request, token_ids, logits, eos_ids):
        picked = place.picked
        same = picked in place.wanted
        tie = not same and _is_tie(place)
        yield Pick(place.position, picked if same else place.token_id, picked, tuple(place.received), tie)


def _is_tie(place: WalkedToken) -> bool:
    """Whether the recorded token is picked once its raw logit is a little higher."""
    raised = place.received[0].clone()
    raised[list(place.wanted)] += TIE
    return place.sampled(place.chain.receive(raised, place.step, place.state)[-1]) in place.wanted


def funnel(decoder: Decoder, pick: Pick) -> tuple[StageEffect, ...]:
    """What each stage left of the vocabulary: the model first, then the active stages, the sampler last.

    Args:
        decoder: the one that `pick` was retraced with.
        pick: from `retrace`.
    """
    own = pick.received[0].softmax(dim=-1).numpy(force=True)
    masks = [(logits > -math.inf).numpy(force=True) for logits in pick.received]
    masks.append(np.arange(len(own)) == pick.picked)
    effects = [_effect("model", np.ones_like(masks[0]), masks[0], own)]
    for stage, before, after in zip(decoder.chain.stages, masks[:-1], masks[1:], strict=True):
        effects.append(_effect(format_stage(stage), before, after, own))
    return tuple(effects)


def _effect(stage: str, before: NDArray[np.bool_], after: NDArray[np.bool_], probs: NDArray[np.float32]) -> StageEffect:
    """The effect of a stage from (V,) masks of what was possible before and after it."""
    removed = np.flatnonzero(before & ~after)
    likeliest = removed[np.argsort(-probs[removed], kind="stable")[:_N_NAMED]]
    mass = min(1.0, float(probs[after].sum(dtype=np.float64)))
    return StageEffect(stage, int(after.sum()), tuple(likeliest.tolist()), len(removed), mass)


def alternatives(logits: "Tensor", k: int) -> list[tuple[int, float]]:
    """The k likeliest tokens under (V,) logits, likeliest first: pairs of id and natural-log probability."""
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
    """How often each stage made the difference.

    Args and errors are those of `retrace`.

    Returns:
        For each of `decoder.chain.stages`, in how many positions the pick would have been another without it, given
        the recorded past; for the sampler, in how many it is not the likeliest of what it was left.
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

    Args and errors are those of `retrace`.
    """
    forbidden: list[tuple[int, str]] = []
    log_probs: list[float | None] = []
    for place in walk(decoder, request, token_ids, logits, eos_ids):
        stage = place.remover(place.wanted)
        log_prob = None if stage else place.log_prob()
        if log_prob == -math.inf:
            stage = format_stage(place.chain.stages[-1])
        if stage:
            forbidden.append((place.position, stage))
        else:
            log_probs.append(log_prob)
    known = [log_prob for log_prob in log_probs if log_prob is not None]
    total, bits = None, None
    if len(known) == len(log_probs):
        total = math.fsum(known)
        bits = abs(total) / math.log(2) / len(known) if known else 0.0
    n_tokens = len(forbidden) + len(log_probs)
    return Verdict(tuple(forbidden), -math.inf if forbidden else total, bits, n_tokens)


def parting(a: TurnLogits, b: TurnLogits, *, eos_ids: frozenset[int] = frozenset()) -> Parting | None:
    """Where two stories of one prompt part, and which stage parted them.

    Args:
        a: the first story, as for `retrace`.
        b: the second story.
        eos_ids: of the model.

    Returns:
        None where one story is the other, or the beginning of the other.

    Raises:
        UsageError: the prompts differ, or as `retrace`.
    """
    if a[1].prompt_ids != b[1].prompt_ids:
        raise UsageError("the stories begin with different prompts: only stories of one prompt can part")
    for one, other in zip(walk(*a, eos_ids), walk(*b, eos_ids), strict=False):
        if one.wanted != other.wanted:
            cause, stage, side = _cause(one, other, a[1], b[1])
            return Parting(one.position, one.token_id, other.token_id, cause, stage, side)
    return None


def _cause(one: WalkedToken, other: WalkedToken, a: Request, b: Request) -> tuple[str, str, str]:
    """Why two walks part here: cause, stage and side."""
    if a.seed != b.seed:
        return f"the seeds differ: {a.seed} and {b.seed}", "seed", ""
    if a.story != b.story:
        return f"they are stories {a.story} and {b.story} of one seed", "seed", ""
    for place, lost, side in ((other, one.wanted, "b"), (one, other.wanted, "a")):
        stage = place.remover(lost)
        if stage:
            return f"{stage} removed it", stage, side
    if one.chain == other.chain:
        return "the decoder is the same, but the model's logits are not", "model", ""
    # With both samplers on what one chain left: where they disagree, the processors are not needed to explain it.
    pair = one.token_id, other.token_id
    if other.sampled_of(one.received[-1], pair) == one.token_id:
        return _turn(one, other, pair)
    specs = " and ".join(format_stage(place.chain.stages[-1]) for place in (one, other))
    return f"the samplers pick differently: {specs}", "sampler", ""


def _turn(one: WalkedToken, other: WalkedToken, pair: tuple[int, int]) -> tuple[str, str, str]:
    """The first stage after which the sampler, asked for one of a pair of tokens, answers two chains differently."""
    winners = [[other.sampled_of(logits, pair) for logits in place.received] for place in (one, other)]
    pairs = zip(one.chain.processors, other.chain.processors, strict=False)
    n_shared = next((n for n, (x, y) in enumerate(pairs) if x != y), min(map(len, winners)) - 1)
    if winners[0][: n_shared + 1] != winners[1][: n_shared + 1]:
        return "the model's logits differ", "model", ""
    for place, row, side in ((one, winners[0], "a"), (other, winners[1], "b")):
        if row[-1] != row[n_shared]:
            n_kept = next(n for n, winner in enumerate(reversed(row)) if winner != row[-1])
            stage = format_stage(place.chain.processors[len(row) - n_kept - 1])
            return f"{stage} turned the choice", stage, side
    return "rounding turned a near tie", "model", ""
