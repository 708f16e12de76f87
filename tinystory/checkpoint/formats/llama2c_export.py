"""Write a checkpoint as llama2.c's version-0 `.bin` files, where that format can express the model.

llama2.c has one way to compute and one kind of tokenizer. A model that needs another is refused, because llama2.c would
write other stories with it.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystory.checkpoint.formats import llama2c
from tinystory.checkpoint.formats.gguf import pairs_from_halves
from tinystory.checkpoint.header import CheckpointHeader, read_header
from tinystory.checkpoint.load import load_model
from tinystory.checkpoint.tokenizers import load_tokenizer
from tinystory.errors import CheckpointError, TinystoryError
from tinystory.model.config import ModelConfig
from tinystory.safe.leftovers import temporary_folder
from tinystory.safe.reading import shown
from tinystory.safe.writing import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.model.transformer import Transformer

__all__ = ["export_llama2c"]

_BOS_ID, _EOS_ID = 1, 2
_UNREACHABLE = -1e9
"""The score of a token that no merge makes."""

_SPACE = "\u2581"  # how SentencePiece writes a space


def export_llama2c(directory: Path, path: Path) -> Path:
    """Write a llama checkpoint as a llama2.c model file, and its tokenizer beside it.

    Args:
        directory: the checkpoint.
        path: the model file to write; one that exists is replaced. The tokenizer of `model.bin` becomes
            `model.tokenizer.bin`.

    Returns:
        The tokenizer file.

    Raises:
        CheckpointError: the checkpoint is damaged, or the format cannot express the model or its tokenizer.
        TinystoryError: a file cannot be written.
    """
    header = read_header(directory)
    if problem := _inexpressible(header):
        raise CheckpointError(f"{directory} cannot be a llama2.c file: {problem}")
    tokenizer = _tokenizer_file(header)
    model = _model_file(load_model(header))
    tokenizer_path = path.with_suffix(".tokenizer.bin")
    for target, content in ((tokenizer_path, tokenizer), (path, model)):
        try:
            write_atomically(target, content)
        except OSError as error:
            raise TinystoryError(f"cannot write {target}: {error.strerror or error}") from error
    return tokenizer_path


def _inexpressible(header: CheckpointHeader) -> str:
    """Return what the model has and llama2.c has not; "" if nothing."""
    config = header.config
    if config is None or config.family != "llama":
        kind = config.family if config else header.hf_config.get("model_type")
        return f"llama2.c runs llama models, and this is a {shown(kind)} model"
    fixed: dict[str, tuple[Any, Any]] = {
        "activation": (config.activation, "silu"),
        "norm_eps": (config.norm_eps, 1e-5),
        "rope_theta": (config.rope_theta, 10_000.0),
        "rope_scaling": (config.rope_scaling and config.rope_scaling.kind, None),
        "attention_bias": (config.attention_bias or config.attention_out_bias, False),
        "ff_bias": (config.ff_bias, False),
        "d_head": (config.d_head, config.d_model // config.n_head),
        "BOS": (header.bos_id, _BOS_ID),
    }
    for name, (value, only) in fixed.items():
        if value != only:
            return f"{name} is {value}, and in llama2.c it is {only}"
    if not header.eos_ids <= {_BOS_ID, _EOS_ID}:
        return f"a story ends with token {max(header.eos_ids)}, and in llama2.c with {_BOS_ID} or {_EOS_ID}"
    return ""


# --- the model ---


def _model_file(model: "Transformer") -> bytes:
    import torch

    config, state = model.config, model.state_dict()
    vocab_size = config.vocab_size if config.tied_head else -config.vocab_size
    parts = [
        struct.pack(
            "<7i", config.d_model, config.d_ff, config.n_layer, config.n_head, config.n_kv_head, vocab_size,
            config.max_seq_len,
        )
    ]  # fmt: skip
    for name, shape in llama2c.file_arrays(config):
        if name:
            layers = range(config.n_layer) if "*" in name else [0]
            weights = [state[name.replace("*", str(layer))] for layer in layers]
            if heads := _heads(name, config):
                weights = [pairs_from_halves(weight, heads) for weight in weights]
            values = torch.cat([weight.flatten() for weight in weights])
        else:  # cosines, then sines, of the rotary positions: early versions of llama2.c read them
            values = torch.cat([table[:, : shape[1] // 2].flatten() for table in _rope_tables(config)])
        parts.append(values.numpy().astype("<f4").tobytes())
    return b"".join(parts)


def _rope_tables(config: ModelConfig) -> "tuple[Tensor, Tensor]":
    import torch

    from tinystory.model.transformer import rope_tables

    return rope_tables(config, torch.arange(config.max_seq_len), torch.float32)


def _heads(name: str, config: ModelConfig) -> int:
    """Return the number of heads whose rows change places; 0 for most weights."""
    return {"attn.q.weight": config.n_head, "attn.k.weight": config.n_kv_head}.get(name.partition("*.")[2], 0)


# --- the tokenizer ---


def _tokenizer_file(header: CheckpointHeader) -> bytes:
    """Return a tokenizer file from which the import makes the same vocabulary and the same merges."""
    config = header.config
    assert config is not None
    tokenizer = load_tokenizer(header)
    if (tokenizer.prefix, tokenizer.suffix) != ((_BOS_ID,), ()):
        raise CheckpointError(
            f"{header.directory} cannot be a llama2.c file: llama2.c puts BOS before a prompt, and this tokenizer "
            "puts other tokens around it"
        )
    document = json.loads(tokenizer.to_json())
    model = document["model"]
    if model.get("type") != "BPE" or not model.get("byte_fallback") or document.get("pre_tokenizer"):
        raise CheckpointError(
            f"{header.directory} cannot be a llama2.c file: llama2.c joins characters as SentencePiece does, "
            "and this tokenizer works in another way"
        )
    if not _prepends_space(document.get("normalizer")):
        raise CheckpointError(
            f"{header.directory} cannot be a llama2.c file: llama2.c puts a space before a text, "
            "and this tokenizer does not"
        )
    tokens = {i: token.replace(_SPACE, " ") for token, i in model["vocab"].items()}
    merges = [_pair(merge) for merge in model["merges"]]
    scores: dict[str, float] = {}
    for rank, pair in enumerate(merges):
        scores.setdefault("".join(pair), float(-rank))
    pieces = [(scores.get(tokens.get(i, ""), _UNREACHABLE), tokens.get(i, "")) for i in range(config.vocab_size)]
    for i in (_BOS_ID, _EOS_ID):  # in llama2.c, no text can contain the names of these two
        pieces[i] = (0.0, f"\n{pieces[i][1]}\n")
    content = struct.pack("<i", max(len(text.encode()) for _, text in pieces))
    for score, text in pieces:
        raw = text.encode()
        content += struct.pack("<fi", score, len(raw)) + raw
    _check_same(content, header, {text: i for i, text in tokens.items()}, merges)
    return content


def _prepends_space(normalizer: Mapping[str, Any] | None) -> bool:
    """Return whether a normalizer puts one space before a text, and does no more than name spaces."""
    steps: list[Any] = (normalizer or {}).get("normalizers", [normalizer])
    spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    return steps == [{"type": "Prepend", "prepend": " "}] or steps == [{"type": "Prepend", "prepend": _SPACE}, *spaces]


def _pair(merge: str | list[str]) -> list[str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    return [part.replace(_SPACE, " ") for part in parts]


def _check_same(content: bytes, header: CheckpointHeader, vocab: dict[str, int], merges: list[list[str]]) -> None:
    """Check that the file means what the checkpoint does: the format has scores, and a tokenizer.json has merges."""
    assert header.config is not None
    with temporary_folder("tinystory-export-") as folder:
        path = folder / "tokenizer.bin"
        path.write_bytes(content)
        try:
            back = json.loads(llama2c.tokenizer_json(path, header.config.vocab_size))["model"]
        except CheckpointError as error:
            reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
            raise CheckpointError(f"{header.directory} cannot be a llama2.c file; its tokenizer: {reason}") from error
    if back["vocab"] != vocab or back["merges"] != merges:
        raise CheckpointError(
            f"{header.directory} cannot be a llama2.c file: its tokenizer joins tokens in an order that no scores give"
        )
