"""Read the config of a model from the metadata of its GGUF file, and refuse variants that are not known here."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinystory.checkpoint.formats.gguf_header import GgufHeader
from tinystory.checkpoint.formats.gguf_values import read_values
from tinystory.errors import CheckpointError
from tinystory.model.config import ModelConfig, RopeScaling
from tinystory.safe.reading import open_regular, shown

__all__ = ["ROPE_FACTORS", "read_config", "rope_factors"]

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor that says how Llama 3 stretches its rotary positions; (D / 2,)."""

_ARCHITECTURES = ("llama", "gpt2")
_LLAMA3_CONTEXT = 8192
_BLOCK_BYTES = 2**20


def read_config(header: GgufHeader) -> ModelConfig:
    """Return the config of a model; the shapes of its tensors are not checked, except the embedding's.

    Raises:
        CheckpointError: the architecture or a variant of it is not known here, or a number is missing or impossible.
    """
    fields = header.fields
    if _number(fields, "split.count", 1) > 1:
        raise CheckpointError("one part of a divided model; join the parts first (llama-gguf-split --merge)")
    name = fields.get("general.architecture")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise CheckpointError(
            f"the architecture {shown(name)} is not known here; GGUF files of {' and '.join(_ARCHITECTURES)} are"
        )
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError("there is no matrix token_embd.weight")
    shared: dict[str, Any] = {
        "vocab_size": embedding.shape[0],
        "n_layer": _count(fields, f"{name}.block_count"),
        "n_head": _count(fields, f"{name}.attention.head_count"),
        "d_model": _count(fields, f"{name}.embedding_length"),
        "max_seq_len": _count(fields, f"{name}.context_length"),
        "d_ff": _count(fields, f"{name}.feed_forward_length"),
        "tied_head": _is_tied(header),
    }
    return _gpt2_config(fields, shared) if name == "gpt2" else _llama_config(header, shared)


def _is_tied(header: GgufHeader) -> bool:
    """Return whether the head is the embedding: not in the file, or there a second time in the same bytes."""
    head, embedding = header.tensors.get("output.weight"), header.tensors["token_embd.weight"]
    if head is None:
        return True
    if (head.storage, head.shape) != (embedding.storage, embedding.shape):
        return False
    with open_regular(header.path, raises=CheckpointError) as file:
        for done in range(0, head.n_bytes, _BLOCK_BYTES):
            blocks = []
            for tensor in (head, embedding):
                file.seek(tensor.start + done)
                blocks.append(file.read(min(_BLOCK_BYTES, tensor.n_bytes - done)))
            if blocks[0] != blocks[1]:
                return False
    return True


def _gpt2_config(fields: Mapping[str, Any], shared: dict[str, Any]) -> ModelConfig:
    return ModelConfig.gpt2(**shared, norm_eps=_number(fields, "gpt2.attention.layer_norm_epsilon"))


def _llama_config(header: GgufHeader, shared: dict[str, Any]) -> ModelConfig:
    fields, n_head, d_model = header.fields, shared["n_head"], shared["d_model"]
    if _number(fields, "llama.expert_count", 0):
        raise CheckpointError("a mixture of experts, which is not known here")
    if fields.get("llama.attention.causal", True) is not True:
        raise CheckpointError("its attention is not causal, which is not known here")
    d_head = _count(fields, "llama.attention.key_length", d_model // n_head)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if _count(fields, key, d_head) != d_head:
            raise CheckpointError(f"{key} is {fields[key]}, but a head has {d_head} columns; this is not known here")
    scale = _number(fields, "llama.attention.scale", 0)
    if scale and not math.isclose(scale, d_head**-0.5, rel_tol=1e-5):
        raise CheckpointError(f"llama.attention.scale is {scale}, which is not known here")
    theta = float(_number(fields, "llama.rope.freq_base", 10_000))
    if not 1e-6 <= theta <= 1e12:
        raise CheckpointError(f"llama.rope.freq_base is {theta}; it must be a positive number")
    return ModelConfig.llama(
        **shared,
        n_kv_head=_count(fields, "llama.attention.head_count_kv", n_head),
        d_head=d_head,
        norm_eps=_number(fields, "llama.attention.layer_norm_rms_epsilon"),
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        attention_out_bias="blk.0.attn_output.bias" in header.tensors,
        ff_bias="blk.0.ffn_up.bias" in header.tensors,
        rope_theta=theta,
        rope_scaling=_rope_scaling(header, theta, d_head),
    )


def _rope_scaling(header: GgufHeader, theta: float, d_head: int) -> RopeScaling | None:
    """Return how the rotary positions are stretched: by one factor in the metadata, or by a tensor of factors."""
    fields, factors = header.fields, header.tensors.get(ROPE_FACTORS)
    factor = _number(fields, "llama.rope.scaling.factor", _number(fields, "llama.rope.scale_linear", 1))
    kind = fields.get("llama.rope.scaling.type", "none" if factor == 1 else "linear")
    if kind not in ("none", "linear"):
        raise CheckpointError(f"llama.rope.scaling.type is {shown(kind)}; none and linear are known here")
    if kind == "none" or factor == 1:
        factor = 1
    if not 1 <= factor <= 1e6:
        raise CheckpointError(f"the rotary positions are stretched by {factor}; it must be a number from 1")
    if factors is None:
        return None if factor == 1 else RopeScaling("linear", float(factor))
    if factor != 1 or factors.shape != (d_head // 2,) or factors.storage.name != "F32":
        raise CheckpointError(f"{ROPE_FACTORS} is not a row of {d_head // 2} F32 factors beside no other stretching")
    context = _count(fields, "llama.rope.scaling.original_context_length", _LLAMA3_CONTEXT)
    with open_regular(header.path, raises=CheckpointError) as file:
        values = read_values(file, factors).astype(np.float64)
    return _fitted_scaling(values, theta, d_head, context)


def _fitted_scaling(factors: NDArray[np.float64], theta: float, d_head: int, context: int) -> RopeScaling:
    """Return Llama 3's rule that gives these factors (D / 2,); a file has the factors, but not the rule.

    Raises:
        CheckpointError: no such rule does.
    """
    if not (np.isfinite(factors).all() and 1 < factors.max() <= 1e6 and factors.min() > 0.5):
        raise CheckpointError(f"{ROPE_FACTORS} has a factor that Llama 3 cannot have; not known here")
    largest = float(str(np.float32(factors.max())))
    blend = (1 / factors - 1 / largest) / (1 - 1 / largest)  # 1: as before, 0: stretched fully
    rotations = _rotations(context, theta, d_head)
    candidates = [(1.0, 4.0)]
    between = np.flatnonzero((blend > 1e-3) & (blend < 1 - 1e-3))
    if len(between) and rotations[between[0]] > rotations[between[-1]]:  # there, blend is a line over the rotations
        first, last = between[0], between[-1]
        slope = (blend[first] - blend[last]) / (rotations[first] - rotations[last])
        low = rotations[last] - blend[last] / slope if slope > 0 else 0
        if low > 0:
            candidates.append((round(low, 4), round(low + 1 / slope, 4)))
    for low, high in candidates:
        if not 0 < low < high:
            continue
        scaling = RopeScaling("llama3", largest, float(low), float(high), context)
        if np.allclose(rope_factors(scaling, theta, d_head), factors, rtol=1e-5, atol=0):
            return scaling
    raise CheckpointError(f"{ROPE_FACTORS} does not stretch the rotary positions as Llama 3 does; not known here")


def rope_factors(scaling: RopeScaling, theta: float, d_head: int) -> NDArray[np.float64]:
    """Return by what Llama 3 divides each rotary frequency; (D / 2,)."""
    rotations = _rotations(scaling.original_max_seq_len, theta, d_head)
    blend = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clip(0, 1)
    return np.asarray(1 / (blend + (1 - blend) / scaling.factor))


def _rotations(context: int, theta: float, d_head: int) -> NDArray[np.float64]:
    """Return how often each rotary frequency turns within a context; (D / 2,)."""
    return np.asarray(context * theta ** -(np.arange(0, d_head, 2) / d_head) / (2 * math.pi))


def _count(fields: Mapping[str, Any], key: str, default: int = 0) -> int:
    value = fields.get(key, default or None)
    if type(value) is not int or not 1 <= value < 2**31:
        problem = "is missing" if value is None else f"is {shown(value)}"
        raise CheckpointError(f"{key} {problem}; it must be a whole number from 1")
    return value


def _number(fields: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = fields.get(key, default)
    if type(value) not in (int, float) or not math.isfinite(value):
        problem = "is missing" if value is None else f"is {shown(value)}"
        raise CheckpointError(f"{key} {problem}; it must be a number")
    return value  # type: ignore[no-any-return]
