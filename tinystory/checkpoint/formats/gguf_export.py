"""Write a checkpoint as a GGUF file for llama.cpp: llama and GPT-2 models with GPT-2's byte-level BPE.

The file is composed here, in the layout that `gguf_header` reads. Only Q8_0 needs the package `gguf`.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinystory.checkpoint.formats.gguf import pairs_from_halves, tensor_parts
from tinystory.checkpoint.formats.gguf_config import ROPE_FACTORS, rope_factors
from tinystory.checkpoint.formats.gguf_header import ALIGNMENT, MAGIC, STORAGE_TYPES, ValueType
from tinystory.checkpoint.formats.gguf_tokenizer import GPT2_WORDS, TokenType
from tinystory.checkpoint.formats.gguf_values import INSTALL_HINT, has_gguf_package
from tinystory.checkpoint.header import CheckpointHeader, read_header
from tinystory.checkpoint.load import load_model
from tinystory.checkpoint.tokenizers import load_tokenizer
from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.model.config import ModelConfig
from tinystory.safe.reading import shown
from tinystory.safe.writing import write_atomically

if TYPE_CHECKING:
    from tinystory.model.transformer import Transformer

__all__ = ["GGUF_DTYPES", "export_gguf"]

GGUF_DTYPES: Mapping[str, int] = {"F32": 0, "F16": 1, "Q8_0": 7}
"""The dtypes of an export, with the number that `general.file_type` has for each."""

_VERSION = 3
_TYPE_NUMBERS = {storage.name: number for number, storage in STORAGE_TYPES.items()}
_Q8_BLOCK = 32
_Q8_LARGEST = 127 * 65504.0
_MAX_EOS = 3
_SCALAR_FORMS = {ValueType.UINT32: "<I", ValueType.FLOAT32: "<f", ValueType.BOOL: "<?"}

Field = tuple[str, ValueType, Any]
Stored = tuple[str, tuple[int, ...], str, bytes]


def export_gguf(directory: Path, path: Path, dtype: str = "F32") -> None:
    """Write a checkpoint as one GGUF file, whole or not at all.

    Matrices have the dtype, and all else is F32: norms, biases and learned positions. With Q8_0, a matrix whose rows
    are no multiple of 32 long is stored as F16.

    Args:
        directory: the checkpoint.
        path: the file to write; one that exists is replaced.
        dtype: F32, F16 or Q8_0.

    Raises:
        UsageError: an unknown dtype, or Q8_0 without the package `gguf`.
        CheckpointError: the checkpoint is damaged, or llama.cpp cannot run such a model or such a tokenizer.
        TinystoryError: the file cannot be written.
    """
    if dtype not in GGUF_DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; a GGUF file has one of {', '.join(GGUF_DTYPES)}")
    if dtype == "Q8_0" and not has_gguf_package():
        raise UsageError(f"writing Q8_0 needs {INSTALL_HINT}")
    header = read_header(directory)
    fields = [*_model_fields(header, dtype), *_tokenizer_fields(header)]
    content = _composed(fields, list(_stored_tensors(load_model(header), dtype)))
    try:
        write_atomically(path, content)
    except OSError as error:
        raise TinystoryError(f"cannot write {path}: {error.strerror or error}") from error


# --- the metadata ---


def _model_fields(header: CheckpointHeader, dtype: str) -> list[Field]:
    config = header.config
    if config is None:
        kind = shown(header.hf_config.get("model_type"))
        raise CheckpointError(f"{header.directory} is a {kind} model; only llama and gpt2 can be exported")
    usual = "gelu_tanh" if config.family == "gpt2" else "silu"
    if config.activation != usual:
        raise CheckpointError(f"llama.cpp computes {config.family} with {usual}; this model has {config.activation}")
    name = config.family
    counts = {
        f"{name}.context_length": config.max_seq_len,
        f"{name}.embedding_length": config.d_model,
        f"{name}.block_count": config.n_layer,
        f"{name}.feed_forward_length": config.d_ff,
        f"{name}.attention.head_count": config.n_head,
        "general.file_type": GGUF_DTYPES[dtype],
        "general.alignment": ALIGNMENT,
    }
    floats: dict[str, float] = {}
    texts = {
        "general.architecture": name,
        "general.name": header.directory.resolve().name,
        "tinystory.provenance": json.dumps(header.provenance, ensure_ascii=False),
    }
    if name == "gpt2":
        floats["gpt2.attention.layer_norm_epsilon"] = config.norm_eps
    else:
        counts |= {
            "llama.vocab_size": config.vocab_size,
            "llama.attention.head_count_kv": config.n_kv_head,
            "llama.attention.key_length": config.d_head,
            "llama.attention.value_length": config.d_head,
            "llama.rope.dimension_count": config.d_head,
        }
        floats |= {
            "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
            "llama.rope.freq_base": config.rope_theta,
        }
    scaling = config.rope_scaling
    if scaling and scaling.kind == "linear":
        texts["llama.rope.scaling.type"] = "linear"
        floats["llama.rope.scaling.factor"] = scaling.factor
    elif scaling:  # the factors themselves are a tensor
        counts["llama.rope.scaling.original_context_length"] = scaling.original_max_seq_len
    return [
        *((key, ValueType.STRING, text) for key, text in texts.items()),
        *((key, ValueType.UINT32, count) for key, count in counts.items()),
        *((key, ValueType.FLOAT32, number) for key, number in floats.items()),
    ]


def _tokenizer_fields(header: CheckpointHeader) -> list[Field]:
    config = header.config
    assert config is not None
    tokenizer = load_tokenizer(header)
    document = json.loads(tokenizer.to_json())
    if problem := _not_gpt2(document):
        raise CheckpointError(f"{header.directory}: llama.cpp knows GPT-2's tokenizer, but {problem}")
    n_ends = len(tokenizer.eos_ids)
    if not 1 <= n_ends <= _MAX_EOS:
        raise CheckpointError(
            f"{header.directory} has {n_ends} tokens that end a story; a GGUF file has 1 to {_MAX_EOS}"
        )
    if tokenizer.suffix or tokenizer.prefix not in ((), (tokenizer.bos_id,)):
        raise CheckpointError(
            f"{header.directory}: llama.cpp puts BOS or nothing before a prompt, and this tokenizer puts other tokens "
            "around it"
        )
    texts, types = _tokens(document, config.vocab_size)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in document["model"]["merges"]]
    fields: list[Field] = [
        ("tokenizer.ggml.model", ValueType.STRING, "gpt2"),
        ("tokenizer.ggml.pre", ValueType.STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", ValueType.ARRAY, texts),
        ("tokenizer.ggml.token_type", ValueType.ARRAY, types),
        ("tokenizer.ggml.merges", ValueType.ARRAY, merges),
        ("tokenizer.ggml.add_bos_token", ValueType.BOOL, bool(tokenizer.prefix)),
    ]
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = dict(zip(names, sorted(tokenizer.eos_ids), strict=False))
    if tokenizer.bos_id is not None:
        ids["bos_token_id"] = tokenizer.bos_id
    return [*fields, *((f"tokenizer.ggml.{name}", ValueType.UINT32, i) for name, i in ids.items())]


def _tokens(document: Mapping[str, Any], vocab_size: int) -> tuple[list[str], NDArray[np.int32]]:
    """Return text and type of each row of the embedding."""
    texts = [f"[PAD{i}]" for i in range(vocab_size)]
    types = np.full(vocab_size, TokenType.UNUSED, np.int32)
    for text, i in document["model"]["vocab"].items():
        texts[i], types[i] = text, TokenType.NORMAL
    for token in document["added_tokens"]:
        if (i := token["id"]) >= vocab_size:  # the model does not know it
            continue
        texts[i], types[i] = token["content"], TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    if len(set(texts)) != vocab_size:
        raise CheckpointError("two tokens have the same text; llama.cpp needs different ones")
    return texts, types


def _not_gpt2(document: Mapping[str, Any]) -> str:
    """Return in what a tokenizer.json differs from GPT-2's way to encode; "" if in nothing."""
    model, decoder = document["model"], document.get("decoder") or {}
    if model.get("type") != "BPE" or decoder.get("type") != "ByteLevel":
        return "this tokenizer is no byte-level BPE"
    if document.get("normalizer") is not None:
        return "this tokenizer normalises text"
    for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            return f"this tokenizer has {name} {shown(model[name])}"
    if model.get("ignore_merges"):
        return "this tokenizer has ignore_merges"
    pre = document.get("pre_tokenizer") or {}
    parts = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
    to_bytes = parts[-1] if parts else {}
    splits_itself = to_bytes.get("use_regex", True)
    split = {"type": "Split", "pattern": {"Regex": GPT2_WORDS}, "behavior": "Isolated", "invert": False}
    if (
        to_bytes.get("type") != "ByteLevel"
        or to_bytes.get("add_prefix_space")
        or parts[:-1] != ([] if splits_itself else [split])
    ):
        return "this tokenizer splits text into words in another way (its pre_tokenizer)"
    return ""


# --- the tensors ---


def _stored_tensors(model: "Transformer", dtype: str) -> Iterator[Stored]:
    """Yield name, shape, storage type and bytes of each tensor."""
    import torch

    state, config = model.state_dict(), model.config
    for part in tensor_parts(config):
        weight = torch.cat([state[name] for name in part.parameters])
        values = (pairs_from_halves(weight, part.n_head) if part.n_head else weight).numpy()
        is_matrix = values.ndim == 2 and part.name != "position_embd.weight"  # llama.cpp adds positions in F32
        storage = dtype if is_matrix else "F32"
        if storage == "Q8_0" and values.shape[-1] % _Q8_BLOCK:
            storage = "F16"
        yield part.name, part.shape, storage, _encoded(part.name, values, storage)
    if factors := _llama3_factors(config):
        yield ROPE_FACTORS, (len(factors) // 4,), "F32", factors


def _llama3_factors(config: ModelConfig) -> bytes:
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return b""
    return rope_factors(scaling, config.rope_theta, config.d_head).astype("<f4").tobytes()


def _encoded(name: str, values: NDArray[np.float32], storage: str) -> bytes:
    if storage == "F32":
        return values.astype("<f4").tobytes()
    if storage == "F16":
        with np.errstate(over="ignore"):
            halves = values.astype("<f2")
        if not np.isfinite((halves.min(), halves.max())).all():
            raise CheckpointError(f"the weights {name} are too large for F16; export them as F32")
        return halves.tobytes()
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if np.abs(values).max() > _Q8_LARGEST:
        raise CheckpointError(f"the weights {name} are too large for Q8_0; export them as F32")
    blocks: NDArray[np.uint8] = quantize(values, GGMLQuantizationType.Q8_0)
    return blocks.tobytes()


# --- the container ---


def _composed(fields: Sequence[Field], tensors: Sequence[Stored]) -> bytes:
    """Return a whole file."""
    header = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(fields))]
    for key, kind, value in fields:
        header += [_text(key), struct.pack("<I", kind), _value(kind, value)]
    data: list[bytes] = []
    offset = 0
    for name, shape, storage, content in tensors:
        header += [
            _text(name),
            struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)),
            struct.pack("<IQ", _TYPE_NUMBERS[storage], offset),
        ]
        data += [content, bytes(-len(content) % ALIGNMENT)]
        offset += len(content) + len(data[-1])
    head = b"".join(header)
    return b"".join([head, bytes(-len(head) % ALIGNMENT), *data])


def _value(kind: ValueType, value: Any) -> bytes:
    if kind == ValueType.STRING:
        return _text(value)
    if kind != ValueType.ARRAY:
        return struct.pack(_SCALAR_FORMS[kind], value)
    if isinstance(value, list):
        return struct.pack("<IQ", ValueType.STRING, len(value)) + b"".join(map(_text, value))
    content: bytes = value.astype("<i4").tobytes()
    return struct.pack("<IQ", ValueType.INT32, len(value)) + content


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
