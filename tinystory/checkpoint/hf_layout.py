"""Translate between Hugging Face and us: config.json and `ModelConfig`, its tensors and our parameters.

No other module knows the names of Hugging Face. Importing this one does not import torch. `auto_map`, and every other
field that points at code, is ignored.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinystory.errors import CheckpointError
from tinystory.model.config import Activation, ModelConfig, RopeScaling
from tinystory.safe.reading import shown

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "HEAD", "HfTensor", "from_hf_config", "is_known_buffer", "name_prefix", "pack", "tensor_layout", "to_hf_config",
    "unpack",
]  # fmt: skip

HEAD = "lm_head.weight"
"""The name of the output head; it is the same with and without a prefix."""

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
_NO_DEFAULT = -1
_BUFFERS = {  # constants that old versions of transformers stored with the weights
    "gpt2": re.compile(r"(transformer\.)?h\.\d{1,4}\.attn\.(bias|masked_bias)"),
    "llama": re.compile(r"(model\.)?(layers\.\d{1,4}\.self_attn\.)?rotary_emb\.inv_freq"),
}


# --- config.json ---


def from_hf_config(hf_config: Mapping[str, Any]) -> ModelConfig | None:
    """Translate the content of a config.json.

    Returns:
        The config; or None if the architecture is not GPT-2 or Llama, or a variant that only transformers can run.

    Raises:
        CheckpointError: a field is missing, of the wrong type or out of range.
    """
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"config.json: model_type is {shown(model_type)}; it must name an architecture, like 'llama'"
        )
    if hf_config.get("quantization_config") is not None:
        return None
    read = {"gpt2": _from_gpt2, "llama": _from_llama}.get(model_type)
    try:
        return read(hf_config) if read else None
    except CheckpointError as error:
        raise CheckpointError(f"config.json: {error}") from error


def _from_gpt2(hf_config: Mapping[str, Any]) -> ModelConfig | None:
    activation = _ACTIVATIONS.get(_text(hf_config, "activation_function", "gelu_new"))
    if (
        activation is None
        or not _flag(hf_config, "scale_attn_weights", True)
        or _flag(hf_config, "scale_attn_by_inverse_layer_idx", False)
        or _flag(hf_config, "add_cross_attention", False)
    ):
        return None
    d_model = _count(hf_config, "n_embd", "hidden_size")
    return ModelConfig.gpt2(
        vocab_size=_count(hf_config, "vocab_size"),
        n_layer=_count(hf_config, "n_layer", "num_hidden_layers"),
        n_head=_count(hf_config, "n_head", "num_attention_heads"),
        d_model=d_model,
        max_seq_len=_count(hf_config, "n_positions", "max_position_embeddings"),
        d_ff=_count(hf_config, "n_inner", default=4 * d_model),
        tied_head=_flag(hf_config, "tie_word_embeddings", True),
        norm_eps=_positive(hf_config, "layer_norm_epsilon", 1e-5),
        activation=activation,
    )


def _from_llama(hf_config: Mapping[str, Any]) -> ModelConfig | None:
    activation = _ACTIVATIONS.get(_text(hf_config, "hidden_act", "silu"))
    rope = _rope(hf_config)
    if activation is None or rope is None:
        return None
    n_head, d_model = _count(hf_config, "num_attention_heads"), _count(hf_config, "hidden_size")
    if d_model % n_head:  # transformers requires this even if head_dim is given
        raise CheckpointError(f"hidden_size {d_model} is not a multiple of num_attention_heads {n_head}")
    attention_bias = _flag(hf_config, "attention_bias", False)
    return ModelConfig.llama(
        vocab_size=_count(hf_config, "vocab_size"),
        n_layer=_count(hf_config, "num_hidden_layers"),
        n_head=n_head,
        d_model=d_model,
        max_seq_len=_count(hf_config, "max_position_embeddings"),
        d_ff=_count(hf_config, "intermediate_size"),
        n_kv_head=_count(hf_config, "num_key_value_heads", default=n_head),
        d_head=_count(hf_config, "head_dim", default=d_model // n_head),
        tied_head=_flag(hf_config, "tie_word_embeddings", False),
        norm_eps=_positive(hf_config, "rms_norm_eps", 1e-6),
        activation=activation,
        attention_bias=attention_bias,
        attention_out_bias=attention_bias,
        ff_bias=_flag(hf_config, "mlp_bias", False),
        rope_theta=rope[0],
        rope_scaling=rope[1],
    )


def _rope(hf_config: Mapping[str, Any]) -> tuple[float, RopeScaling | None] | None:
    """Return base and scaling of the rotary positions; None for a kind that only transformers can run.

    Version 5 of transformers writes `rope_parameters`, version 4 `rope_theta` and `rope_scaling`. If a file has
    both, transformers uses the older fields, and so does this function.
    """
    parameters = hf_config.get("rope_scaling") or hf_config.get("rope_parameters") or {}
    if not isinstance(parameters, dict):
        raise CheckpointError(f"rope_parameters is {shown(parameters)}; it must be an object")
    theta = _positive({**hf_config, **parameters}, "rope_theta", 10_000.0)
    partial = {**hf_config, **parameters}.get("partial_rotary_factor")
    kind = _text(parameters, "rope_type", _text(parameters, "type", "default"))
    if kind not in ("default", "linear", "llama3") or partial not in (None, 1):
        return None
    if kind == "default":
        return theta, None
    factor = _positive(parameters, "factor")
    if kind == "linear":
        return theta, RopeScaling("linear", factor)
    low, high = _positive(parameters, "low_freq_factor"), _positive(parameters, "high_freq_factor")
    if low >= high:
        raise CheckpointError(f"low_freq_factor is {low}; it must be below high_freq_factor, {high}")
    trained = _count(hf_config, "max_position_embeddings")
    trained = _count(parameters, "original_max_position_embeddings", default=trained)
    trained = _count(hf_config, "original_max_position_embeddings", default=trained)
    return theta, RopeScaling("llama3", factor, low, high, trained)


def to_hf_config(config: ModelConfig, dtype: str, bos_id: int | None, eos_ids: Collection[int]) -> dict[str, Any]:
    """Return the content of config.json for transformers 4 and 5, and for other programs that read it.

    Args:
        config: the shape of the model.
        dtype: the dtype of the weights on disk.
        bos_id: the token that a story begins with.
        eos_ids: the tokens that end a story.

    Raises:
        CheckpointError: Hugging Face's architecture of this family cannot express the config.
    """
    gpt2 = config.family == "gpt2"
    biases = (config.attention_bias, config.attention_out_bias, config.ff_bias)
    if gpt2 and not all(biases):
        raise CheckpointError("Hugging Face's gpt2 has biases everywhere; set all three bias fields or use llama")
    if not gpt2 and config.attention_bias != config.attention_out_bias:
        raise CheckpointError("Hugging Face's llama has one attention_bias; set both attention biases or neither")
    if config.d_model % config.n_head:
        raise CheckpointError(f"d_model {config.d_model} is not a multiple of n_head {config.n_head}")
    shared: dict[str, Any] = {
        "model_type": config.family,
        "architectures": ["GPT2LMHeadModel" if gpt2 else "LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": bos_id,
        "eos_token_id": _one_or_list(eos_ids),
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    return shared | (_gpt2_fields(config) if gpt2 else _llama_fields(config))


def _gpt2_fields(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_embd": config.d_model,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.d_ff,
        "n_positions": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _llama_fields(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    stretch: dict[str, Any] = {"rope_type": scaling.kind if scaling else "default"}
    if scaling:
        stretch["factor"] = scaling.factor
    if scaling and scaling.kind == "llama3":
        stretch["low_freq_factor"] = scaling.low_freq_factor
        stretch["high_freq_factor"] = scaling.high_freq_factor
        stretch["original_max_position_embeddings"] = scaling.original_max_seq_len
    return {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.d_head,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": {"gelu_tanh": "gelu_pytorch_tanh"}.get(config.activation, config.activation),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.ff_bias,
        "rope_parameters": {"rope_theta": config.rope_theta, **stretch},
        "rope_theta": config.rope_theta,
        "rope_scaling": stretch if scaling else None,
    }


def _one_or_list(ids: Collection[int]) -> int | list[int] | None:
    return sorted(ids) if len(ids) > 1 else next(iter(ids), None)


# --- tensors ---


@dataclass(frozen=True)
class HfTensor:
    """One tensor of a Hugging Face file, and the parameters of `Transformer` in it.

    Attributes:
        name: transformers' full name of the tensor.
        shape: the shape in the file.
        parameters: our names of the parameters. Several parameters are joined along the last axis of the file's tensor.
        transposed: the file has (in, out) and we have (out, in), as in the Conv1D of GPT-2.
    """

    name: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    transposed: bool = False


def tensor_layout(config: ModelConfig) -> list[HfTensor]:
    """Return every tensor of a checkpoint, the embedding first; a tied head is left out."""
    layout = list(_gpt2_layout(config) if config.family == "gpt2" else _llama_layout(config))
    if not config.tied_head:
        layout.append(HfTensor(HEAD, (config.vocab_size, config.d_model), ("head.weight",)))
    return layout


def _gpt2_layout(config: ModelConfig) -> Iterable[HfTensor]:
    c, d_ff = config.d_model, config.d_ff
    yield HfTensor("transformer.wte.weight", (config.vocab_size, c), ("embed.weight",))
    yield HfTensor("transformer.wpe.weight", (config.max_seq_len, c), ("pos_embed.weight",))
    projections = {
        "attn.c_attn": (c, 3 * c, ("attn.q", "attn.k", "attn.v")),
        "attn.c_proj": (c, c, ("attn.o",)),
        "mlp.c_fc": (c, d_ff, ("ff.up",)),
        "mlp.c_proj": (d_ff, c, ("ff.down",)),
    }
    for n in range(config.n_layer):
        for hf_name, our_name in (("ln_1", "attn_norm"), ("ln_2", "ff_norm")):
            for part in ("weight", "bias"):
                yield HfTensor(f"transformer.h.{n}.{hf_name}.{part}", (c,), (f"blocks.{n}.{our_name}.{part}",))
        for hf_name, (n_in, n_out, our_names) in projections.items():
            name = f"transformer.h.{n}.{hf_name}"
            weights, biases = (tuple(f"blocks.{n}.{ours}.{part}" for ours in our_names) for part in ("weight", "bias"))
            yield HfTensor(f"{name}.weight", (n_in, n_out), weights, transposed=True)
            yield HfTensor(f"{name}.bias", (n_out,), biases)
    for part in ("weight", "bias"):
        yield HfTensor(f"transformer.ln_f.{part}", (c,), (f"norm.{part}",))


def _llama_layout(config: ModelConfig) -> Iterable[HfTensor]:
    c, d_q, d_kv = config.d_model, config.n_head * config.d_head, config.n_kv_head * config.d_head
    yield HfTensor("model.embed_tokens.weight", (config.vocab_size, c), ("embed.weight",))
    projections = {
        "self_attn.q_proj": (d_q, c, "attn.q", config.attention_bias),
        "self_attn.k_proj": (d_kv, c, "attn.k", config.attention_bias),
        "self_attn.v_proj": (d_kv, c, "attn.v", config.attention_bias),
        "self_attn.o_proj": (c, d_q, "attn.o", config.attention_out_bias),
        "mlp.gate_proj": (config.d_ff, c, "ff.gate", config.ff_bias),
        "mlp.up_proj": (config.d_ff, c, "ff.up", config.ff_bias),
        "mlp.down_proj": (c, config.d_ff, "ff.down", config.ff_bias),
    }
    for n in range(config.n_layer):
        for hf_name, our_name in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ff_norm")):
            yield HfTensor(f"model.layers.{n}.{hf_name}.weight", (c,), (f"blocks.{n}.{our_name}.weight",))
        for hf_name, (n_out, n_in, our_name, bias) in projections.items():
            name = f"model.layers.{n}.{hf_name}"
            yield HfTensor(f"{name}.weight", (n_out, n_in), (f"blocks.{n}.{our_name}.weight",))
            if bias:
                yield HfTensor(f"{name}.bias", (n_out,), (f"blocks.{n}.{our_name}.bias",))
    yield HfTensor("model.norm.weight", (c,), ("norm.weight",))


def name_prefix(config: ModelConfig, names: Collection[str]) -> str:
    """Return the prefix of a file's tensor names: "transformer.", "model.", or "" in a model saved without head."""
    prefix = "transformer." if config.family == "gpt2" else "model."
    return prefix if any(name.startswith(prefix) for name in names) else ""


def is_known_buffer(config: ModelConfig, name: str) -> bool:
    """Return whether a tensor is a constant that some files have: a causal mask, or rotary frequencies."""
    return _BUFFERS[config.family].fullmatch(name) is not None


def unpack(layout: HfTensor, tensor: "Tensor") -> "dict[str, Tensor]":
    """Split one tensor of a file into our parameters by name: contiguous, and with memory of their own if fused."""
    parts = tensor.chunk(len(layout.parameters), dim=-1)
    if layout.transposed:
        parts = tuple(part.t().contiguous() for part in parts)
    elif len(parts) > 1:
        parts = tuple(part.clone() for part in parts)
    return dict(zip(layout.parameters, parts, strict=True))


def pack(layout: HfTensor, parameters: "Mapping[str, Tensor]") -> "Tensor":
    """Join our parameters into one contiguous tensor of a file: the inverse of `unpack`."""
    import torch

    parts = [parameters[name].t() if layout.transposed else parameters[name] for name in layout.parameters]
    return (torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]).contiguous()


# --- single fields ---


def _count(fields: Mapping[str, Any], *keys: str, default: int = _NO_DEFAULT) -> int:
    """Return the value of the first of `keys` that has one; it must be a positive integer below 2^31."""
    key = next((key for key in keys if fields.get(key) is not None), None)
    if key is None:
        if default == _NO_DEFAULT:
            raise CheckpointError(f"{keys[0]} is missing; it must be an integer from 1")
        return default
    value = fields[key]
    if type(value) is not int or not 1 <= value < 2**31:
        raise CheckpointError(f"{key} is {shown(value)}; it must be an integer from 1 to {2**31 - 1}")
    return value


def _positive(fields: Mapping[str, Any], key: str, default: float = _NO_DEFAULT) -> float:
    value = fields.get(key)
    if value is None:
        if default == _NO_DEFAULT:
            raise CheckpointError(f"{key} is missing; it must be a positive number")
        return default
    if type(value) not in (int, float) or not 0 < value < 1e12:
        raise CheckpointError(f"{key} is {shown(value)}; it must be a number above 0 and below 1e12")
    return float(value)


def _flag(fields: Mapping[str, Any], key: str, default: bool) -> bool:
    value = default if fields.get(key) is None else fields[key]
    if not isinstance(value, bool):
        raise CheckpointError(f"{key} is {shown(value)}; it must be true or false")
    return value


def _text(fields: Mapping[str, Any], key: str, default: str) -> str:
    value = default if fields.get(key) is None else fields[key]
    if not isinstance(value, str):
        raise CheckpointError(f"{key} is {shown(value)}; it must be a string")
    return value
