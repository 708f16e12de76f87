"""Causal attention of stories that lie one after the other, and its gradients, on a CPU.

A story's queries are taken a stretch at a time, and a stretch meets the keys up to its own end alone: of the square of
all pairs little more than the causal half is computed. What the softmax gives is kept for the gradients, so nothing is
computed twice. Products are in the dtype of the queries.

Products of a shape that is new are slow in bfloat16, because code is made for each. So stories are taken as if they
were a multiple of `_UNIT` long, which leaves few shapes. What is too much reaches into the story behind: no query of
their own sees it, and what is written there the story behind, which comes later, overwrites.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["story_attention"]

_UNIT = 32
"""Smaller ones compute less in vain and leave more shapes."""

_QUERIES = 128
"""Of a stretch, at most: shorter ones skip more pairs, longer ones make larger products."""


def story_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attend in each of several stories, causally and blind to the others.

    Args:
        q: (H, T, D), the stories one after the other.
        k: (H, T, D), of the same dtype.
        v: (H, T, D), of the same dtype.
        lengths: of the stories, from 1; T together.

    Returns:
        (H, T, D). It can be differentiated once.
    """
    mixed: Tensor = _StoryAttention.apply(q, k, v, lengths)  # type: ignore[no-untyped-call]
    return mixed


class _Stretch(NamedTuple):
    """Queries that are computed together.

    Attributes:
        own: their positions.
        seen: the positions of the keys up to the last of them.
        n_real: how many of the queries are the story's; the others are those of a story behind.
        last: whether the story ends here.
    """

    own: slice
    seen: slice
    n_real: int
    last: bool


def _stretches(lengths: Sequence[int]) -> Iterator[_Stretch]:
    """Cut the stories, in their order; a story's last stretch comes first, as it is the one that sees all of it."""
    for end, length in zip(accumulate(lengths), lengths, strict=True):
        start, stop = end - length, end + -length % _UNIT
        for first in reversed(range(start, stop, _QUERIES)):
            own = slice(first, min(first + _QUERIES, stop))
            yield _Stretch(own, slice(start, own.stop), min(own.stop, end) - first, own.stop == stop)


def _with_room(x: Tensor) -> Tensor:
    """Copy (H, T, D) to (H, T + _UNIT - 1, D), zeros at the end; in memory all heads of a position are together."""
    n_heads, n, d_head = x.shape
    roomy = x.new_empty(n + _UNIT - 1, n_heads, d_head)
    roomy[n:] = 0
    roomy[:n] = x.transpose(0, 1)
    return roomy.transpose(0, 1)


class _StoryAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
        q, k, v = _with_room(q).mul_(1 / math.sqrt(q.shape[-1])), _with_room(k), _with_room(v)
        keys, mixed = k.transpose(1, 2), torch.empty_like(q)
        longest = min(-(-max(lengths) // _UNIT) * _UNIT, _QUERIES)
        future = q.new_full((longest, longest), -math.inf).triu(1)
        weights = []
        for own, seen, n_real, _ in _stretches(lengths):
            scores = torch.bmm(q[:, own], keys[:, :, seen])
            n = scores.shape[1]
            scores[:, :, -n:] += future[:n, :n]
            weight = scores.softmax(dim=-1)
            weight[:, n_real:] = 0
            mixed[:, own] = torch.bmm(weight, v[:, seen])
            weights.append(weight)
        ctx.lengths = lengths
        ctx.save_for_backward(q, k, v, *weights)
        return mixed[:, : sum(lengths)]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *weights = ctx.saved_tensors
        gradient, values = _with_room(gradient), v.transpose(1, 2)
        of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for (own, seen, _, last), weight in zip(_stretches(ctx.lengths), weights, strict=True):
            got = gradient[:, own]
            of_scores = torch._softmax_backward_data(torch.bmm(got, values[:, :, seen]), weight, -1, weight.dtype)
            of_q[:, own] = torch.bmm(of_scores, k[:, seen])
            of_keys = torch.bmm(of_scores.transpose(1, 2), q[:, own])
            of_values = torch.bmm(weight.transpose(1, 2), got)
            if last:
                of_k[:, seen], of_v[:, seen] = of_keys, of_values
            else:
                of_k[:, seen] += of_keys
                of_v[:, seen] += of_values
        n = sum(ctx.lengths)
        return of_q[:, :n].mul_(1 / math.sqrt(q.shape[-1])), of_k[:, :n], of_v[:, :n], None
