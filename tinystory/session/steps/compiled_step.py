"""Compute a GPT-2 or Llama model in compiled code: hand its weights and its cache to the functions of `step.c`.

Shapes: B rows, T new positions, N tokens, S cached positions, K key/value heads, D d_head, C d_model, V vocab_size.
"""

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinystory.dtypes import DTYPES
from tinystory.model.config import ModelConfig
from tinystory.session.steps.weights import Affine, Array, ModelWeights, Rotations

if TYPE_CHECKING:
    from tinystory.session.steps.compiled_code import CompiledCode

__all__ = ["CompiledStep", "PackedModel"]

# The numbers that `step.c` uses for kinds of matrices and for activations.
_FLOAT32, _BFLOAT16, _INT8 = range(3)
_ACTIVATIONS = ("silu", "gelu_tanh", "gelu")

_WEIGHT_BYTES = [DTYPES[name].n_bytes for name in ("float32", "bfloat16", "int8")]
"""Bytes per weight, by kind of matrix."""

_MOST_TOKENS = 64
"""The most tokens of one call. Their intermediate results still fit into the processor's cache."""

_LINE = 64
"""Bytes of one line of the processor's cache."""


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("panels", "scale", "bias")),
        *((name, ctypes.c_int64) for name in ("kind", "n_out", "n_in")),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias")]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in ("attn_norm", "ff_norm")),
        *((name, _Matrix) for name in ("qkv", "o", "up", "down")),
    ]


_SIZES = ("d_model", "n_layer", "n_head", "n_kv_head", "d_head", "d_ff")


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_SIZES, "gated", "activation")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("embed", "positions")),
        ("norm", _Norm),
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
    """A model's weights in the layout of `step.c`: its matrices are copied into panels, small arrays stay in place."""

    def __init__(self, code: "CompiledCode", config: ModelConfig, weights: ModelWeights) -> None:
        """Pack the weights of a model.

        Args:
            code: the compiled functions.
            config: the shape of the model.
            weights: float32, or int8 for the matrices of the blocks; they are not needed afterwards.
        """
        self.functions = code
        self.config = config
        self._held: list[Any] = []  # keeps the arrays alive, since the structures have only their addresses
        self._panel_rows = int(self.functions.panel_rows())
        layers = (_Layer * config.n_layer)()
        for packed, layer in zip(layers, weights.layers, strict=True):
            packed.attn_norm, packed.ff_norm = map(self._norm, (layer.attn_norm, layer.ff_norm))
            packed.qkv, packed.o, packed.up, packed.down = map(self._matrix, (layer.qkv, layer.o, layer.up, layer.down))
        self.padded_vocab = self._padded(len(weights.head))
        self._model = _Model(
            *(getattr(config, size) for size in _SIZES),
            *(config.family == "llama", _ACTIVATIONS.index(config.activation), weights.eps),
            *(self._address(weights.embed), self._address(weights.positions)),
            *(self._norm(weights.norm), self._matrix(Affine(weights.head)), layers),
        )
        self.address = ctypes.addressof(self._model)

    def _padded(self, n_rows: int) -> int:
        """Round a number of rows up to whole panels."""
        return -(-n_rows // self._panel_rows) * self._panel_rows

    def _address(self, array: Array | None, n_more: int = 0) -> int | None:
        """Return the address of an array in float32, followed by `n_more` zeros; the array is kept alive."""
        if array is None:
            return None
        array = np.ascontiguousarray(np.pad(array, (0, n_more)) if n_more else array, np.float32)
        self._held.append(array)
        return array.ctypes.data

    def _norm(self, norm: Affine) -> _Norm:
        return _Norm(self._address(norm.weight), self._address(norm.bias))

    def _matrix(self, affine: Affine) -> _Matrix:
        matrix = affine.weight
        values, scale = (matrix, None) if isinstance(matrix, np.ndarray) else matrix.integers()
        rows: NDArray[Any] = np.ascontiguousarray(values)
        kind = _kind(rows)
        n_out, n_in = rows.shape
        padded = self._padded(n_out)
        panels = _aligned(padded * n_in * _WEIGHT_BYTES[kind], np.uint8)
        self._held.append(panels)
        self.functions.pack(rows.ctypes.data, kind, n_out, n_in, panels.ctypes.data)
        scales, biases = (self._address(vector, padded - n_out) for vector in (scale, affine.bias))
        return _Matrix(panels.ctypes.data, scales, biases, kind, n_out, n_in)


class CompiledStep:
    """A model together with the cache of its rows; each step writes into the cache."""

    def __init__(self, model: PackedModel, rotations: Rotations | None, caches: Sequence[tuple[Array, Array]]) -> None:
        """Put model and cache together.

        Args:
            model: the packed weights.
            rotations: the tables for at least as many positions as the cache has; None for learned positions.
            caches: keys and values of each layer, (B, K, S, D) float32.
        """
        self._model, self._functions = model, model.functions
        keys, values = zip(*caches, strict=True)
        self._held = rotations, caches
        row_stride, head_stride = (stride // 4 for stride in keys[0].strides[:2])
        self._cache = _Cache(
            *((ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays)) for arrays in (keys, values)),
            *(row_stride, head_stride),
            *(table.ctypes.data for table in rotations or ()),
        )
        n_floats = self._functions.scratch(model.address, _MOST_TOKENS, keys[0].shape[2])
        self._scratch = _aligned(n_floats * 4, np.float32)
        self._one = np.zeros((3, 1), np.int64)  # id, row, position

    def one(self, token_id: int, position: int, row: int = 0) -> tuple[Array, Array]:
        """Feed one token to one row; return the normed last hidden state (C,) and the logits of the next token (V,)."""
        self._one[:, 0] = token_id, row, position
        hidden = self._hidden(self._one)
        return hidden[0], self.logits(hidden)[0]

    def several(self, token_ids: NDArray[np.int64], starts: NDArray[np.int64]) -> Array:
        """Feed (B, T) ids, row i from position starts[i] on; return the normed last hidden states (B, T, C)."""
        n_rows, n_new = token_ids.shape
        rows = np.repeat(np.arange(n_rows), n_new)
        positions = (starts[:, None] + np.arange(n_new)).ravel()
        tokens = np.stack((token_ids.ravel(), rows, positions))
        parts = [
            self._hidden(np.ascontiguousarray(tokens[:, start : start + _MOST_TOKENS]))
            for start in range(0, tokens.shape[1], _MOST_TOKENS)
        ]
        return np.concatenate(parts).reshape(n_rows, n_new, -1)

    def logits(self, hidden: Array) -> Array:
        """Compute logits from hidden states: (N, C) -> (N, V)."""
        hidden = np.ascontiguousarray(hidden)
        logits = np.empty((len(hidden), self._model.padded_vocab), np.float32)
        for start in range(0, len(hidden), _MOST_TOKENS):
            part, target = hidden[start : start + _MOST_TOKENS], logits[start:]
            self._functions.logits(
                self._model.address, len(part), part.ctypes.data, self._scratch.ctypes.data, target.ctypes.data
            )
        return logits[:, : self._model.config.vocab_size]

    def _hidden(self, tokens: NDArray[np.int64]) -> Array:
        """Feed at most `_MOST_TOKENS` tokens: ids, rows and positions (3, N) -> normed last hidden states (N, C)."""
        n_tokens = tokens.shape[1]
        hidden = np.empty((n_tokens, self._model.config.d_model), np.float32)
        ids = tokens.ctypes.data
        rows, positions = ids + 8 * n_tokens, ids + 16 * n_tokens  # the three rows of int64 follow each other
        self._functions.hidden(
            *(self._model.address, ctypes.addressof(self._cache), n_tokens),
            *(ids, rows, positions, self._scratch.ctypes.data, hidden.ctypes.data),
        )
        return hidden


def _kind(rows: NDArray[Any]) -> int:
    """Return the kind of a matrix; float32 becomes bfloat16 if all its values are exact in that format."""
    if rows.dtype == np.int8:
        return _INT8
    return _FLOAT32 if np.bitwise_or.reduce(rows.view(np.uint32), axis=None) & 0xFFFF else _BFLOAT16


def _aligned(n_bytes: int, dtype: Any) -> NDArray[Any]:
    """Return `n_bytes` of memory that begins at a line of the processor's cache."""
    memory = np.empty(n_bytes + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + n_bytes].view(dtype)
