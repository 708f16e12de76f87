"""Make a tiny random model of any causal language model of transformers, for `scripts/models/table.py`.

A default config is shrunk by the names of its numbers. The few architectures whose numbers depend on each other in
another way have their own numbers here.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["N_POSITIONS", "VOCAB_SIZE", "save_tiny_model"]

VOCAB_SIZE = 99
N_POSITIONS = 96
N_LAYERS = 6
_WINDOW = 12

_NUMBERS: list[tuple[str, int]] = [
    (r"vocab_size|unpadded_vocab_size|vocab_size_per_layer_input|decoder_vocab_size", VOCAB_SIZE),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions|context_length", N_POSITIONS),
    (r"model_max_length|max_sequence_length", N_POSITIONS),
    (r"original_max_position_embeddings", 32),
    (r"(hidden_size|d_model|n_embd|emb_dim|dim_model|embedding_dim|word_embed_proj_dim|lru_width)", 32),
    (r"(hidden_size_global|embedding_size|input_embedding_size|output_embedding_size|attention_hidden_size)", 32),
    (r"(.*_)?(num_hidden_layers|num_layers)|n_layers?|(encoder|decoder)_layers|num_(encoder|decoder)_layers", N_LAYERS),
    (r"(encoder|decoder|num_encoder|num_decoder|num|swa_num)_attention_heads|n_heads?|num_heads|attention_heads", 4),
    (r"(swa_)?num_key_value_heads|num_kv_heads|num_query_groups", 2),
    (r"(swa_)?head_dim|v_head_dim|qk_nope_head_dim|dim_head|d_head|kv_channels|d_kv|attention_head_size", 8),
    (r"qk_head_dim|index_head_dim", 16),
    (r"qk_rope_head_dim|rotary_dim", 8),
    (r"q_lora_rank|kv_lora_rank|.*_lora_rank|hc_lowrank|laurel_rank|adapter_rank|time_step_rank|mamba_dt_rank", 8),
    (r"(.*_)?(intermediate_size|ffn_dim|ffn_hidden_size|d_ff|dff|dim_ff|d_inner|feed_forward_size)", 64),
    (r"intermediate_size_mlp", 64),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts|num_expert", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts", 2),
    (r"n_group|topk_group|num_expert_group|o_groups", 1),
    (r"sliding_window|sliding_window_size|attention_window_size|local_attention|local_attention_window_len", _WINDOW),
    (r"attention_chunk_size|window_size", _WINDOW),
    (r"index_topk", 8),
    (r"index_n_heads", 16),
    (r"hidden_size_per_layer_input|router_hidden_size", 8),
    (r"linear_num_(key|value)_heads|linear_num_heads", 2),
    (r"linear_(key|value)_head_dim|linear_head_dim", 8),
    (r"mamba_d_state|state_size|ssm_state_size", 8),
    (r"(mamba_)?chunk_size|mamba_chunk_size", 16),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 4),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 16),
    (r"query_pre_attn_scalar|block_size", 16),
    (r"first_k_dense_replace|num_kv_shared_layers|max_window_layers", 2),
    (r"image_size", 32),
    (r"patch_size", 16),
]
_SPECIAL_IDS = re.compile(r".*_(token_id|token_index|token_ids)|vocab_offset|eos_token_id")

_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_DOTS3 = {
    "layer_types": ["sliding_attention", "full_attention"] * (N_LAYERS // 2),
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 8, "swa_kv_lora_rank": 8,
    "swa_head_dim": 16, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8,
    "swa_qk_rope_head_dim": 8,
}  # fmt: skip
_QWEN4 = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16, "split_ngram_parts": 1,
    "indexer_compress_ratio": 4, "ngram_vocab_size_base": 64, "make_ngram_vocab_size_divisible_by": 1,
    "heads_per_ngram": 2,
}  # fmt: skip
_TWO_KINDS = ["linear_attention", "full_attention"] * (N_LAYERS // 2)
_OWN: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA | {"attn_layer_indices": [1, 4]},
    "blenderbot": {"encoder_layers": 2, "decoder_layers": 2},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE},
    },
    "dots3_note": {"text_config": _DOTS3},
    "dots3_note_text": _DOTS3,
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1, "head_dim": 8},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_hidden_layers": 10, "num_kv_shared_layers": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]], "attention_layers": ["global", "local"] * 3},
    "granitemoehybrid": _MAMBA | {"layer_types": _TWO_KINDS},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 3},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"layers_block_type": _TWO_KINDS, "n_groups": 2},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {
        "is_decoder": True, "axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16], "max_position_embeddings": 128,
        "attn_layers": ["local", "local"], "local_attn_chunk_length": 8, "num_buckets": 4,
    },
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "num_heads": 4, "chunk_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "mamba_dt_rank": 4, "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
        "n_mamba_heads": 2, "attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2, "num_key_value_heads": 4,
        "mamba_d_state": 8, "attention_hidden_size": None, "attention_head_dim": None,
    },
}  # fmt: skip
"""Numbers of single architectures, beside those above; a nested dict is for a part of the config."""


def tiny_config(model_type: str) -> Any:
    """Return a config with small numbers.

    Raises:
        Exception: of any kind, if it cannot be built.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    default = config_class().to_dict()
    config = config_class(**_merged(_shrunk(default), _OWN.get(model_type, {})))
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    return config


def save_tiny_model(model_type: str, folder: str) -> None:
    """Save a random model with a few thousand weights.

    Raises:
        Exception: of any kind, if the config or the model cannot be built.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = tiny_config(model_type)
    factory: Any = AutoModelForCausalLM
    model = factory.from_config(config).float().eval()
    _randomise(model)
    model.save_pretrained(folder)
    if type(model.config) not in factory._model_mapping:  # the text part of a model with several; only the whole loads
        config.save_pretrained(folder)


def _shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a config that change, made small; also in the parts of a config."""
    small: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and name.endswith("_config") and name != "per_layer_config":
            small[name] = _shrunk(value) | ({"model_type": value["model_type"]} if "model_type" in value else {})
        elif name == "rope_parameters" or name.startswith("_"):
            continue
        elif type(value) is int and _SPECIAL_IDS.fullmatch(name):
            small[name] = min(value, 2)
        elif type(value) is int and value:
            number = next((number for pattern, number in _NUMBERS if re.fullmatch(pattern, name)), None)
            if number is not None:
                small[name] = min(value, number)
    heads = small.get("num_attention_heads")
    if heads and config.get("num_key_value_heads") == config.get("num_attention_heads"):
        small["num_key_value_heads"] = heads
    return small


def _merged(config: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in own.items():
        if value is None:
            config.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(config.get(name), dict):
            config[name] = _merged(config[name], value)
        else:
            config[name] = value
    return config


@torch.no_grad()
def _randomise(model: Any) -> None:
    """Draw matrices that are large enough for each token to change the logits."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and parameter.is_floating_point() and "A_log" not in name:
            parameter.normal_(0, 0.25)
