"""Translate the tokenizer of a GGUF file into a tokenizer.json that encodes and detokenizes in the same way.

Two kinds are known: byte-level BPE (`tokenizer.ggml.model` gpt2) with a known way of splitting text into words
(`tokenizer.ggml.pre`), and SentencePiece BPE (llama). This module knows nothing about files and weights.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from tinystory.errors import CheckpointError
from tinystory.safe.reading import shown

__all__ = ["GPT2_WORDS", "GgufTokenizer", "TokenType", "read_tokenizer"]

_SPACE = "\u2581"  # how SentencePiece writes a space
_MAX_JOINING = 2**26
"""Largest sum of squared token lengths, 4 times that of real vocabularies of 256,000 tokens; it bounds the work."""
_BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))

# How text is split into words before merges: the regular expressions of each `tokenizer.ggml.pre`, applied one after
# the other. A match is a word, and so is what lies between two matches.
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3_WORDS = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_WORDS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo"), (GPT2_WORDS,)),
    **dict.fromkeys(_LLAMA3, (_LLAMA3_WORDS,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), (_QWEN2_WORDS,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell"), (r"\p{N}", GPT2_WORDS)),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]"),
}
_WHOLE_WORDS_FIRST = frozenset(_LLAMA3)  # a word that is a token is not merged from parts
_BEGIN_WITH_BOS = _LLAMA3  # the byte-level kinds that have BOS before a prompt if the file does not say it

_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_END_NAMES = frozenset({"<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"})
"""The control tokens by whose names llama.cpp knows that a text ends."""


class TokenType(IntEnum):
    """The purpose of a token."""

    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True)
class GgufTokenizer:
    """A vocabulary as a checkpoint needs it.

    Attributes:
        json: the content of tokenizer.json.
        bos_id: the token that a story begins with; None if the file says that there is none.
        eos_ids: the tokens that end a story.
    """

    json: str
    bos_id: int | None
    eos_ids: frozenset[int]


@dataclass(frozen=True)
class _Tokens:
    """The tokens of a file with their types; no two are equal."""

    texts: list[str]
    types: list[int]

    def special(self) -> list[dict[str, Any]]:
        """Return the entries of `added_tokens`: what is matched before a text is split into words."""
        return [
            {
                "id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": kind != TokenType.USER_DEFINED,
            }
            for i, (text, kind) in enumerate(zip(self.texts, self.types, strict=True))
            if kind not in (TokenType.NORMAL, TokenType.BYTE)
        ]  # fmt: skip


def read_tokenizer(fields: Mapping[str, Any], vocab_size: int) -> GgufTokenizer:
    """Return the tokenizer in the metadata of a GGUF file.

    Args:
        fields: the metadata.
        vocab_size: rows of the embedding.

    Raises:
        CheckpointError: the tokenizer is missing or damaged, of another size, or of a kind that is not known here.
    """
    model = fields.get("tokenizer.ggml.model")
    if not isinstance(model, str) or model not in ("gpt2", "llama"):
        raise CheckpointError(f"the tokenizer is {shown(model)}; known here are gpt2 (byte-level BPE) and llama (SPM)")
    tokens = _read_tokens(fields, vocab_size)
    bos_id = _special_id(fields, "bos_token_id", vocab_size, 1 if model == "llama" else None)
    eos_ids = _end_ids(fields, tokens, 2 if model == "llama" else None)
    if not _begins_with_bos(fields, model):
        bos_id = None
    for i in {*eos_ids, *(() if bos_id is None else (bos_id,))}:
        tokens.types[i] = TokenType.CONTROL
    document = _byte_level(fields, tokens) if model == "gpt2" else _sentence_piece(fields, tokens)
    while tokens.types and tokens.types[-1] == TokenType.UNUSED:  # rows that pad the embedding
        removed = tokens.texts.pop()
        tokens.types.pop()
        del document["model"]["vocab"][removed]
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens.special(),
        **document, "post_processor": _bos_template(tokens, bos_id),
    }  # fmt: skip
    text = json.dumps(document, ensure_ascii=False)
    _check_loads(text)
    return GgufTokenizer(text, bos_id, eos_ids)


def _read_tokens(fields: Mapping[str, Any], vocab_size: int) -> _Tokens:
    texts, types = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.token_type")
    if not isinstance(texts, list) or len(texts) != vocab_size:
        count = len(texts) if isinstance(texts, list) else 0
        raise CheckpointError(f"the tokenizer has {count} tokens, and the embedding has {vocab_size} rows")
    texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]  # llama.cpp's name for a token without text
    if len(set(texts)) != vocab_size:
        raise CheckpointError(f"the tokenizer has {vocab_size - len(set(texts))} tokens twice")
    if types is None:
        return _Tokens(texts, [TokenType.NORMAL] * vocab_size)
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != vocab_size:
        raise CheckpointError(f"tokenizer.ggml.token_type is not one whole number for each of {vocab_size} tokens")
    if types.min() < 1 or types.max() > max(TokenType):
        raise CheckpointError(f"a token has the type {types.min()} or {types.max()}; types go from 1 to 6")
    return _Tokens(texts, types.tolist())


def _special_id(fields: Mapping[str, Any], name: str, vocab_size: int, default: int | None) -> int | None:
    value = fields.get(f"tokenizer.ggml.{name}", default)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < vocab_size:
        raise CheckpointError(f"tokenizer.ggml.{name} is {shown(value)}; the tokenizer has {vocab_size} tokens")
    return value


def _begins_with_bos(fields: Mapping[str, Any], model: str) -> bool:
    """Return whether BOS stands before a prompt: as the file says, else as llama.cpp decides by kind."""
    by_kind = model == "llama" or fields.get("tokenizer.ggml.pre") in _BEGIN_WITH_BOS
    value = fields.get("tokenizer.ggml.add_bos_token", by_kind)
    if not isinstance(value, bool):
        raise CheckpointError(f"tokenizer.ggml.add_bos_token is {shown(value)}; it must be true or false")
    return value


def _end_ids(fields: Mapping[str, Any], tokens: _Tokens, default: int | None) -> frozenset[int]:
    """Return the tokens that end a text: those that the metadata names, and control tokens with a known name."""
    ids = {
        _special_id(fields, name, len(tokens.texts), default if name == "eos_token_id" else None) for name in _END_KEYS
    }
    ids |= {
        i
        for i, (text, kind) in enumerate(zip(tokens.texts, tokens.types, strict=True))
        if kind == TokenType.CONTROL and text in _END_NAMES
    }
    return frozenset(i for i in ids if i is not None)


def _bos_template(tokens: _Tokens, bos_id: int | None) -> dict[str, Any] | None:
    """Return the post-processor that puts BOS before a text."""
    if bos_id is None:
        return None
    bos = tokens.texts[bos_id]
    first = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def _bpe(vocab: dict[str, int], merges: list[list[str]], **other: Any) -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **other,
        "vocab": vocab, "merges": merges,
    }  # fmt: skip


def _check_loads(text: str) -> None:
    """Check that the library reads the tokenizer, since a stranger's merges may contradict its tokens."""
    from tokenizers import Tokenizer

    from tinystory.text.library_calls import library_call

    with library_call("the tokenizer is damaged"):
        Tokenizer.from_str(text)


# --- byte-level BPE ---


def _byte_level(fields: Mapping[str, Any], tokens: _Tokens) -> dict[str, Any]:
    """Return the parts of a tokenizer.json with the merges of the file."""
    pre: Any = fields.get("tokenizer.ggml.pre")
    if pre is None and fields.get("general.architecture") == "gpt2":  # files from before April 2024
        pre = "gpt-2"
    if not isinstance(pre, str) or pre not in _WORDS:
        raise CheckpointError(
            f"the tokenizer splits text into words as {shown(pre)} (tokenizer.ggml.pre); known here are "
            f"{', '.join(_WORDS)}"
        )
    vocab = {text: i for i, text in enumerate(tokens.texts)}
    return {
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(_WORDS[pre]),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocab, _merges(fields, vocab), ignore_merges=pre in _WHOLE_WORDS_FIRST),
    }


def _pre_tokenizer(expressions: Sequence[str]) -> dict[str, Any]:
    """Return the pre-tokenizer that applies regular expressions one after the other, and then writes bytes."""
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if list(expressions) == [GPT2_WORDS]:
        return to_bytes
    splits = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in expressions
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, to_bytes | {"use_regex": False}]}


def _merges(fields: Mapping[str, Any], vocab: Mapping[str, int]) -> list[list[str]]:
    """Return the merges as pairs of tokens, the first of equal ones only."""
    listed = fields.get("tokenizer.ggml.merges")
    if not isinstance(listed, list):
        raise CheckpointError("the tokenizer has no merges (tokenizer.ggml.merges)")
    pairs: dict[tuple[str, str], None] = {}
    for i, merge in enumerate(listed):
        left, _, right = merge[1:].partition(" ")
        left = merge[:1] + left
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise CheckpointError(f"merge {i} of the tokenizer, {shown(merge)}, is of tokens that it has not")
        pairs[left, right] = None
    return [list(pair) for pair in pairs]


# --- SentencePiece ---


def _sentence_piece(fields: Mapping[str, Any], tokens: _Tokens) -> dict[str, Any]:
    """Return the parts of a tokenizer.json that joins neighbours as SentencePiece does, the best score first.

    A BPE that lists the unions by score does the same, except for unions of equal score that overlap, and for tokens
    with a character that is itself no token.
    """
    texts, types = tokens.texts, tokens.types
    scores = fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "fi" or len(scores) < len(texts):
        raise CheckpointError("the tokenizer has no scores (tokenizer.ggml.scores)")
    if not np.isfinite(scores).all():
        raise CheckpointError("a score of the tokenizer is not finite")
    vocab = {text: i for i, text in enumerate(texts)}
    if missing := [name for name in _BYTE_TOKENS if name not in vocab]:
        raise CheckpointError(f"the tokenizer lacks the byte token {missing[0]}")
    unknown_id = _special_id(fields, "unknown_token_id", len(texts), 0)
    assert unknown_id is not None
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    if not isinstance(prefix, bool):
        raise CheckpointError(f"tokenizer.ggml.add_space_prefix is {shown(prefix)}; it must be true or false")
    return {
        "normalizer": _sequence("normalizers", prefix * [{"type": "Prepend", "prepend": _SPACE}] + [
            {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        ]),
        "pre_tokenizer": None,
        "decoder": _sequence("decoders", [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            *(prefix * [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]),
        ]),
        "model": _bpe(
            vocab, _merges_by_score(texts, types, scores.tolist()), unk_token=texts[unknown_id], byte_fallback=True
        ),
    }  # fmt: skip


def _sequence(name: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", name: items}


def _merges_by_score(texts: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[list[str]]:
    """Return each way to join two tokens into a third, the third with the best score first."""
    if sum(len(text) ** 2 for text in texts) > _MAX_JOINING:
        raise CheckpointError("the tokens are too long for a vocabulary; the tokenizer is damaged")
    joinable = {text for text, kind in zip(texts, types, strict=True) if kind == TokenType.NORMAL}
    merges: list[tuple[float, int, list[str]]] = []
    for i, text in enumerate(texts):
        if text in joinable:
            merges += [
                (-scores[i], i, [text[:cut], text[cut:]])
                for cut in range(1, len(text))
                if text[:cut] in joinable and text[cut:] in joinable
            ]
    return [pair for _, _, pair in sorted(merges, key=lambda merge: merge[:2])]
