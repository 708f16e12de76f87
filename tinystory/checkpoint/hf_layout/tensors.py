"""Translate between the tensors of a Hugging Face file and the parameters of `Transformer`; torch is not imported."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tinystory.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "HEAD", "HfTensor", "embedding_name", "is_known_buffer", "name_in_file", "name_prefix", "pack", "tensor_layout",
    "unpack", "with_embedding",
]  # fmt: skip

T = TypeVar("T")

HEAD = "lm_head.weight"
"""The name of the output head; it is the same with and without a prefix."""

_BUFFERS = {  # constants that old versions of transformers stored with the weights
    "gpt2": re.compile(r"(transformer\.)?h\.\d{1,4}\.attn\.(bias|masked_bias)"),
    "llama": re.compile(r"(model\.)?(layers\.\d{1,4}\.self_attn\.)?rotary_emb\.inv_freq"),
}


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


def name_in_file(full_name: str, prefix: str, config: ModelConfig) -> str:
    """Return the name of a tensor in a file.

    Args:
        full_name: transformers' full name of the tensor.
        prefix: what the tensor names of this file begin with, as from `name_prefix`.
        config: the shape of the model. No family needs it for its names now.
    """
    return full_name if prefix or full_name == HEAD else full_name.split(".", 1)[1]


def embedding_name(config: ModelConfig, names: Collection[str]) -> str:
    """Return the name that the embedding has, or would have, among the tensor names of a file."""
    return name_in_file(next(iter(tensor_layout(config))).name, name_prefix(config, names), config)


def with_embedding(config: ModelConfig, tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the tensors of a file. If it has a tied matrix only as the head, it stands under the embedding's name.

    `save_model` of safetensors keeps one name of a shared tensor, and that may be either.
    """
    name = embedding_name(config, tensors)
    if not config.tied_head or HEAD not in tensors or name in tensors:
        return dict(tensors)
    return {name if key == HEAD else key: value for key, value in tensors.items()}


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
