"""The decoder-only transformer, GPT-2 and Llama families in one readable module.

Shapes: B rows, T positions, H query heads, K key/value heads, D d_head, C d_model, V vocab_size. This is the
whole-sequence form, for training and as the reference; `session.py` holds the cached form for generation.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinystory.config import ModelConfig, RopeScaling
from tinystory.cross_entropy import head_cross_entropy
from tinystory.gradients import product_dtype, rms_norm, rotate_halves, swiglu, written_out
from tinystory.story_attention import story_attention

__all__ = ["Attention", "FeedForward", "Transformer", "attend", "attend_explicitly", "rope_tables", "rotate"]


Mask = Tensor | list[int] | None
"""Who sees whom. Bool, broadcastable to (B, 1, T, T): True where a query may look. A list: the lengths of stories that
lie one after the other, T positions together, each causal and blind to the others. None: causal."""


def attend_explicitly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention written out (Vaswani et al. 2017, section 3.2.1); causal without a mask.

    Args:
        q: (B, H, T, D).
        k: (B, K, T, D), H a multiple of K: query head h reads key head h // (H / K).
        v: (B, K, T, D).
        mask: bool, broadcastable to (B, 1, T, T); True where a query may look.

    Returns:
        (B, H, T, D).
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, T)
    if mask is None:
        n = scores.shape[-1]
        mask = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
    return scores.masked_fill(~mask, -math.inf).softmax(dim=-1) @ v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None) -> Tensor:
    """`attend_explicitly` through PyTorch's fused kernel: same result, and lengths of stories may be the mask."""
    if isinstance(mask, list):  # short causal squares instead of one large masked one: a CPU computes far less
        if (group := q.shape[1] // k.shape[1]) > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        heads = [x.to(v.dtype).flatten(0, 1) for x in (q, k, v)]  # each (BH, T, D)
        return story_attention(heads[0], heads[1], heads[2], mask).view(q.shape)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )


def rope_tables(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles (Su et al. 2021, arXiv 2104.09864), in Hugging Face's layout.

    Args:
        config: a llama config.
        positions: integers of any shape (...).
        dtype: of the tables; the angles themselves are computed in float64.

    Returns:
        Two tensors (..., D); the second half of the last axis repeats the first.
    """
    exponents = torch.arange(0, config.d_head, 2, dtype=torch.float64, device=positions.device) / config.d_head
    inverse_frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        inverse_frequencies = _scaled(inverse_frequencies, config.rope_scaling)
    angles = positions.to(torch.float64)[..., None] * inverse_frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _scaled(inverse_frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Stretch slow rotations by `factor`, keep fast ones, blend between (Llama 3.1); "linear" stretches all."""
    stretched = inverse_frequencies / scaling.factor
    if scaling.kind == "linear":
        return stretched
    rotations = scaling.original_max_seq_len * inverse_frequencies / (2 * math.pi)
    blend = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0, 1)
    return blend * inverse_frequencies + (1 - blend) * stretched


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + D/2]) of the last axis by its angle; tables as from `rope_tables`."""
    if written_out(x) and x.dtype == cos.dtype:
        return rotate_halves(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def activation(config: ModelConfig) -> Callable[[Tensor], Tensor]:
    """The feed-forward's non-linearity."""
    if config.activation == "gelu_tanh":
        return lambda x: F.gelu(x, approximate="tanh")
    return F.gelu if config.activation == "gelu" else F.silu


def _norm(config: ModelConfig) -> nn.Module:
    if config.family == "gpt2":
        return nn.LayerNorm(config.d_model, eps=config.norm_eps)
    return RMSNorm(config.d_model, eps=config.norm_eps)


class RMSNorm(nn.RMSNorm):
    """PyTorch's, with its gradients written out where that pays."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        if written_out(x):
            return rms_norm(x, self.weight, self.eps or 0.0, product_dtype(x))
        return super().forward(x)


class Attention(nn.Module):
    """Multi-head causal self-attention; fewer key/value heads than query heads share them in groups."""

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
        """(B, T, C) -> (B, T, C); `rope` as from `rope_tables`, shaped (B or 1, 1, T, D)."""
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
    """Position-wise network: up, activation, down; with a gate it is SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        gated = config.family == "llama"
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=config.ff_bias) if gated else None
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.ff_bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.ff_bias)
        self.activation = activation(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        if self.gate is None:
            inner = self.activation(self.up(x))
        elif written_out(x) and self.activation is F.silu:
            inner = swiglu(self.gate(x), self.up(x))
        else:
            inner = self.activation(self.gate(x)) * self.up(x)
        out: Tensor = self.dropout(self.down(inner))
        return out


class Block(nn.Module):
    """One layer: attention, then feed-forward, each behind its norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.attn_norm = _norm(config)
        self.attn = Attention(config, dropout)
        self.ff_norm = _norm(config)
        self.ff = FeedForward(config, dropout)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Mask) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.attn_norm(x), rope, mask)
        x = x + self.ff(self.ff_norm(x))
        return x


class Transformer(nn.Module):
    """A decoder-only language model: token ids in, next-token logits out, or the loss of labels."""

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
        """The normed last hidden states.

        Args:
            token_ids: (B, T), integers below vocab_size.
            positions: (B, T) or (1, T); 0..T-1 when None. Packed stories restart at 0.
            mask: as `Mask` says; causal when None.

        Returns:
            (B, T, C).
        """
        if positions is None:
            positions = torch.arange(token_ids.shape[1], device=token_ids.device)[None]
        x = self.embed(token_ids)
        rope = None
        if self.pos_embed is not None:
            x = x + self.pos_embed(positions)
        else:
            rope = rope_tables(self.config, positions[:, None], product_dtype(x))  # two (B or 1, 1, T, D)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, rope, mask)
        out: Tensor = self.norm(x)
        return out

    def forward(
        self, token_ids: Tensor, positions: Tensor | None = None, mask: Mask = None, labels: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) for the token after each position; the other arguments are those of `hidden`.

        With labels, (B, T) int64, negative where nothing is scored, it is the sum of their negative log-likelihoods
        instead, in nats: a scalar, for which the logits never exist all at once.
        """
        hidden = self.hidden(token_ids, positions, mask)
        if labels is not None:
            return head_cross_entropy(hidden.flatten(0, 1), self.head.weight, labels.flatten())
        out: Tensor = self.head(hidden)
        return out

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw fresh weights in place: normal(0, 0.02), norms at one.

        The projections that write into the residual stream start at zero in the llama family, so every block
        begins as the identity, and are scaled by 1/sqrt(2 n_layer) in gpt2 (Radford et al. 2019).
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
