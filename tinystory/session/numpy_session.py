"""Run a small llama model as a session without torch, since a short story takes less time than importing torch.

The session computes with the same `NumpyStep` as the torch session, so the stories are the same. It reads the weights
directly from the checkpoint. Decoders get NumPy arrays with the few methods of torch that they use.
"""

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinystory.checkpoint import CheckpointHeader
from tinystory.checkpoint.arrays import read_arrays
from tinystory.decoding import Decoder, Session
from tinystory.errors import UsageError
from tinystory.model.config import ModelConfig
from tinystory.session.rows import CachedRows
from tinystory.session.steps.numpy_step import MOST_TOKENS, beats_torch
from tinystory.session.steps.weights import Affine, LayerWeights, ModelWeights, Rotations

if TYPE_CHECKING:
    from tinystory.session.steps.compiled_code import CompiledCode

__all__ = ["Logits", "NumpySession", "suffices"]

_LONGEST_CONTEXT = 4096
"""The longest context of a model; its table of rotations is computed at once."""


def suffices(header: CheckpointHeader, decoder: Decoder, dtype: str, device: str) -> bool:
    """Return whether a story can be written without torch.

    That needs a small llama in float32 on the CPU, and a decoder whose stages all have `takes_arrays`.
    """
    config = header.config
    plain = config is not None and beats_torch(config) and config.rope_scaling is None
    fits = plain and config is not None and config.max_seq_len <= _LONGEST_CONTEXT
    return fits and (dtype, device) == ("float32", "cpu") and all(stage.takes_arrays for stage in decoder.stages)


class Logits(NDArray[np.float32]):
    """Logits (V,) with the methods of a torch tensor that stages with `takes_arrays` use."""

    def numpy(self, *, force: bool = False) -> NDArray[np.float32]:
        """Return the same memory as a plain array."""
        return self.view(np.ndarray)

    def argsort(self, *_: Any, **__: Any) -> NDArray[np.intp]:
        """Return the ids from the smallest logit to the largest, (V,); of equal ones, the lowest id comes first."""
        return self.numpy().argsort(kind="stable")

    def topk(self, k: int) -> "_TopK":
        """Return the k largest values in falling order, (k,)."""
        return _TopK(np.sort(np.partition(self.numpy(), len(self) - k)[len(self) - k :])[::-1])

    def masked_fill(self, mask: NDArray[np.bool_], value: float) -> "Logits":
        """Return a copy with `value` where the mask is true."""
        return np.where(mask, np.float32(value), self).view(Logits)

    def softmax(self, dim: int) -> "Logits":
        """Return the probabilities, (V,)."""
        exps = np.exp(self.numpy() - self.max())
        probs: Logits = (exps / exps.sum()).view(Logits)
        return probs

    def index_fill(self, dim: int, index: Any, value: float) -> "Logits":
        """Return a copy with `value` at the indices."""
        filled = self.copy()
        filled[index] = value
        return filled


class _TopK(NamedTuple):
    values: NDArray[np.float32]


class NumpySession(CachedRows):
    """A `decoding.Session` over NumPy arrays in float32."""

    def __init__(self, header: CheckpointHeader, bos_id: int | None, eos_ids: frozenset[int]) -> None:
        """Read the weights of a checkpoint for which `suffices` is true.

        Raises:
            CheckpointError: weights are not finite, or a file has changed since the header was read.
        """
        assert header.config is not None
        super().__init__(header.config, bos_id, eos_ids, _zeros, uses_numpy=True)
        self._weights = _weights(header.config, read_arrays(header))
        self._tables = _rotations(header.config)

    def open(self, model: str | None = None) -> Session:
        """Return a second, empty session of this model; a stage with `takes_arrays` never opens another model.

        Raises:
            UsageError: another model is named.
        """
        if model is not None:
            raise UsageError(f"this session cannot open another model ({model})")
        twin = copy.copy(self)
        twin._forget()
        return twin

    def _array(self, array: NDArray[Any]) -> Logits:
        return array.view(Logits)

    def compile(self, code: "CompiledCode") -> None:
        """Compile as `CachedRows.compile` does; only the packed matrices stay in memory."""
        super().compile(code)
        self._weights = self._weights._replace(layers=())

    def _model_weights(self) -> ModelWeights:
        return self._weights

    def _rotations(self) -> Rotations:
        return self._tables

    def _forward_many(self, token_ids: list[list[int]], lengths: list[int]) -> NDArray[Any]:
        ids, starts, width = np.array(token_ids), np.array(lengths), max(1, MOST_TOKENS // len(token_ids))
        parts = [
            self._current_step().several(ids[:, start : start + width], starts + start)
            for start in range(0, ids.shape[1], width)
        ]
        return np.concatenate(parts, axis=1)

    def _logits_of_many(self, hidden: NDArray[Any]) -> Logits:
        flat = hidden.reshape(-1, hidden.shape[-1])
        step = self._current_step()
        parts = [step.logits(flat[start : start + MOST_TOKENS]) for start in range(0, len(flat), MOST_TOKENS)]
        return np.concatenate(parts).reshape(*hidden.shape[:-1], -1).view(Logits)


def _zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def _weights(config: ModelConfig, arrays: dict[str, NDArray[np.float32]]) -> ModelWeights:
    """Join the arrays of a llama, given by our parameter names, into `ModelWeights`; arrays of blocks are removed."""

    def joined(block: str, *names: str) -> Affine:
        parts = [arrays.pop(f"{block}.{name}.weight") for name in names]
        return Affine(parts[0] if len(parts) == 1 else np.concatenate(parts))

    parts = ["attn_norm"], ["attn.q", "attn.k", "attn.v"], ["attn.o"], ["ff_norm"], ["ff.gate", "ff.up"], ["ff.down"]
    layers = [LayerWeights(*(joined(f"blocks.{n}", *names) for names in parts)) for n in range(config.n_layer)]
    embed = arrays["embed.weight"]
    head = embed if config.tied_head else arrays["head.weight"]
    return ModelWeights(embed, None, layers, Affine(arrays["norm.weight"]), head, config.norm_eps)


def _rotations(config: ModelConfig) -> Rotations:
    """Compute the rotations of every position of the context."""
    exponents = np.arange(0, config.d_head, 2) / config.d_head
    angles = np.arange(config.max_seq_len)[:, None] * config.rope_theta**-exponents
    sin = np.sin(angles)
    return (
        np.concatenate((np.cos(angles),) * 2, axis=1).astype(np.float32),
        np.concatenate((-sin, sin), axis=1).astype(np.float32),
    )
