"""A small llama model as a session that needs no torch: the first word comes before torch could be imported.

The very step that the torch session takes for a few tokens, on weights read straight from the checkpoint; so greedy
and sampled stories are the same. Decoders get NumPy arrays that answer to the names torch uses.
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
from tinystory.session.steps.numpy_step import MOST_TOKENS, pays
from tinystory.session.steps.weights import Affine, LayerWeights, ModelWeights, Rotations

if TYPE_CHECKING:
    from tinystory.session.steps.compiling import CompiledCode

__all__ = ["Logits", "NumpySession", "suffices"]

_LONGEST_CONTEXT = 4096
"""Positions up to which the table of rotations is made at once."""


def suffices(header: CheckpointHeader, decoder: Decoder, dtype: str, device: str) -> bool:
    """Whether a story can be written without torch: a small plain model on the CPU, and stages that say they can."""
    config = header.config
    plain = config is not None and pays(config) and config.rope_scaling is None
    fits = plain and config is not None and config.max_seq_len <= _LONGEST_CONTEXT
    return fits and (dtype, device) == ("float32", "cpu") and all(stage.takes_arrays for stage in decoder.stages)


class Logits(NDArray[np.float32]):
    """Logits with the few names of a torch tensor that the stages with `takes_arrays` use."""

    def numpy(self, *, force: bool = False) -> NDArray[np.float32]:
        """The plain array."""
        return self.view(np.ndarray)

    def topk(self, k: int) -> "_TopK":
        """The k largest in falling order, (k,)."""
        return _TopK(np.sort(np.partition(self.numpy(), len(self) - k)[len(self) - k :])[::-1])

    def masked_fill(self, mask: NDArray[np.bool_], value: float) -> "Logits":
        """A copy with `value` where the mask is."""
        return np.where(mask, np.float32(value), self).view(Logits)

    def softmax(self, dim: int) -> "Logits":
        """Probabilities, (V,)."""
        exps = np.exp(self.numpy() - self.max())
        probs: Logits = (exps / exps.sum()).view(Logits)
        return probs

    def index_fill(self, dim: int, index: Any, value: float) -> "Logits":
        """A copy with `value` at the indices."""
        filled = self.copy()
        filled[index] = value
        return filled


class _TopK(NamedTuple):
    values: NDArray[np.float32]


class NumpySession(CachedRows):
    """A `decoding.Session` over NumPy arrays; weights are float32."""

    def __init__(self, header: CheckpointHeader, bos_id: int | None, eos_ids: frozenset[int]) -> None:
        """Read the weights of a checkpoint for which `suffices` holds.

        Raises:
            CheckpointError: they are not finite, or the files changed meanwhile.
        """
        assert header.config is not None
        super().__init__(header.config, bos_id, eos_ids, _zeros, uses_numpy=True)
        self._weights = _weights(header.config, read_arrays(header))
        self._tables = _rotations(header.config)

    def open(self, model: str | None = None) -> Session:
        """A second, empty session of the same model; no stage for which this one suffices opens another."""
        if model is not None:
            raise UsageError(f"this session cannot open another model ({model})")
        twin = copy.copy(self)
        twin._forget()
        return twin

    def _array(self, array: NDArray[Any]) -> Logits:
        return array.view(Logits)

    def compile(self, code: "CompiledCode") -> None:
        """As `CachedRows.compile`; the packed matrices are all that is left."""
        super().compile(code)
        self._weights = self._weights._replace(layers=())

    def _model_weights(self) -> ModelWeights:
        return self._weights

    def _rotations(self) -> Rotations:
        return self._tables

    def _forward_many(self, token_ids: list[list[int]], lengths: list[int]) -> NDArray[Any]:
        ids, starts, width = np.array(token_ids), np.array(lengths), max(1, MOST_TOKENS // len(token_ids))
        pieces = [
            self._current_step().several(ids[:, start : start + width], starts + start)
            for start in range(0, ids.shape[1], width)
        ]
        return np.concatenate(pieces, axis=1)

    def _logits_of_many(self, hidden: NDArray[Any]) -> Logits:
        flat = hidden.reshape(-1, hidden.shape[-1])
        step = self._current_step()
        pieces = [step.logits(flat[start : start + MOST_TOKENS]) for start in range(0, len(flat), MOST_TOKENS)]
        return np.concatenate(pieces).reshape(*hidden.shape[:-1], -1).view(Logits)


def _zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def _weights(config: ModelConfig, arrays: dict[str, NDArray[np.float32]]) -> ModelWeights:
    """The model from arrays by our names."""

    def joined(block: str, *names: str) -> Affine:
        parts = [arrays.pop(f"{block}.{name}.weight") for name in names]
        return Affine(parts[0] if len(parts) == 1 else np.concatenate(parts))

    parts = ["attn_norm"], ["attn.q", "attn.k", "attn.v"], ["attn.o"], ["ff_norm"], ["ff.gate", "ff.up"], ["ff.down"]
    layers = [LayerWeights(*(joined(f"blocks.{n}", *names) for names in parts)) for n in range(config.n_layer)]
    embed = arrays["embed.weight"]
    head = embed if config.tied_head else arrays["head.weight"]
    return ModelWeights(embed, None, layers, Affine(arrays["norm.weight"]), head, config.norm_eps)


def _rotations(config: ModelConfig) -> Rotations:
    """For every position."""
    exponents = np.arange(0, config.d_head, 2) / config.d_head
    angles = np.arange(config.max_seq_len)[:, None] * config.rope_theta**-exponents
    sin = np.sin(angles)
    return (
        np.concatenate((np.cos(angles),) * 2, axis=1).astype(np.float32),
        np.concatenate((-sin, sin), axis=1).astype(np.float32),
    )
