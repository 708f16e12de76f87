"""`numpy_step.NumpyStep` in compiled code: the same weights and cache, given to the functions of `step.c`.

Shapes: B rows, T new positions, N tokens, S cached positions, K key/value heads, D d_head, C d_model, V vocab_size.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinystory.compiling import CompiledCode
from tinystory.config import ModelConfig
from tinystory.numpy_step import Array, Matrix, NumpyWeights

__all__ = ["CompiledStep", "PackedModel"]

_FLOAT32, _BFLOAT16, _INT8 = range(3)
_BYTES = {_FLOAT32: 4, _BFLOAT16: 2, _INT8: 1}
"""Of a weight, by kind of matrix as `step.c` numbers them."""

_MOST_TOKENS = 64
"""Tokens of one call: what they need in between stays in the processor's cache."""

_LINE = 64
"""Bytes of a line of that cache."""


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("panels", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("kind", "n_out", "n_in")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("attn_norm", "ff_norm")),
        *((name, _Matrix) for name in ("qkv", "o", "up", "down")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("d_model", "n_layer", "n_head", "n_kv_head", "d_head", "d_ff")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("embed", "norm")),
        ("head", _Matrix),
        ("layers", ctypes.POINTER(_Layer)),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("row_stride", "head_stride")),
        *((name, ctypes.c_void_p) for name in ("cos", "sin")),
    ]


class PackedModel:
    """A model's weights as `step.c` wants them: each matrix once, in panels; what is small stays where it is."""

    def __init__(self, code: CompiledCode, config: ModelConfig, weights: NumpyWeights) -> None:
        """Pack float32 or int8 weights of a model for which `numpy_step.is_plain` holds."""
        self.functions = code.library
        self.config = config
        self._held: list[Any] = []  # the structures hold addresses only
        layers = (_Layer * config.n_layer)()
        for packed, layer in zip(layers, weights.layers, strict=True):
            packed.attn_norm, packed.ff_norm = map(self._address, (layer.attn_norm, layer.ff_norm))
            packed.qkv, packed.o, packed.up, packed.down = map(self._packed, (layer.qkv, layer.o, layer.up, layer.down))
        c = config
        self.padded_vocab = _up(len(weights.head), self._panel_rows)
        self._model = _Model(
            *(c.d_model, c.n_layer, c.n_head, c.n_kv_head, c.d_head, c.d_ff, weights.eps),
            *(self._address(weights.embed), self._address(weights.norm), self._packed(weights.head), layers),
        )
        self.address = ctypes.addressof(self._model)

    @property
    def _panel_rows(self) -> int:
        return int(self.functions.step_panel_rows())

    def _address(self, array: Array) -> int:
        """Of an array, which is kept."""
        array = np.ascontiguousarray(array, np.float32)
        self._held.append(array)
        return array.ctypes.data

    def _packed(self, matrix: Matrix) -> _Matrix:
        given, scale = (matrix, None) if isinstance(matrix, np.ndarray) else matrix.integers()
        rows: NDArray[Any] = np.ascontiguousarray(given)
        kind = _kind(rows)
        n_out, n_in = rows.shape
        padded = _up(n_out, self._panel_rows)
        panels = _aligned(padded * n_in * _BYTES[kind], np.uint8)
        self._held.append(panels)
        self.functions.step_pack(rows.ctypes.data, kind, n_out, n_in, panels.ctypes.data)
        scales = None if scale is None else self._address(np.pad(scale, (0, padded - n_out)))
        return _Matrix(panels.ctypes.data, scales, kind, n_out, n_in)


class CompiledStep:
    """A model with the cache of its rows, which a step writes; `NumpyStep` for any number of tokens."""

    def __init__(self, model: PackedModel, weights: NumpyWeights, caches: Sequence[tuple[Array, Array]]) -> None:
        """Put both together.

        Args:
            model: packed from `weights`.
            weights: for their tables of rotations, which grow with the cache.
            caches: keys and values of each layer, (B, K, S, D) float32.
        """
        self._model, self._functions = model, model.functions
        keys, values = zip(*caches, strict=True)
        self._held = [weights.cos, weights.sin, caches]
        row_stride, head_stride = (stride // 4 for stride in keys[0].strides[:2])
        self._cache = _Cache(
            *((ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays)) for arrays in (keys, values)),
            *(row_stride, head_stride, weights.cos.ctypes.data, weights.sin.ctypes.data),
        )
        n_floats = self._functions.step_scratch(model.address, _MOST_TOKENS, keys[0].shape[2])
        self._scratch = _aligned(n_floats * 4, np.float32)
        self._one = np.zeros((3, 1), np.int64)  # id, row, position

    def one(self, token_id: int, position: int, row: int = 0) -> tuple[Array, Array]:
        """Feed a token to one row: the normed last hidden state (C,), and the next token's logits (V,)."""
        self._one[:, 0] = token_id, row, position
        hidden = self._hidden(self._one)
        return hidden[0], self.logits(hidden)[0]

    def several(self, token_ids: NDArray[np.int64], starts: NDArray[np.int64]) -> Array:
        """Feed (B, T) ids to the rows, row i from position starts[i] on: the normed last hidden states, (B, T, C)."""
        n_rows, n_new = token_ids.shape
        rows = np.repeat(np.arange(n_rows), n_new)
        positions = (starts[:, None] + np.arange(n_new)).ravel()
        tokens = np.stack((token_ids.ravel(), rows, positions))
        pieces = [
            self._hidden(np.ascontiguousarray(tokens[:, start : start + _MOST_TOKENS]))
            for start in range(0, tokens.shape[1], _MOST_TOKENS)
        ]
        return np.concatenate(pieces).reshape(n_rows, n_new, -1)

    def logits(self, hidden: Array) -> Array:
        """(N, C) -> (N, V)."""
        hidden = np.ascontiguousarray(hidden)
        logits = np.empty((len(hidden), self._model.padded_vocab), np.float32)
        for start in range(0, len(hidden), _MOST_TOKENS):
            some, place = hidden[start : start + _MOST_TOKENS], logits[start:]
            self._functions.step_logits(
                self._model.address, len(some), some.ctypes.data, self._scratch.ctypes.data, place.ctypes.data
            )
        return logits[:, : self._model.config.vocab_size]

    def _hidden(self, tokens: NDArray[np.int64]) -> Array:
        """Ids, rows and positions, (3, N), to (N, C)."""
        n_tokens = tokens.shape[1]
        hidden = np.empty((n_tokens, self._model.config.d_model), np.float32)
        at = tokens.ctypes.data
        self._functions.step_hidden(
            *(self._model.address, ctypes.addressof(self._cache), n_tokens),
            *(at, at + 8 * n_tokens, at + 16 * n_tokens, self._scratch.ctypes.data, hidden.ctypes.data),
        )
        return hidden


def _kind(rows: NDArray[Any]) -> int:
    """How a matrix is kept; bfloat16 where that loses nothing."""
    if rows.dtype == np.int8:
        return _INT8
    return _FLOAT32 if (rows.view(np.uint32) & 0xFFFF).any() else _BFLOAT16


def _up(n: int, step: int) -> int:
    """The next multiple."""
    return -(-n // step) * step


def _aligned(n_bytes: int, dtype: Any) -> NDArray[Any]:
    """Memory that begins at a line of the processor's cache."""
    memory = np.empty(n_bytes + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + n_bytes].view(dtype)
