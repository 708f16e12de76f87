"""One token of one row in NumPy: `model.Transformer` for a single position of a small llama model on the CPU.

A small model's token is a few hundred short operations, and a NumPy call costs a third of a torch call. `vecdot`
reads a matrix as it lies, and on one thread whatever BLAS is installed (NumPy's own threads would not heed torch's
setting). Weights and cache are the session's own memory; a test holds this equal to the torch form.

Shapes: S cached positions, H query heads, K key/value heads, D d_head, C d_model, V vocab_size.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinystory.config import ModelConfig

__all__ = ["NumpyLayer", "NumpyStep", "pays"]

Array = NDArray[np.floating[Any]]

_LARGEST = 20_000_000
"""Weights up to which this is faster than torch; above, reading them takes the time, and torch has threads."""


def pays(config: ModelConfig) -> bool:
    """Whether a model is one that `NumpyStep` computes, and small enough for it to be faster."""
    plain = config.activation == "silu" and not (config.attention_bias or config.attention_out_bias or config.ff_bias)
    return config.family == "llama" and plain and config.n_parameters <= _LARGEST


class NumpyLayer(NamedTuple):
    """One block; matrices are (out, in), q/k/v and gate/up each fused, keys and values (K, S, D)."""

    attn_norm: Array
    qkv: Array
    o: Array
    ff_norm: Array
    up: Array
    down: Array
    keys: Array
    values: Array


class NumpyStep(NamedTuple):
    """A model with the cache of one row.

    Attributes:
        embed: (V, C).
        layers: the blocks; a step writes their cache.
        norm: (C,), the last norm's weight.
        head: (V, C).
        cos: (S, D), as from `model.rope_tables`.
        sin: the same, its first half negated.
        eps: of the norms.
    """

    embed: Array
    layers: Sequence[NumpyLayer]
    norm: Array
    head: Array
    cos: Array
    sin: Array
    eps: float

    def __call__(self, token_id: int, position: int) -> tuple[Array, Array]:
        """Feed a token at a position: the normed last hidden state (C,), and the next token's logits (V,)."""
        with np.errstate(all="ignore"):  # SiLU may overflow on its way to 0; NaN logits are refused by the chain
            x = self.embed[token_id]
            for layer in self.layers:
                x = x + self._attention(layer, self._rms_norm(x, layer.attn_norm), position)
                x = x + self._feed_forward(layer, self._rms_norm(x, layer.ff_norm))
            hidden = self._rms_norm(x, self.norm)
            return hidden, np.vecdot(self.head, hidden)

    def _attention(self, layer: NumpyLayer, x: Array, position: int) -> Array:
        n_kv_head, _, d_head = layer.keys.shape
        half, end = d_head // 2, position + 1
        qkv = np.vecdot(layer.qkv, x).reshape(-1, d_head)
        qk, v = qkv[:-n_kv_head], qkv[-n_kv_head:]
        swapped = np.concatenate((qk[:, half:], qk[:, :half]), axis=1)
        qk = qk * self.cos[position] + swapped * self.sin[position]
        layer.keys[:, position] = qk[-n_kv_head:]
        layer.values[:, position] = v
        q = qk[:-n_kv_head].reshape(n_kv_head, -1, d_head)  # (K, H / K, D)
        scores = q @ layer.keys[:, :end].transpose(0, 2, 1)  # (K, H / K, S)
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores * d_head**-0.5)
        weights /= weights.sum(axis=-1, keepdims=True)
        out: Array = np.vecdot(layer.o, (weights @ layer.values[:, :end]).ravel())
        return out

    def _feed_forward(self, layer: NumpyLayer, x: Array) -> Array:
        gate, up = np.vecdot(layer.up, x).reshape(2, -1)
        up *= gate
        up /= 1 + np.exp(-gate)
        out: Array = np.vecdot(layer.down, up)
        return out

    def _rms_norm(self, x: Array, weight: Array) -> Array:
        return x * (weight * (1 / math.sqrt(x.dot(x) / len(x) + self.eps)))
