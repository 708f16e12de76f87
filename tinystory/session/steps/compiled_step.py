"""Any model of ours in compiled code: its weights and cache, given to the functions of `step.c`.

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
    from tinystory.session.steps.compiling import CompiledCode

__all__ = ["CompiledStep", "PackedModel"]

# As `step.c` numbers them.
_FLOAT32, _BFLOAT16, _INT8 = range(3)
_ACTIVATIONS = ("silu", "gelu_tanh", "gelu")

_BYTES = [DTYPES[name].n_bytes for name in ("float32", "bfloat16", "int8")]
"""Bytes per weight, by kind of matrix."""

_MOST_TOKENS = 64
"""Tokens of one call: what they need in between stays in the processor's cache."""

_LINE = 64
"""Bytes of a line of that cache."""


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
    """A model's weights as `step.c` wants them: each matrix once, in panels; what is small stays where it is."""

    def __init__(self, code: "CompiledCode", config: ModelConfig, weights: ModelWeights) -> None:
        """Pack them."""
        self.functions = code.library
        self.config = config
        self._held: list[Any] = []  # the structures hold addresses only
        self._panel_rows = int(self.functions.step_panel_rows())
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
        """Rows of whole panels."""
        return -(-n_rows // self._panel_rows) * self._panel_rows

    def _address(self, array: Array | None, n_more: int = 0) -> int | None:
        """Of an array, which is kept, with so many zeros after it."""
        if array is None:
            return None
        array = np.ascontiguousarray(np.pad(array, (0, n_more)) if n_more else array, np.float32)
        self._held.append(array)
        return array.ctypes.data

    def _norm(self, norm: Affine) -> _Norm:
        return _Norm(self._address(norm.weight), self._address(norm.bias))

    def _matrix(self, affine: Affine) -> _Matrix:
        matrix = affine.weight
        given, scale = (matrix, None) if isinstance(matrix, np.ndarray) else matrix.integers()
        rows: NDArray[Any] = np.ascontiguousarray(given)
        kind = _kind(rows)
        n_out, n_in = rows.shape
        padded = self._padded(n_out)
        panels = _aligned(padded * n_in * _BYTES[kind], np.uint8)
        self._held.append(panels)
        self.functions.step_pack(rows.ctypes.data, kind, n_out, n_in, panels.ctypes.data)
        scales, biases = (self._address(vector, padded - n_out) for vector in (scale, affine.bias))
        return _Matrix(panels.ctypes.data, scales, biases, kind, n_out, n_in)


class CompiledStep:
    """A model with the cache of its rows, which a step writes."""

    def __init__(self, model: PackedModel, rotations: Rotations | None, caches: Sequence[tuple[Array, Array]]) -> None:
        """Put both together.

        Args:
            model: the weights.
            rotations: None where positions are learned.
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
    return _FLOAT32 if any((row & 0xFFFF).any() for row in rows.view(np.uint32)) else _BFLOAT16


def _aligned(n_bytes: int, dtype: Any) -> NDArray[Any]:
    """Memory that begins at a line of the processor's cache."""
    memory = np.empty(n_bytes + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + n_bytes].view(dtype)
