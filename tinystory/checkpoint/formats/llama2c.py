"""Turn version-0 `.bin` files of llama2.c (https://github.com/karpathy/llama2.c) into a checkpoint directory.

The model file is seven int32, followed by float32 arrays: one array for each kind of tensor, over all layers. Its
rotary positions rotate adjacent pairs of a head, while Hugging Face pairs the two halves; so the rows of q and k are
reordered. The tokenizer file becomes a `tokenizer.json` that encodes as llama2.c does.
"""

import json
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystory.checkpoint.load import meta_model
from tinystory.checkpoint.save import save_checkpoint
from tinystory.errors import CheckpointError
from tinystory.model.config import ModelConfig
from tinystory.safe.reading import open_regular, regular_file_size, shown

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.model.transformer import Transformer

__all__ = ["file_arrays", "import_llama2c", "tokenizer_json"]

_HEADER = struct.Struct("<7i")  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
_VERSIONED_MAGIC = 0x616B3432
_MAX_TOKENIZER_BYTES = 64 * 2**20
_BOS_ID, _EOS_ID, _FIRST_BYTE_ID, _FIRST_TEXT_ID = 1, 2, 3, 259
_SPECIAL = ("<unk>", "<s>", "</s>")

_ScoredToken = tuple[float, bytes]


def import_llama2c(weights: Path, tokenizer: Path, out: Path) -> None:
    """Turn a llama2.c model and its tokenizer into a checkpoint directory.

    In llama2.c, BOS (1) ends a story as well as EOS (2). The checkpoint has both as EOS ids.

    Args:
        weights: a version-0 model file, such as stories260K.bin.
        tokenizer: its tokenizer file, such as tok512.bin.
        out: the directory to make.

    Raises:
        CheckpointError: a file is damaged or of another format, or the two files do not belong together.
        TinystoryError: `out` cannot be written, or has files that do not belong to a checkpoint.
    """
    config = _read_config(weights)
    tokenizer_text = tokenizer_json(tokenizer, config.vocab_size)
    model = _read_model(weights, config)
    save_checkpoint(
        out,
        model,
        tokenizer_text,
        bos_id=_BOS_ID,
        eos_ids={_BOS_ID, _EOS_ID},
        provenance={"imported_from": {"format": "llama2.c version 0", "files": [weights.name, tokenizer.name]}},
    )


# --- the model ---


def _read_config(path: Path) -> ModelConfig:
    """Read the config from the header of a model file, and check it against the size of the file."""
    size = regular_file_size(path, raises=CheckpointError)
    with open_regular(path, raises=CheckpointError) as file:
        raw = file.read(_HEADER.size)
    if len(raw) < _HEADER.size:
        raise CheckpointError(f"{path} has {size} bytes; a llama2.c model file begins with {_HEADER.size} of header")
    d_model, d_ff, n_layer, n_head, n_kv_head, vocab_size, max_seq_len = _HEADER.unpack(raw)
    if d_model == _VERSIONED_MAGIC:
        raise CheckpointError(
            f"{path} is of llama2.c's version 1 or later; export it with version 0 (or as a Hugging Face model)"
        )
    try:
        config = ModelConfig.llama(
            vocab_size=abs(vocab_size),
            n_layer=n_layer,
            n_head=n_head,
            d_model=d_model,
            max_seq_len=max_seq_len,
            d_ff=d_ff,
            n_kv_head=n_kv_head or -1,  # the constructor would read 0 as "the same as n_head"
            tied_head=vocab_size > 0,
            norm_eps=1e-5,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a llama2.c model file of version 0: {error}") from error
    expected = _HEADER.size + 4 * sum(math.prod(shape) for _, shape in file_arrays(config))
    if size != expected:
        raise CheckpointError(
            f"{path} has {size} bytes, its header describes {expected}; the file is damaged or not from llama2.c"
        )
    return config


def file_arrays(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of each float32 array, in the order of the file; `*` stands for the layer."""
    n, c, d_ff = config.n_layer, config.d_model, config.d_ff
    d_kv = config.n_kv_head * config.d_head
    yield "embed.weight", (config.vocab_size, c)
    yield "blocks.*.attn_norm.weight", (n, c)
    yield "blocks.*.attn.q.weight", (n, c, c)
    yield "blocks.*.attn.k.weight", (n, d_kv, c)
    yield "blocks.*.attn.v.weight", (n, d_kv, c)
    yield "blocks.*.attn.o.weight", (n, c, c)
    yield "blocks.*.ff_norm.weight", (n, c)
    yield "blocks.*.ff.gate.weight", (n, d_ff, c)
    yield "blocks.*.ff.down.weight", (n, c, d_ff)
    yield "blocks.*.ff.up.weight", (n, d_ff, c)
    yield "norm.weight", (c,)
    yield "", (config.max_seq_len, config.d_head)  # tables for rotary positions, which llama2.c no longer reads
    if not config.tied_head:
        yield "head.weight", (config.vocab_size, c)


def _read_model(path: Path, config: ModelConfig) -> "Transformer":
    import torch

    model = meta_model(config)
    state: dict[str, Tensor] = {}
    with open_regular(path, raises=CheckpointError) as file:
        file.seek(_HEADER.size)
        for name, shape in file_arrays(config):
            values = torch.empty(shape)
            if file.readinto(values.view(-1).view(torch.uint8).numpy().data) != 4 * values.numel():
                raise CheckpointError(f"{path} became shorter while it was read; try again")
            if name.endswith(("attn.q.weight", "attn.k.weight")):
                values = _halves_from_pairs(values, config.d_head)
            if "*" in name:
                state |= {name.replace("*", str(layer)): values[layer].clone() for layer in range(len(values))}
            elif name:
                state[name] = values
    if config.tied_head:
        state["head.weight"] = state["embed.weight"]
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _halves_from_pairs(weight: "Tensor", d_head: int) -> "Tensor":
    """Reorder the rows of each head, so that pairs (0, 1), (2, 3) … become (0, D/2), (1, D/2 + 1) …; (L, H·D, C)."""
    n_layer, n_rows, n_columns = weight.shape
    pairs = weight.view(n_layer, n_rows // d_head, d_head // 2, 2, n_columns)
    return pairs.transpose(2, 3).reshape(n_layer, n_rows, n_columns)


# --- the tokenizer ---


def tokenizer_json(path: Path, vocab_size: int) -> str:
    """Return the content of a tokenizer.json that encodes and detokenizes like a llama2.c tokenizer file.

    llama2.c puts a space before a text and splits it into characters; unknown characters become bytes. Then it joins
    the two neighbours that make the token with the best score, the leftmost first, until no two make a token. A BPE
    whose merges are sorted by score does the same. There are two differences. Merges of equal score that overlap may
    be done in another order. And the name of a special token in a text, like `<s>`, is that token, as in every
    tokenizer.json; llama2.c would spell it out.

    Args:
        path: the tokenizer file.
        vocab_size: the number of tokens of the model.

    Raises:
        CheckpointError: the file is damaged, or does not have `vocab_size` tokens.
    """
    scored_tokens = _read_tokens(path, vocab_size)
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    byte_tokens = [token_bytes for _, token_bytes in scored_tokens[_FIRST_BYTE_ID:_FIRST_TEXT_ID]]
    if byte_tokens != [token.encode() for token in tokens[_FIRST_BYTE_ID:]]:
        raise CheckpointError(f"{path}: tokens 3 to 258 are not the 256 bytes; this is no llama2.c tokenizer")
    for i, (_, token_bytes) in enumerate(scored_tokens[_FIRST_TEXT_ID:], start=_FIRST_TEXT_ID):
        try:
            tokens.append(token_bytes.decode())
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: token {i} is {shown(token_bytes)}, not UTF-8") from error
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != vocab_size:
        raise CheckpointError(f"{path} has {vocab_size - len(vocab)} tokens twice")
    merges = _merges(vocab, [score for score, _ in scored_tokens])
    return json.dumps(_document(vocab, merges), ensure_ascii=False)


def _merges(vocab: dict[str, int], scores: Sequence[float]) -> list[list[str]]:
    """Return every pair of text tokens that makes a token, the best score first."""
    merges: list[tuple[float, int, list[str]]] = []
    for token, i in vocab.items():
        if i < _FIRST_TEXT_ID:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if vocab.get(left, 0) >= _FIRST_TEXT_ID and vocab.get(right, 0) >= _FIRST_TEXT_ID:
                merges.append((-scores[i], i, [left, right]))
    return [pair for _, _, pair in sorted(merges, key=lambda merge: merge[:2])]


def _document(vocab: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    """Return the object of the tokenizer.json."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True,
            }
            for i, token in enumerate(_SPECIAL)
        ],
        "normalizer": {"type": "Prepend", "prepend": " "},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [_BOS_ID], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip


def _read_tokens(path: Path, vocab_size: int) -> list[_ScoredToken]:
    """Read the score and the bytes of each token."""
    size = regular_file_size(path, raises=CheckpointError)
    if not 4 <= size <= _MAX_TOKENIZER_BYTES:
        raise CheckpointError(f"{path} has {size} bytes; a llama2.c tokenizer has 4 to {_MAX_TOKENIZER_BYTES}")
    with open_regular(path, raises=CheckpointError) as file:
        raw = file.read(_MAX_TOKENIZER_BYTES)
    longest, position = struct.unpack_from("<i", raw)[0], 4
    scored_tokens: list[_ScoredToken] = []
    while position + 8 <= len(raw):
        score, length = struct.unpack_from("<fi", raw, position)
        position += 8
        if not 0 <= length <= min(longest, len(raw) - position) or not math.isfinite(score):
            raise CheckpointError(f"{path}: token {len(scored_tokens)} is damaged; this is no llama2.c tokenizer")
        scored_tokens.append((score, raw[position : position + length]))
        position += length
    if position != len(raw):
        raise CheckpointError(f"{path} is cut short after token {len(scored_tokens)}; this is no llama2.c tokenizer")
    if len(scored_tokens) != vocab_size or len(scored_tokens) < _FIRST_TEXT_ID:
        raise CheckpointError(
            f"{path} has {len(scored_tokens)} tokens, the model {vocab_size} (at least {_FIRST_TEXT_ID}); "
            "the two files do not belong together"
        )
    return scored_tokens
