"""Translate between the config.json of Hugging Face and `ModelConfig`, and read its BOS and EOS ids.

`auto_map`, and every other field that points at code, is ignored.
"""

from collections.abc import Collection, Mapping
from typing import Any

from tinystory.checkpoint.hf_layout.json_fields import count, flag, optional_count, positive, text
from tinystory.errors import CheckpointError
from tinystory.model.config import Activation, ModelConfig, RopeScaling
from tinystory.safe.reading import shown

__all__ = ["from_hf_config", "generation_rules", "missing_sizes", "to_hf_config"]

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


_SIZES: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {
        "vocab_size": (),
        "n_embd": ("hidden_size",),
        "n_layer": ("num_hidden_layers",),
        "n_head": ("num_attention_heads",),
        "n_positions": ("max_position_embeddings", "n_ctx"),
    },
    "llama": {
        name: ()
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    },
}
"""The fields with sizes of tensors, and their other names, by model_type."""


_NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words_ids": [],
    "sequence_bias": [],
    "guidance_scale": 1,
}
"""The fields with which `generate` of transformers changes logits even if it does not sample, and what changes none."""


def missing_sizes(hf_config: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields with sizes that a config.json lacks, so that transformers' defaults count."""
    sizes = _SIZES.get(hf_config.get("model_type", ""), {})
    return [name for name, others in sizes.items() if not any(key in hf_config for key in (name, *others))]


def from_hf_config(hf_config: Mapping[str, Any]) -> ModelConfig | None:
    """Translate the content of a config.json. A field that it lacks has the default of transformers 5.

    Returns:
        The config; or None if the architecture is not GPT-2 or Llama, or a variant that only transformers can run.

    Raises:
        CheckpointError: a field is of the wrong type or out of range.
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
    activation = _ACTIVATIONS.get(text(hf_config, "activation_function", "gelu_new"))
    if (
        activation is None
        or not flag(hf_config, "scale_attn_weights", True)
        or flag(hf_config, "scale_attn_by_inverse_layer_idx", False)
        or flag(hf_config, "add_cross_attention", False)
    ):
        return None
    d_model = count(hf_config, "hidden_size", "n_embd", default=768)
    return ModelConfig.gpt2(
        vocab_size=count(hf_config, "vocab_size", default=50257),
        n_layer=count(hf_config, "num_hidden_layers", "n_layer", default=12),
        n_head=count(hf_config, "num_attention_heads", "n_head", default=12),
        d_model=d_model,
        # transformers does not know n_ctx; where a file has nothing else, it is what the weights have
        max_seq_len=count(hf_config, "max_position_embeddings", "n_positions", "n_ctx", default=1024),
        d_ff=optional_count(hf_config, "n_inner", 4 * d_model),
        tied_head=flag(hf_config, "tie_word_embeddings", True),
        norm_eps=positive(hf_config, "layer_norm_epsilon", 1e-5),
        activation=activation,
    )


def _from_llama(hf_config: Mapping[str, Any]) -> ModelConfig | None:
    activation = _ACTIVATIONS.get(text(hf_config, "hidden_act", "silu"))
    rope = _rope(hf_config)
    if activation is None or rope is None:
        return None
    n_head = count(hf_config, "num_attention_heads", default=32)
    d_model = count(hf_config, "hidden_size", default=4096)
    if d_model % n_head:  # transformers requires this even if head_dim is given
        raise CheckpointError(f"hidden_size {d_model} is not a multiple of num_attention_heads {n_head}")
    attention_bias = flag(hf_config, "attention_bias", False)
    return ModelConfig.llama(
        vocab_size=count(hf_config, "vocab_size", default=32000),
        n_layer=count(hf_config, "num_hidden_layers", default=32),
        n_head=n_head,
        d_model=d_model,
        max_seq_len=_llama_context(hf_config),
        d_ff=count(hf_config, "intermediate_size", default=11008),
        n_kv_head=optional_count(hf_config, "num_key_value_heads", n_head),
        d_head=optional_count(hf_config, "head_dim", d_model // n_head),
        tied_head=flag(hf_config, "tie_word_embeddings", False),
        norm_eps=positive(hf_config, "rms_norm_eps", 1e-6),
        activation=activation,
        attention_bias=attention_bias,
        attention_out_bias=attention_bias,
        ff_bias=flag(hf_config, "mlp_bias", False),
        rope_theta=rope[0],
        rope_scaling=rope[1],
    )


def _llama_context(hf_config: Mapping[str, Any]) -> int:
    return count(hf_config, "max_position_embeddings", default=2048)


def _rope(hf_config: Mapping[str, Any]) -> tuple[float, RopeScaling | None] | None:
    """Return base and scaling of the rotary positions; None for a kind that only transformers can run.

    Version 5 of transformers writes `rope_parameters`, version 4 `rope_theta` and `rope_scaling`. If a file has
    both, transformers uses the older fields, and so does this function.
    """
    parameters = hf_config.get("rope_scaling") or hf_config.get("rope_parameters") or {}
    if not isinstance(parameters, dict):
        raise CheckpointError(f"rope_parameters is {shown(parameters)}; it must be an object")
    theta = positive({**hf_config, **parameters}, "rope_theta", 10_000.0)
    partial = {**hf_config, **parameters}.get("partial_rotary_factor")
    kind = text(parameters, "rope_type", text(parameters, "type", "default"))
    if kind not in ("default", "linear", "llama3") or partial not in (None, 1):
        return None
    if kind == "default":
        return theta, None
    factor = positive(parameters, "factor")
    if kind == "linear":
        return theta, RopeScaling("linear", factor)
    low, high = positive(parameters, "low_freq_factor"), positive(parameters, "high_freq_factor")
    if low >= high:
        raise CheckpointError(f"low_freq_factor is {low}; it must be below high_freq_factor, {high}")
    trained = optional_count(parameters, "original_max_position_embeddings", _llama_context(hf_config))
    trained = optional_count(hf_config, "original_max_position_embeddings", trained)
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


def generation_rules(hf_config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with which transformers would pick other tokens than the likeliest ones, with their values.

    transformers reads them from generation_config.json; older models have them in config.json.

    Args:
        hf_config: the content of config.json.
        generation_config: the content of generation_config.json; empty if there is no such file.
    """
    fields = generation_config or hf_config
    return {
        name: fields[name] for name, neutral in _NEUTRAL.items() if fields.get(name, neutral) not in (None, neutral, {})
    }
