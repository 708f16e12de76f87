"""A few tokens in NumPy: `model.Transformer` for one or several positions of a small llama model on the CPU.

A small model's step is a few hundred short operations, and a NumPy call costs a third of a torch call. Weights and
cache are the session's own memory; a test holds this equal to the torch form.

One token of one row uses `vecdot`, which reads a matrix as it lies and on one thread whatever BLAS is installed.
Several tokens at once share each reading of the weights in a matrix product; see `product` for how.

Shapes: B rows, T new positions, N = B · T tokens, S cached positions, H query heads, K key/value heads, D d_head, C
d_model, V vocab_size.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinystory.model.config import ModelConfig
from tinystory.session.steps.weights import Array, Matrix, ModelWeights, Rotations

__all__ = ["MOST_TOKENS", "NumpyStep", "is_plain", "pays"]

MOST_TOKENS = 32
"""Tokens up to which this is faster than torch."""

_LARGEST = 20_000_000
"""Weights up to which this is faster than torch; above, reading them takes the time, and torch has threads."""

_LARGEST_PRODUCT = 2**18
"""Multiplications up to which OpenBLAS uses neither threads of its own, which would not heed torch's setting, nor a
copy of the matrix, which costs more than the product of a few columns."""


def is_plain(config: ModelConfig) -> bool:
    """Whether a model is one that `NumpyStep` computes."""
    biased = config.attention_bias or config.attention_out_bias or config.ff_bias
    return config.family == "llama" and config.activation == "silu" and not biased


def pays(config: ModelConfig) -> bool:
    """Whether it is one, and small enough for NumPy to be faster than torch."""
    return is_plain(config) and config.n_parameters <= _LARGEST


def times(matrix: Matrix, x: Array) -> Array:
    """(out, in) @ (in,) -> (out,)."""
    if not isinstance(matrix, np.ndarray):
        return matrix.vector(x)
    out: Array = np.vecdot(matrix, x)
    return out


def product(matrix: Matrix, x: Array) -> Array:
    """(out, in) @ (in, N) -> (out, N), in pieces of the matrix that are small enough; N is small."""
    if not isinstance(matrix, np.ndarray):
        return matrix.columns(x)
    out = np.empty((len(matrix), x.shape[1]), x.dtype)
    rows = max(1, _LARGEST_PRODUCT // x.size)
    for start in range(0, len(matrix), rows):
        np.matmul(matrix[start : start + rows], x, out=out[start : start + rows])
    return out


class _Block(NamedTuple):
    """A layer's weights without biases, and keys and values (B, K, S, D)."""

    attn_norm: Array
    qkv: Matrix
    o: Matrix
    ff_norm: Array
    up: Matrix
    down: Matrix
    keys: Array
    values: Array


class NumpyStep:
    """A model with the cache of its rows, which a step writes."""

    def __init__(self, weights: ModelWeights, rotations: Rotations, caches: Sequence[tuple[Array, Array]]) -> None:
        """Put them together; `caches` are keys and values of each layer, (B, K, S, D)."""
        self._embed, self._head, self._norm, self._eps = weights.embed, weights.head, weights.norm.weight, weights.eps
        self._cos, self._sin = rotations
        self._blocks = []
        for layer, cache in zip(weights.layers, caches, strict=True):
            attn_norm, qkv, o, ff_norm, up, down = (part.weight for part in layer)
            self._blocks.append(_Block(attn_norm, qkv, o, ff_norm, up, down, *cache))

    def one(self, token_id: int, position: int, row: int = 0) -> tuple[Array, Array]:
        """Feed a token to one row: the normed last hidden state (C,), and the next token's logits (V,)."""
        with np.errstate(all="ignore"):  # SiLU may overflow on its way to 0; NaN logits are refused by the chain
            x = self._embed[token_id]
            for layer in self._blocks:
                x = x + self._attention(layer, self._rms_norm(x, layer.attn_norm), position, row)
                x = x + self._feed_forward(layer, self._rms_norm(x, layer.ff_norm))
            hidden = self._rms_norm(x, self._norm)
            return hidden, np.vecdot(self._head, hidden)

    def several(self, token_ids: NDArray[np.int64], starts: NDArray[np.int64]) -> Array:
        """Feed (B, T) ids to the rows, row i from position starts[i] on: the normed last hidden states, (B, T, C)."""
        n_rows, n_new = token_ids.shape
        place = _Place(starts, n_new)
        cos, sin = (table[place.positions.ravel()].T for table in (self._cos, self._sin))  # (D, N)
        with np.errstate(all="ignore"):
            x = np.ascontiguousarray(self._embed[token_ids.ravel()].T)  # (C, N): a token is a column
            for layer in self._blocks:
                x = x + _attention(layer, self._rms_norms(x, layer.attn_norm), place, cos, sin)
                x = x + _feed_forward(layer, self._rms_norms(x, layer.ff_norm))
            return self._rms_norms(x, self._norm).T.reshape(n_rows, n_new, -1)

    def logits(self, hidden: Array) -> Array:
        """(N, C) -> (N, V)."""
        with np.errstate(all="ignore"):
            return np.ascontiguousarray(product(self._head, np.ascontiguousarray(hidden.T)).T)

    def _attention(self, layer: _Block, x: Array, position: int, row: int) -> Array:
        keys, values = layer.keys[row], layer.values[row]
        n_kv_head, _, d_head = keys.shape
        half, end = d_head // 2, position + 1
        qkv = times(layer.qkv, x).reshape(-1, d_head)
        qk, v = qkv[:-n_kv_head], qkv[-n_kv_head:]
        swapped = np.concatenate((qk[:, half:], qk[:, :half]), axis=1)
        qk = qk * self._cos[position] + swapped * self._sin[position]
        keys[:, position] = qk[-n_kv_head:]
        values[:, position] = v
        q = qk[:-n_kv_head].reshape(n_kv_head, -1, d_head)  # (K, H / K, D)
        scores = q @ keys[:, :end].transpose(0, 2, 1)  # (K, H / K, S)
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores * d_head**-0.5)
        weights /= weights.sum(axis=-1, keepdims=True)
        return times(layer.o, (weights @ values[:, :end]).ravel())

    def _feed_forward(self, layer: _Block, x: Array) -> Array:
        gate, up = times(layer.up, x).reshape(2, -1)
        up *= gate
        up /= 1 + np.exp(-gate)
        return times(layer.down, up)

    def _rms_norm(self, x: Array, weight: Array) -> Array:
        return x * (weight * (1 / math.sqrt(x.dot(x) / len(x) + self._eps)))

    def _rms_norms(self, x: Array, weight: Array) -> Array:
        scale = 1 / np.sqrt(np.einsum("cn,cn->n", x, x) / len(x) + self._eps)
        normed: Array = x * weight[:, None] * scale
        return normed


class _Place:
    """Where new tokens stand: their positions (B, T), and what each may see."""

    def __init__(self, starts: NDArray[np.int64], n_new: int) -> None:
        self.positions = starts[:, None] + np.arange(n_new)
        self.end = int(starts.max()) + n_new
        self.hidden: NDArray[np.bool_] | None = None  # (B, 1, T, S): later ones, and those of longer rows
        even = bool((starts == starts[0]).all())
        if n_new > 1 or not even:
            self.hidden = (np.arange(self.end) > self.positions[..., None])[:, None]
        self._columns = slice(int(starts[0]), self.end) if even else None
        self._rows = np.arange(len(starts))[:, None]

    def write(self, cache: Array, new: Array) -> None:
        """Put (B, T, K, D) into the (B, K, S, D) cache."""
        if self._columns:
            cache[:, :, self._columns] = new.transpose(0, 2, 1, 3)
        else:
            cache[self._rows, :, self.positions] = new


def _attention(layer: _Block, x: Array, place: _Place, cos: Array, sin: Array) -> Array:
    """(C, N) -> (C, N); cos and sin (D, N)."""
    n_rows, n_kv_head, _, d_head = layer.keys.shape
    n_new, half = place.positions.shape[1], d_head // 2
    qkv = product(layer.qkv, x).reshape(-1, d_head, n_rows * n_new)  # (H + 2 K, D, N)
    qk, v = qkv[:-n_kv_head], qkv[-n_kv_head:]
    swapped = np.concatenate((qk[:, half:], qk[:, :half]), axis=1)
    qk = qk * cos + swapped * sin
    for cache, new in ((layer.keys, qk[-n_kv_head:]), (layer.values, v)):
        place.write(cache, new.transpose(2, 0, 1).reshape(n_rows, n_new, n_kv_head, d_head))
    q = qk[:-n_kv_head].reshape(n_kv_head, -1, d_head, n_rows, n_new).transpose(3, 0, 1, 4, 2)
    q = q.reshape(n_rows, n_kv_head, -1, d_head)  # (B, K, H / K · T, D)
    scores = q @ layer.keys[:, :, : place.end].transpose(0, 1, 3, 2)  # (B, K, H / K · T, S)
    if place.hidden is not None:
        by_token = scores.reshape(n_rows, -1, n_new, place.end)
        by_token[np.broadcast_to(place.hidden, by_token.shape)] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores * d_head**-0.5)
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = weights @ layer.values[:, :, : place.end]
    by_head = mixed.reshape(n_rows, -1, n_new, d_head).transpose(1, 3, 0, 2)  # (H, D, B, T)
    return product(layer.o, by_head.reshape(-1, n_rows * n_new))


def _feed_forward(layer: _Block, x: Array) -> Array:
    """(C, N) -> (C, N)."""
    gate, up = product(layer.up, x).reshape(2, -1, x.shape[1])
    up *= gate
    up /= 1 + np.exp(-gate)
    return product(layer.down, up)
