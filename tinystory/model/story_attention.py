"""Compute causal attention, and its gradients, for stories that lie one after the other; for training on a CPU.

The queries of a story are computed a stretch at a time, with the keys up to the end of the stretch. So little more
than the causal half of all pairs is computed. The weights of the softmax are kept for the gradients, and nothing is
computed twice. Products are computed in the dtype of the queries.

In bfloat16 the first product of each new shape is slow, because code is generated for it. So the length of each story
is rounded up to a multiple of `_UNIT`, which leaves few shapes. The added positions belong to the next story. No query
of this story sees them, and the next story is computed later and overwrites what was written there.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["story_attention"]

_UNIT = 32
"""Positions. A smaller unit wastes less work, but leaves more shapes."""

_QUERIES = 128
"""The most queries in a stretch. Shorter stretches skip more pairs; longer ones make larger products."""


def story_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Compute causal attention within each of several stories.

    Args:
        q: (H, T, D), the stories one after the other.
        k: (H, T, D), of the same dtype.
        v: (H, T, D), of the same dtype.
        lengths: of the stories, each at least 1; their sum is T.

    Returns:
        (H, T, D). It has first derivatives, but no second ones.
    """
    mixed: Tensor = _StoryAttention.apply(q, k, v, lengths)  # type: ignore[no-untyped-call]
    return mixed


class _Stretch(NamedTuple):
    """Queries that are computed together.

    Attributes:
        queries: their positions.
        keys: the positions of all keys of the story up to the last query.
        n_real: how many of the queries belong to this story; the others belong to the next one.
        last: True if the story ends here.
    """

    queries: slice
    keys: slice
    n_real: int
    last: bool


def _stretches(lengths: Sequence[int]) -> Iterator[_Stretch]:
    """Yield the stretches of all stories. The last stretch of a story comes first, because it sees the whole story."""
    for end, length in zip(accumulate(lengths), lengths, strict=True):
        start, stop = end - length, end + -length % _UNIT
        for first in reversed(range(start, stop, _QUERIES)):
            queries = slice(first, min(first + _QUERIES, stop))
            keys = slice(start, queries.stop)
            yield _Stretch(queries, keys, min(queries.stop, end) - first, queries.stop == stop)


def _with_room(x: Tensor) -> Tensor:
    """Copy (H, T, D) to (H, T + _UNIT - 1, D) with zeros at the end. In memory the heads of a position are together."""
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
        for queries, seen, n_real, _ in _stretches(lengths):
            scores = torch.bmm(q[:, queries], keys[:, :, seen])
            n = scores.shape[1]
            scores[:, :, -n:] += future[:n, :n]
            weight = scores.softmax(dim=-1)
            weight[:, n_real:] = 0
            mixed[:, queries] = torch.bmm(weight, v[:, seen])
            weights.append(weight)
        ctx.lengths = lengths
        ctx.save_for_backward(q, k, v, *weights)
        return mixed[:, : sum(lengths)]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *weights = ctx.saved_tensors
        gradient, values = _with_room(gradient), v.transpose(1, 2)
        q_gradient, k_gradient, v_gradient = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for (queries, seen, _, last), weight in zip(_stretches(ctx.lengths), weights, strict=True):
            mixed_gradient = gradient[:, queries]
            scores_gradient = torch._softmax_backward_data(
                torch.bmm(mixed_gradient, values[:, :, seen]), weight, -1, weight.dtype
            )
            q_gradient[:, queries] = torch.bmm(scores_gradient, k[:, seen])
            keys_gradient = torch.bmm(scores_gradient.transpose(1, 2), q[:, queries])
            values_gradient = torch.bmm(weight.transpose(1, 2), mixed_gradient)
            if last:
                k_gradient[:, seen], v_gradient[:, seen] = keys_gradient, values_gradient
            else:
                k_gradient[:, seen] += keys_gradient
                v_gradient[:, seen] += values_gradient
        n = sum(ctx.lengths)
        return q_gradient[:, :n].mul_(1 / math.sqrt(q.shape[-1])), k_gradient[:, :n], v_gradient[:, :n], None
