"""What each part is good for: a head, an attention or a feed-forward is left out, and a token becomes less likely."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from tinystory.errors import UsageError
from tinystory.inside.forward_pass import Part, Replacement, forward_pass, parts_of
from tinystory.model.transformer import Transformer

__all__ = ["Effect", "effects", "effects_on_all"]


@dataclass(frozen=True)
class Effect:
    """The effect of leaving out one part on one token.

    Attributes:
        part: the part.
        bits: how much less likely the token is without the part, in bits: log2 of its probability with the part, minus
            that without it. It is negative if the token becomes likelier.
        likeliest: the token that is the likeliest without the part.
    """

    part: Part
    bits: float
    likeliest: int


def effects(
    model: Transformer,
    before: Sequence[int],
    token_id: int,
    replacement: Replacement = "zero",
    cancel: Callable[[], bool] = lambda: False,
) -> Iterator[Effect]:
    """Leave out each part of a model in turn. Each takes one pass over the story; the first one is made at once.

    Args:
        model: in eval mode, with its weights in float32 or float64.
        before: the story before the token, 1 to max_seq_len ids.
        token_id: the token whose probability is compared.
        replacement: what takes the place of a part. "mean" disturbs the later layers less than "zero" does.
        cancel: is asked before each pass; True ends the work.

    Raises:
        UsageError: the story is empty or longer than the context, or the model has no such token.
    """
    if not 0 <= token_id < model.config.vocab_size:
        raise UsageError(f"the model has no token {token_id}; its tokens are 0 to {model.config.vocab_size - 1}")
    whole = _log2_probabilities(model, before, None, replacement)
    return _effects(model, before, token_id, replacement, cancel, float(whole[token_id]))


def effects_on_all(model: Transformer, token_ids: Sequence[int]) -> Iterator[tuple[Part, torch.Tensor]]:
    """Leave out each part in turn, with zeros in its place: by how many bits is each token of a story less likely?

    One pass serves all tokens, since a token does not see what comes after it.

    Args:
        model: in eval mode, with its weights in float32 or float64.
        token_ids: the story, 2 to max_seq_len ids.

    Yields:
        A part and its bits, (T − 1,) float64: one for each token but the first.

    Raises:
        UsageError: the story is longer than the context.
    """

    def taken(part: Part | None) -> torch.Tensor:
        logits = forward_pass(model, token_ids, part).logits[:-1].cpu().double()
        following = torch.tensor(token_ids[1:])[:, None]
        return logits.log_softmax(dim=-1).gather(1, following)[:, 0] / math.log(2)

    whole = taken(None)
    for part in parts_of(model):
        yield part, whole - taken(part)


def _effects(
    model: Transformer,
    before: Sequence[int],
    token_id: int,
    replacement: Replacement,
    cancel: Callable[[], bool],
    with_all: float,
) -> Iterator[Effect]:
    for part in parts_of(model):
        if cancel():
            return
        left = _log2_probabilities(model, before, part, replacement)
        yield Effect(part, with_all - float(left[token_id]), int(left.argmax()))


def _log2_probabilities(
    model: Transformer, before: Sequence[int], part: Part | None, replacement: Replacement
) -> torch.Tensor:
    logits = forward_pass(model, before, part, replacement).logits[-1]
    return logits.cpu().double().log_softmax(dim=-1) / math.log(2)
