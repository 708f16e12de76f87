"""Compute one or several positions of a small llama model on the CPU in NumPy, equal to `model.Transformer`.

A step of a small model is a few hundred short operations, and calling NumPy costs a third of calling torch. Weights and
cache are the memory of the session, not a copy. A test holds the results equal to those of the torch form.

One token of one row is multiplied with `vecdot`: it reads a matrix in place, on one thread, with every BLAS. Several
tokens at once share each reading of the weights in a matrix product; `product` shows how.

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

__all__ = ["MOST_TOKENS", "NumpyStep", "beats_torch", "is_plain"]

MOST_TOKENS = 32
"""The most tokens at once for which NumPy is faster than torch."""

_LARGEST = 20_000_000
"""The most weights for which NumPy is faster than torch. Larger models spend their time on reading weights, and torch
has threads for that."""

_LARGEST_PRODUCT = 2**18
"""The most multiplications for which OpenBLAS neither starts threads nor copies the matrix. Its threads would ignore
the number set in torch, and a copy costs more than the product with a few columns."""


def is_plain(config: ModelConfig) -> bool:
    """Return whether `NumpyStep` can compute a model: a llama with SiLU and without biases."""
    biased = config.attention_bias or config.attention_out_bias or config.ff_bias
    return config.family == "llama" and config.activation == "silu" and not biased


def beats_torch(config: ModelConfig) -> bool:
    """Return whether NumPy can compute a model, and beats torch for it."""
    return is_plain(config) and config.n_parameters <= _LARGEST


def times(matrix: Matrix, x: Array) -> Array:
    """Multiply a matrix by one vector: (out, in) @ (in,) -> (out,)."""
    if not isinstance(matrix, np.ndarray):
        return matrix.vector(x)
    out: Array = np.vecdot(matrix, x)
    return out


def product(matrix: Matrix, x: Array) -> Array:
    """Multiply a matrix by N vectors, N small: (out, in) @ (in, N) -> (out, N).

    The matrix is multiplied in slices of rows that OpenBLAS handles without threads or copies.
    """
    if not isinstance(matrix, np.ndarray):
        return matrix.columns(x)
    out = np.empty((len(matrix), x.shape[1]), x.dtype)
    rows = max(1, _LARGEST_PRODUCT // x.size)
    for start in range(0, len(matrix), rows):
        np.matmul(matrix[start : start + rows], x, out=out[start : start + rows])
    return out


class _Block(NamedTuple):
    """The weights of one layer, without biases, and its keys and values (B, K, S, D)."""

    attn_norm: Array
    qkv: Matrix
    o: Matrix
    ff_norm: Array
    up: Matrix
    down: Matrix
    keys: Array
    values: Array


class NumpyStep:
    """A model together with the cache of its rows; each step writes into the cache."""

    def __init__(self, weights: ModelWeights, rotations: Rotations, caches: Sequence[tuple[Array, Array]]) -> None:
        """Put weights and cache together.

        Args:
            weights: the weights of a model for which `is_plain` is true.
            rotations: the tables for at least as many positions as the cache has.
            caches: keys and values of each layer, (B, K, S, D).
        """
        self._embed, self._head, self._norm, self._eps = weights.embed, weights.head, weights.norm.weight, weights.eps
        self._cos, self._sin = rotations
        self._blocks = []
        for layer, cache in zip(weights.layers, caches, strict=True):
            attn_norm, qkv, o, ff_norm, up, down = (part.weight for part in layer)
            self._blocks.append(_Block(attn_norm, qkv, o, ff_norm, up, down, *cache))

    def one(self, token_id: int, position: int, row: int = 0) -> tuple[Array, Array]:
        """Feed one token to one row; return the normed last hidden state (C,) and the logits of the next token (V,)."""
        with np.errstate(all="ignore"):  # SiLU may overflow before it becomes 0; the decoder refuses NaN logits
            x = self._embed[token_id]
            for layer in self._blocks:
                x = x + self._attention(layer, self._rms_norm(x, layer.attn_norm), position, row)
                x = x + self._feed_forward(layer, self._rms_norm(x, layer.ff_norm))
            hidden = self._rms_norm(x, self._norm)
            return hidden, np.vecdot(self._head, hidden)

    def several(self, token_ids: NDArray[np.int64], starts: NDArray[np.int64]) -> Array:
        """Feed (B, T) ids, row i from position starts[i] on; return the normed last hidden states (B, T, C)."""
        n_rows, n_new = token_ids.shape
        place = _Place(starts, n_new)
        cos, sin = (table[place.positions.ravel()].T for table in (self._cos, self._sin))  # (D, N)
        with np.errstate(all="ignore"):
            x = np.ascontiguousarray(self._embed[token_ids.ravel()].T)  # (C, N), one column for each token
            for layer in self._blocks:
                x = x + _attention(layer, self._rms_norms(x, layer.attn_norm), place, cos, sin)
                x = x + _feed_forward(layer, self._rms_norms(x, layer.ff_norm))
            return self._rms_norms(x, self._norm).T.reshape(n_rows, n_new, -1)

    def logits(self, hidden: Array) -> Array:
        """Compute logits from hidden states: (N, C) -> (N, V)."""
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
    """The positions (B, T) of new tokens, and the positions that each must not see."""

    def __init__(self, starts: NDArray[np.int64], n_new: int) -> None:
        self.positions = starts[:, None] + np.arange(n_new)
        self.end = int(starts.max()) + n_new
        # (B, 1, T, S): true for later tokens, and where only longer rows have tokens.
        self.masked: NDArray[np.bool_] | None = None
        even = bool((starts == starts[0]).all())
        if n_new > 1 or not even:
            self.masked = (np.arange(self.end) > self.positions[..., None])[:, None]
        self._columns = slice(int(starts[0]), self.end) if even else None
        self._rows = np.arange(len(starts))[:, None]

    def write(self, cache: Array, new: Array) -> None:
        """Write new keys or values (B, T, K, D) into the cache (B, K, S, D)."""
        if self._columns:
            cache[:, :, self._columns] = new.transpose(0, 2, 1, 3)
        else:
            cache[self._rows, :, self.positions] = new


def _attention(layer: _Block, x: Array, place: _Place, cos: Array, sin: Array) -> Array:
    """Compute the attention of several tokens: (C, N) -> (C, N); cos and sin are (D, N)."""
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
    if place.masked is not None:
        by_token = scores.reshape(n_rows, -1, n_new, place.end)
        by_token[np.broadcast_to(place.masked, by_token.shape)] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores * d_head**-0.5)
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = weights @ layer.values[:, :, : place.end]
    by_head = mixed.reshape(n_rows, -1, n_new, d_head).transpose(1, 3, 0, 2)  # (H, D, B, T)
    return product(layer.o, by_head.reshape(-1, n_rows * n_new))


def _feed_forward(layer: _Block, x: Array) -> Array:
    """Compute the feed-forward of several tokens: (C, N) -> (C, N)."""
    gate, up = product(layer.up, x).reshape(2, -1, x.shape[1])
    up *= gate
    up /= 1 + np.exp(-gate)
    return product(layer.down, up)
