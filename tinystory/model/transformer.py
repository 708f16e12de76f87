"""Compute the decoder-only transformer of the GPT-2 and Llama families, for whole sequences.

Read this module from the end: `Transformer` has a list of `Block`s, and a block has one `Attention` and one
`FeedForward`. The path of the data:

    token ids (B, T) -> embedding (B, T, C) -> n_layer blocks (B, T, C) -> norm -> head -> logits (B, T, V)

The vectors (B, T, C) between the blocks are called the residual stream. A block does not replace them: attention and
feed-forward each read the stream through a norm, and add their result to it. Only attention moves information between
positions. Everything else works on each position alone.

The two families differ in five ways:

              gpt2                              llama
    positions learned, added to the embedding   rotary, applied in every attention
    norm      LayerNorm                         RMSNorm
    network   up, GELU, down                    gate and up, SiLU, down (SwiGLU)
    heads     one key/value head for each       one key/value head for each query head,
              query head                        or one for a group of them
    biases    everywhere                        none, unless the config says so

This form is used for training, and it is the reference for tests. To write a story token by token, `session/native.py`
has the same mathematics with a cache. Shapes: B rows, T positions, H query heads, K key/value heads, D d_head,
C d_model, V vocab_size. The module knows no files, no text and no decoders.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinystory.model.config import ModelConfig, RopeScaling
from tinystory.model.cross_entropy import head_cross_entropy
from tinystory.model.gradients import product_dtype, rms_norm, rotate_halves, swiglu, written_out
from tinystory.model.story_attention import story_attention

__all__ = [
    "Attention",
    "FeedForward",
    "Transformer",
    "activation",
    "attend",
    "attend_explicitly",
    "rope_tables",
    "rotate",
]


Mask = Tensor | list[int] | None
"""The positions that each position may see in attention.

- None: causal; each position sees itself and all earlier ones.
- A bool tensor that can be broadcast to (B, 1, T, T): the query at t may see the key at s where [t, s] is True.
- A list of lengths: several stories are packed into one row, one after the other, and the lengths add up to T. Each
  story is causal and does not see the others.
"""


def attend_explicitly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute scaled dot-product attention step by step (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1).

    Each position has a query, a key and a value in every head. The score of two positions is the dot product of the
    query of the first and the key of the second, divided by sqrt(D) so that its size does not depend on D. Softmax
    turns the scores of one query into weights that add up to 1. The result is the weighted mean of the values.

    This form is for reading and for tests; `attend` gives the same result faster.

    Args:
        q: queries (B, H, T, D).
        k: keys (B, K, T, D). H is a multiple of K: query head h uses key head h // (H / K).
        v: values (B, K, T, D), shared in the same way.
        mask: bool, can be broadcast to (B, 1, T, T), True where a query may see a key; causal if None.

    Returns:
        The mixed values, (B, H, T, D).
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, T)
    if mask is None:
        n = scores.shape[-1]
        mask = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
    return scores.masked_fill(~mask, -math.inf).softmax(dim=-1) @ v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None) -> Tensor:
    """Compute the same as `attend_explicitly`, with PyTorch's kernels, which are faster and need less memory.

    Args and result are those of `attend_explicitly`. In addition, the mask may be a list of lengths; see `Mask`.
    """
    if isinstance(mask, list):  # many short causal squares: a CPU computes far less than for one large masked one
        if (group := q.shape[1] // k.shape[1]) > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        heads = [x.to(v.dtype).flatten(0, 1) for x in (q, k, v)]  # each (B H, T, D)
        return story_attention(heads[0], heads[1], heads[2], mask).view(q.shape)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )


def rope_tables(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the rotary angles (RoPE, Su et al. 2021, arXiv 2104.09864).

    RoPE rotates pairs of numbers of each query and key by an angle that is proportional to the position. The dot
    product of a query and a key then depends on the distance of their positions, and not on the positions themselves.
    The first pairs turn fast and tell neighbours apart; the last ones turn slowly and tell far positions apart. Pair i
    turns by rope_theta^(-2 i / D) radians per position.

    Args:
        config: a llama config.
        positions: integers of any shape (...).
        dtype: the dtype of the tables. The angles are computed in float64, on the CPU: not every device has float64.

    Returns:
        Two tensors (..., D) on the device of the positions. As in Hugging Face's layout, the second half of the last
        axis repeats the first.
    """
    exponents = torch.arange(0, config.d_head, 2, dtype=torch.float64, device="cpu") / config.d_head
    inverse_frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        inverse_frequencies = _scaled(inverse_frequencies, config.rope_scaling)
    angles = positions.cpu().to(torch.float64)[..., None] * inverse_frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype).to(positions.device), angles.sin().to(dtype).to(positions.device)


def _scaled(inverse_frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow rotations down, so that a model can be used with a longer context than it was trained with.

    "linear" divides all frequencies by `factor`. "llama3" divides only those of slow rotations, keeps those of fast
    ones, and blends between the two. A rotation is slow if it turns fewer than `low_freq_factor` times within the
    original context, and fast if it turns more than `high_freq_factor` times.
    """
    stretched = inverse_frequencies / scaling.factor
    if scaling.kind == "linear":
        return stretched
    rotations = scaling.original_max_seq_len * inverse_frequencies / (2 * math.pi)
    blend = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0, 1)
    return blend * inverse_frequencies + (1 - blend) * stretched


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + D/2]) of the last axis by its angle; the tables are those of `rope_tables`."""
    if written_out(x) and x.dtype == cos.dtype:
        return rotate_halves(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def activation(config: ModelConfig) -> Callable[[Tensor], Tensor]:
    """Return the non-linear function of the feed-forward."""
    if config.activation == "gelu_tanh":
        return lambda x: F.gelu(x, approximate="tanh")
    return F.gelu if config.activation == "gelu" else F.silu


def _norm(config: ModelConfig) -> nn.Module:
    """Return a new norm: it scales each position's vector (C,) to a fixed size, then by learned weights.

    LayerNorm also subtracts the mean and has a bias; RMSNorm only divides by the root of the mean square.
    """
    if config.family == "gpt2":
        return nn.LayerNorm(config.d_model, eps=config.norm_eps)
    return RMSNorm(config.d_model, eps=config.norm_eps)


class RMSNorm(nn.RMSNorm):
    """PyTorch's RMSNorm, computed by `gradients.rms_norm` where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """Norm the last axis: (..., C) -> (..., C)."""
        if written_out(x):
            return rms_norm(x, self.weight, self.eps or 0.0, product_dtype(x))
        return super().forward(x)


class Attention(nn.Module):
    """Multi-head self-attention: each position collects information from the positions that it may see.

    A head computes one query, key and value of D numbers for each position. Several heads do this side by side, each
    with its own weights, and `o` joins their results. With fewer key/value heads than query heads, a group of query
    heads shares one key/value head (grouped-query attention, Ainslie et al. 2023, arXiv 2305.13245); this makes the
    cache of a session smaller.
    """

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        d_q, d_kv = config.n_head * config.d_head, config.n_kv_head * config.d_head
        self.d_head = config.d_head
        self.q = nn.Linear(config.d_model, d_q, bias=config.attention_bias)
        self.k = nn.Linear(config.d_model, d_kv, bias=config.attention_bias)
        self.v = nn.Linear(config.d_model, d_kv, bias=config.attention_bias)
        self.o = nn.Linear(d_q, config.d_model, bias=config.attention_out_bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Mask,
        attend: Callable[[Tensor, Tensor, Tensor, Any], Tensor] = attend,
    ) -> Tensor:
        """Mix information between positions: (B, T, C) -> (B, T, C).

        Args:
            x: normed activations, (B, T, C).
            rope: tables of `rope_tables`, (B or 1, 1, T, D) each; None without rotary positions.
            mask: the positions that each position may see; see `Mask`.
            attend: the function that computes attention; tests put `attend_explicitly` here.
        """
        n_rows, n_positions, _ = x.shape
        q, k, v = (
            project(x).view(n_rows, n_positions, -1, self.d_head).transpose(1, 2)  # (B, H or K, T, D)
            for project in (self.q, self.k, self.v)
        )
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        mixed = attend(q, k, v, mask).transpose(1, 2).reshape(n_rows, n_positions, -1)
        out: Tensor = self.dropout(self.o(mixed))
        return out


class FeedForward(nn.Module):
    """A small network for each position alone: up to d_ff numbers, a non-linear function, and down to C again.

    gpt2 computes down(act(up(x))). llama has a gate and computes down(act(gate(x)) * up(x)), which is SwiGLU with the
    activation SiLU (Shazeer 2020, arXiv 2002.05202).
    """

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        gated = config.family == "llama"
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=config.ff_bias) if gated else None
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.ff_bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.ff_bias)
        self.activation = activation(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to each position: (B, T, C) -> (B, T, C)."""
        if self.gate is None:
            inner = self.activation(self.up(x))
        elif written_out(x) and self.activation is F.silu:
            inner = swiglu(self.gate(x), self.up(x))
        else:
            inner = self.activation(self.gate(x)) * self.up(x)
        out: Tensor = self.dropout(self.down(inner))
        return out


class Block(nn.Module):
    """One layer of the network: attention, then feed-forward.

    Each of the two reads the residual stream through its own norm, and adds its result to the stream.
    """

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.attn_norm = _norm(config)
        self.attn = Attention(config, dropout)
        self.ff_norm = _norm(config)
        self.ff = FeedForward(config, dropout)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Mask) -> Tensor:
        """Apply the layer: (B, T, C) -> (B, T, C); `rope` and `mask` as for `Attention.forward`."""
        x = x + self.attn(self.attn_norm(x), rope, mask)
        x = x + self.ff(self.ff_norm(x))
        return x


class Transformer(nn.Module):
    """A decoder-only language model: it takes token ids, and gives the logits of each next token or a loss.

    Attributes:
        config: the shape of the model.
        embed: the vector of each token, (V, C).
        pos_embed: the vector of each position, (max_seq_len, C); None for rotary positions.
        blocks: the layers, in order.
        norm: the norm before the head.
        head: the matrix from hidden states to logits, (V, C). It is the matrix of `embed` if the head is tied.
    """

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.pos_embed = nn.Embedding(config.max_seq_len, config.d_model) if config.family == "gpt2" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(config, dropout) for _ in range(config.n_layer))
        self.norm = _norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embed.weight

    def hidden(self, token_ids: Tensor, positions: Tensor | None = None, mask: Mask = None) -> Tensor:
        """Return the normed hidden states of the last layer, (B, T, C).

        Args:
            token_ids: (B, T), integers below vocab_size.
            positions: the place of each token in its story, (B, T) or (1, T); 0 to T - 1 if None. If several stories
                are packed into one row, each begins again at 0.
            mask: the positions that each position may see; see `Mask`. Causal if None.
        """
        x = self.embed(token_ids)
        rope = None
        if self.pos_embed is None:
            rope = self._rope(positions, token_ids, product_dtype(x))
        elif positions is None:
            x = x + self.pos_embed(torch.arange(token_ids.shape[1], device=token_ids.device)[None])
        else:
            x = x + self.pos_embed(positions)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, rope, mask)
        out: Tensor = self.norm(x)
        return out

    def _rope(self, positions: Tensor | None, token_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the tables of these positions, two (B or 1, 1, T, D); arguments as for `hidden`."""
        device = token_ids.device
        if positions is not None and device.type == "cpu":
            return rope_tables(self.config, positions[:, None], dtype)
        # Other devices would have to be waited for to see the positions, so they get a table of all of them.
        n_positions = token_ids.shape[1] if positions is None else self.config.max_seq_len
        tables = rope_tables(self.config, torch.arange(n_positions, device="cpu"), dtype)
        cos, sin = (table.to(device) for table in tables)
        if positions is None:
            return cos[None, None], sin[None, None]
        return cos[positions][:, None], sin[positions][:, None]

    def forward(
        self, token_ids: Tensor, positions: Tensor | None = None, mask: Mask = None, labels: Tensor | None = None
    ) -> Tensor:
        """Return the logits (B, T, V) of the token after each position, or the loss of labels.

        With labels the result is a scalar: the sum of their negative log-likelihoods, in nats. It is computed without
        keeping all logits in memory.

        Args:
            token_ids: as for `hidden`.
            positions: as for `hidden`.
            mask: as for `hidden`.
            labels: (B, T) int64, the right token after each position; a negative label is not scored.
        """
        hidden = self.hidden(token_ids, positions, mask)
        if labels is not None:
            return head_cross_entropy(hidden.flatten(0, 1), self.head.weight, labels.flatten())
        out: Tensor = self.head(hidden)
        return out

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw new weights in place, from a normal distribution with mean 0 and standard deviation 0.02.

        Norms start at one and biases at zero. The two matrices of a block that write into the residual stream are
        special. In llama they start at zero, so at first a block changes nothing. In gpt2 their standard deviation is
        divided by sqrt(2 n_layer), so that the stream does not grow with the number of layers (Radford et al. 2019).
        """
        generator = torch.Generator().manual_seed(seed)
        writes_residual = 0.0 if self.config.family == "llama" else 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                std = writes_residual if name.endswith(("attn.o.weight", "ff.down.weight")) else 0.02
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
