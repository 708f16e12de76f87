"""Run a model over one story, and keep what is inside: the residual stream after each layer, and the attention.

`forward_pass` is `Transformer.forward` written out for one story in plain torch, without a cache; a test holds the two
equal. It can leave out one part of the network: a head, the attention of a layer, or the feed-forward of a layer.
Shapes: T tokens, L layers, H query heads, K key/value heads, D d_head, C d_model, V vocab_size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tinystory.errors import UsageError
from tinystory.model.transformer import Attention, Block, Transformer, rope_tables, rotate

__all__ = ["ForwardPass", "Part", "Replacement", "forward_pass", "parts_of"]

Replacement = Literal["zero", "mean"]
"""What takes the place of a part that is left out: nothing, or the mean of its output over the tokens of the story."""


@dataclass(frozen=True, order=True)
class Part:
    """A part of the network.

    Attributes:
        layer: the index of its layer, from 0.
        kind: "head", "attention" (all heads of the layer), or "feed-forward".
        head: the index of a head, from 0; None for the other kinds.
    """

    layer: int
    kind: Literal["head", "attention", "feed-forward"]
    head: int | None = None

    def __str__(self) -> str:
        """Name the part as people count: from 1."""
        name = f"head {self.head + 1}" if self.head is not None else self.kind
        return f"layer {self.layer + 1}, {name}"


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """What one pass over a story left behind.

    Attributes:
        token_ids: the story, T ids.
        stream: the residual stream, (L + 1, T, C): first the embeddings, then the stream after each layer.
        attention: the weights of each head, (L, H, T, T): the query at t looks at the key at s with weight [t, s]. The
            weights of a query add up to 1. None if the architecture does not give them.
        read_out: the model's final norm and its head. It turns (..., C) of the stream into (..., V) logits.
        logits: (T, V), the logits of the token that follows each token, in float32.
    """

    token_ids: tuple[int, ...]
    stream: Tensor
    attention: Tensor | None
    read_out: Callable[[Tensor], Tensor]
    logits: Tensor


@torch.inference_mode()
def forward_pass(
    model: Transformer, token_ids: Sequence[int], without: Part | None = None, replacement: Replacement = "zero"
) -> ForwardPass:
    """Run a model over a story.

    Args:
        model: in eval mode, with its weights in float32 or float64.
        token_ids: the story, 1 to max_seq_len ids below vocab_size.
        without: the part to leave out; None to leave out nothing.
        replacement: what takes its place.

    Raises:
        UsageError: the story is empty or longer than the context, or the model has no such part.
    """
    config = model.config
    if not 1 <= len(token_ids) <= config.max_seq_len:
        raise UsageError(f"the story has {len(token_ids)} tokens; this model can look at 1 to {config.max_seq_len}")
    if without is not None and without not in parts_of(model):
        raise UsageError(f"the model has no {without}; it has {config.n_layer} layers of {config.n_head} heads")

    device = model.embed.weight.device
    positions = torch.arange(len(token_ids), device=device)
    x = model.embed(torch.tensor(token_ids, device=device))  # (T, C), the residual stream
    rope = None
    if model.pos_embed is not None:
        x = x + model.pos_embed(positions)
    else:
        rope = rope_tables(config, positions, x.dtype)  # two (T, D)

    stream, attention = [x], []
    for n, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        left_out = without if without is not None and without.layer == n else None
        mixed, weights = _attend(block.attn, block.attn_norm(x), rope)
        if left_out is not None and left_out.head is not None:
            mixed[left_out.head] = _replaced(mixed[left_out.head], replacement)
        attended = block.attn.o(mixed.transpose(0, 1).flatten(1))  # (H, T, D) -> (T, H D) -> (T, C)
        x = x + (_replaced(attended, replacement) if _is(left_out, "attention") else attended)
        added = block.ff(block.ff_norm(x))
        x = x + (_replaced(added, replacement) if _is(left_out, "feed-forward") else added)
        stream.append(x)
        attention.append(weights)

    def read_out(stream: Tensor) -> Tensor:
        logits: Tensor = model.head(model.norm(stream))
        return logits

    return ForwardPass(tuple(token_ids), torch.stack(stream), torch.stack(attention), read_out, read_out(x).float())


def parts_of(model: Transformer) -> tuple[Part, ...]:
    """Return each part that can be left out: of each layer the heads, the attention and the feed-forward."""
    return tuple(
        part
        for n in range(model.config.n_layer)
        for part in (
            *(Part(n, "head", head) for head in range(model.config.n_head)),
            Part(n, "attention"),
            Part(n, "feed-forward"),
        )
    )


def _attend(attention: Attention, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Compute causal attention as `model.transformer.attend_explicitly` does, and keep its weights.

    Args:
        attention: the attention of one layer.
        x: normed activations, (T, C).
        rope: cosine and sine of the rotary angles, (T, D) each; None without rotary positions.

    Returns:
        What each head collected, (H, T, D), and its weights, (H, T, T).
    """
    n = len(x)
    q, k, v = (
        project(x).view(n, -1, attention.d_head).transpose(0, 1)  # (H or K, T, D)
        for project in (attention.q, attention.k, attention.v)
    )
    if rope is not None:
        q, k = rotate(q, *rope), rotate(k, *rope)
    group = len(q) // len(k)  # so many query heads share one key/value head
    k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
    scores = q @ k.transpose(-2, -1) / math.sqrt(attention.d_head)
    future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
    return weights @ v, weights


def _is(part: Part | None, kind: str) -> bool:
    return part is not None and part.kind == kind


def _replaced(output: Tensor, replacement: Replacement) -> Tensor:
    """Return what stands in the place of a part's output, (T, …): zeros, or its mean over the tokens."""
    return torch.zeros_like(output) if replacement == "zero" else output.mean(dim=0, keepdim=True).expand_as(output)
