"""Turn a GGUF file of llama.cpp into a checkpoint directory, for the architectures `llama` and `gpt2`.

The header is checked first (`gguf_header`), then the config, the shapes and the tokenizer. The weights are read last.
llama.cpp turns adjacent pairs of a head for rotary positions and Hugging Face turns its two halves, so the rows of q
and k change places. Quantised weights need the package `gguf`; F32, F16 and BF16 do not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystory.checkpoint.formats.gguf_config import ROPE_FACTORS, read_config
from tinystory.checkpoint.formats.gguf_header import GgufHeader, read_gguf_header
from tinystory.checkpoint.formats.gguf_tokenizer import GgufTokenizer, read_tokenizer
from tinystory.checkpoint.formats.gguf_values import INSTALL_HINT, PLAIN_TYPES, has_gguf_package, read_values
from tinystory.checkpoint.load import check_memory, meta_model
from tinystory.checkpoint.save import save_checkpoint
from tinystory.errors import CheckpointError
from tinystory.model.config import ModelConfig
from tinystory.safe.reading import open_regular, parse_json_object, shown

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.model.transformer import Transformer

__all__ = [
    "GgufModel", "GgufPart", "halves_from_pairs", "import_gguf", "pairs_from_halves", "read_gguf", "tensor_parts",
]  # fmt: skip

_MAX_PROVENANCE = 2**20


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file that was checked and can be imported; its weights have not been read yet."""

    header: GgufHeader
    config: ModelConfig
    tokenizer: GgufTokenizer


@dataclass(frozen=True)
class GgufPart:
    """One tensor of a GGUF file, and the parameters of `Transformer` in it, one below the other.

    Attributes:
        name: llama.cpp's name.
        shape: rows first.
        parameters: our names.
        n_head: number of heads whose rows llama.cpp stores in another order; 0 if it keeps the order.
    """

    name: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    n_head: int = 0


def import_gguf(path: Path, out: Path) -> None:
    """Turn a GGUF file into a checkpoint directory, in the smallest dtype that holds all its weights exactly.

    Args:
        path: a model of the architecture llama or gpt2.
        out: the directory to make.

    Raises:
        CheckpointError: the file is damaged, of another kind, or needs the package `gguf`.
        UsageError: `out` holds other things than a checkpoint.
        TinystoryError: not enough memory, or `out` cannot be written.
    """
    source = read_gguf(path)
    model = _read_model(source)
    save_checkpoint(
        out,
        model,
        source.tokenizer.json,
        bos_id=source.tokenizer.bos_id,
        eos_ids=source.tokenizer.eos_ids,
        dtype=_exact_dtype(model),
        provenance=_provenance(source.header),
    )


def read_gguf(path: Path) -> GgufModel:
    """Read everything but the weights of a GGUF file, and check that they can be imported; torch is not needed.

    Raises:
        CheckpointError: the file is damaged, or its architecture, a variant of it, its tokenizer or a storage type is
            not known here.
    """
    header = read_gguf_header(path)
    try:
        config = read_config(header)
        _check_tensors(header, config)
        tokenizer = read_tokenizer(header.fields, config.vocab_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    quantised = sorted({t.storage.name for t in header.tensors.values()} - set(PLAIN_TYPES))
    if quantised and not has_gguf_package():
        raise CheckpointError(f"{path} has weights in {', '.join(quantised)}; reading them needs {INSTALL_HINT}")
    return GgufModel(header, config, tokenizer)


def _provenance(header: GgufHeader) -> dict[str, Any]:
    """Return the content of tinystory.json; what the file says about its origin goes with it."""
    stored: dict[str, int] = {}
    for tensor in header.tensors.values():
        stored[tensor.storage.name] = stored.get(tensor.storage.name, 0) + 1
    provenance: dict[str, Any] = {
        "imported_from": {"format": f"GGUF version {header.version}", "files": [header.path.name], "tensors": stored}
    }
    for key in ("general.name", "general.license", "general.source.url"):
        if isinstance(value := header.fields.get(key), str):
            provenance["imported_from"][key] = value[:200]
    original = header.fields.get("tinystory.provenance")
    if isinstance(original, str) and len(original) <= _MAX_PROVENANCE:
        provenance["original"] = parse_json_object(
            original, f"{header.path}: tinystory.provenance", raises=CheckpointError
        )
    return provenance


# --- the tensors ---


def tensor_parts(config: ModelConfig) -> Iterator[GgufPart]:
    """Yield the tensors of a model in llama.cpp's names; a tied head is not among them."""
    c, d_q, d_kv = config.d_model, config.n_head * config.d_head, config.n_kv_head * config.d_head
    gpt2 = config.family == "gpt2"
    yield GgufPart("token_embd.weight", (config.vocab_size, c), ("embed.weight",))
    if gpt2:
        yield GgufPart("position_embd.weight", (config.max_seq_len, c), ("pos_embed.weight",))
    for n in range(config.n_layer):
        for name in ("attn_norm", "ffn_norm"):
            for kind in ("weight", "bias") if gpt2 else ("weight",):
                yield GgufPart(f"blk.{n}.{name}.{kind}", (c,), (f"blocks.{n}.{name.replace('ffn', 'ff')}.{kind}",))
        matrices: dict[str, tuple[int, int, tuple[str, ...], bool, int]] = {
            "attn_output": (c, d_q, ("attn.o",), config.attention_out_bias, 0),
            "ffn_up": (config.d_ff, c, ("ff.up",), config.ff_bias, 0),
            "ffn_down": (c, config.d_ff, ("ff.down",), config.ff_bias, 0),
        }
        if gpt2:
            matrices["attn_qkv"] = (3 * c, c, ("attn.q", "attn.k", "attn.v"), config.attention_bias, 0)
        else:
            matrices["attn_q"] = (d_q, c, ("attn.q",), config.attention_bias, config.n_head)
            matrices["attn_k"] = (d_kv, c, ("attn.k",), config.attention_bias, config.n_kv_head)
            matrices["attn_v"] = (d_kv, c, ("attn.v",), config.attention_bias, 0)
            matrices["ffn_gate"] = (config.d_ff, c, ("ff.gate",), config.ff_bias, 0)
        for name, (n_rows, n_columns, parameters, bias, n_head) in matrices.items():
            weights, biases = (tuple(f"blocks.{n}.{p}.{kind}" for p in parameters) for kind in ("weight", "bias"))
            yield GgufPart(f"blk.{n}.{name}.weight", (n_rows, n_columns), weights, n_head)
            if bias:
                yield GgufPart(f"blk.{n}.{name}.bias", (n_rows,), biases, n_head)
    for kind in ("weight", "bias") if gpt2 else ("weight",):
        yield GgufPart(f"output_norm.{kind}", (c,), (f"norm.{kind}",))
    if not config.tied_head:
        yield GgufPart("output.weight", (config.vocab_size, c), ("head.weight",))


def _check_tensors(header: GgufHeader, config: ModelConfig) -> None:
    """Check that the file has each tensor of the config in its shape, and no other."""
    expected = {part.name: part.shape for part in tensor_parts(config)}
    for name, shape in expected.items():
        tensor = header.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"the tensor {name}, {shown(shape)}, is missing")
        if tensor.shape != shape:
            raise CheckpointError(
                f"the tensor {name} has the shape {shown(tensor.shape)}; the metadata makes it {shown(shape)}"
            )
    others = {"output.weight"} | ({ROPE_FACTORS} if config.family == "llama" else set())  # a doubled head
    for name in header.tensors:
        if name not in expected and name not in others:
            raise CheckpointError(
                f"the tensor {shown(name)} is unknown; a {config.family} model as it is known here has none"
            )


def halves_from_pairs(weight: "Tensor", n_head: int) -> "Tensor":
    """Reorder the rows of each head: pairs (0, 1), (2, 3) … become (0, D/2), (1, D/2 + 1) …; (H·D, …)."""
    return weight.view(n_head, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def pairs_from_halves(weight: "Tensor", n_head: int) -> "Tensor":
    """Invert `halves_from_pairs`; (H·D, …)."""
    return weight.view(n_head, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _read_model(source: GgufModel) -> "Transformer":
    config, header = source.config, source.header
    check_memory(4 * config.n_parameters, "cpu")
    import torch

    model = meta_model(config)
    state: dict[str, Tensor] = {}
    with open_regular(header.path, raises=CheckpointError) as file:
        for part in tensor_parts(config):
            values = torch.from_numpy(read_values(file, header.tensors[part.name]))
            if part.n_head:
                values = halves_from_pairs(values, part.n_head)
            for name, parameter in zip(part.parameters, values.chunk(len(part.parameters)), strict=True):
                state[name] = parameter.contiguous()
    if config.tied_head:
        state["head.weight"] = state["embed.weight"]
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _exact_dtype(model: "Transformer") -> str:
    """Return the smallest dtype that holds all weights without a change."""
    import torch

    for name in ("bfloat16", "float16"):
        dtype = getattr(torch, name)
        if all(torch.equal(weight.to(dtype).float(), weight) for weight in model.parameters()):
            return name
    return "float32"
