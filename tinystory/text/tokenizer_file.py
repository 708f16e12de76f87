"""Read a `tokenizer.json` that may come from a stranger, and check it before the `tokenizers` library reads it.

The library panics for some values, and for others it takes all memory and aborts, which nothing can catch. So kinds
and sizes are checked here. Whatever else is wrong, the library says itself. The module knows no text and no model.
"""

import base64
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tinystory.errors import CheckpointError, nearest
from tinystory.safe.reading import parse_json_object, read_bytes, regular_file_size, shown, without_mark

__all__ = ["MAX_TOKENIZER_BYTES", "check_tokenizer", "read_tokenizer_json"]

MAX_TOKENIZER_BYTES = 64 * 2**20
_MAX_TOKEN_ID = 2_000_000
"""The library makes lists that are as long as the largest id."""

_MOST_PARTS = 128
_DEEPEST = 8
_MOST_VALUES = 20_000
_LONGEST_TEXT = 1_000
_LONGEST_PATTERN = 10_000
_MOST_GROWTH = 2_048
"""A text may become this many times as long before its tokens are looked up, and a token when it becomes text."""
_LONGEST_REPLACEMENT = 256
"""The bytes that a precompiled table may put in the place of one character; Unicode itself has 33."""
_MOST_ADDED_BYTES = 4 * 2**20
_MOST_UNIGRAM_BYTES = 4 * 2**20
"""The library takes 70 bytes for a byte of added tokens, and 340 for a byte of the tokens of a Unigram model."""
_LONGEST_WORD = 1_000
"""WordPiece looks up each part of a word, and the time grows with the square of its length."""
_LARGEST_TABLE = 8 * 2**20
_BYTES_OF_A_CHARACTER = 4

_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")


_KINDS = {
    "normalizer": "BertNormalizer ByteLevel Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend Replace Sequence Strip "
    "StripAccents",
    "pre_tokenizer": "BertPreTokenizer ByteLevel CharDelimiterSplit Digits FixedLength Metaspace Punctuation Sequence "
    "Split UnicodeScripts Whitespace WhitespaceSplit",
    "post_processor": "BertProcessing ByteLevel RobertaProcessing Sequence TemplateProcessing",
    "decoder": "BPEDecoder ByteFallback ByteLevel CTC Fuse Metaspace Replace Sequence Strip WordPiece",
}
"""The kinds of parts that the library knows, by the name of the component."""

_INNER = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
"""The key of the parts of a sequence."""


_TABLE = "normalizer: Precompiled.precompiled_charsmap"


class _Wrong(Exception):
    """The reason why a tokenizer is refused, without its place."""


def read_tokenizer_json(path: Path) -> str:
    """Return the content of a tokenizer.json that the library can read.

    Raises:
        CheckpointError: the file is missing, too large, no tokenizer, or asks for more than any real tokenizer does.
    """
    if not os.path.lexists(path):
        raise CheckpointError(f"there is no {path}; a checkpoint needs a tokenizer.json")
    if regular_file_size(path, raises=CheckpointError) > MAX_TOKENIZER_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_TOKENIZER_BYTES} bytes, so it is no tokenizer")
    raw = read_bytes(path, MAX_TOKENIZER_BYTES, raises=CheckpointError)
    try:
        text = without_mark(raw).decode("utf-8")
    except ValueError as error:
        raise CheckpointError(f"{path} is not a tokenizer: it is not UTF-8") from error
    check_tokenizer(text, str(path))
    return text


def check_tokenizer(text: str, where: str) -> None:
    """Check the content of a tokenizer.json.

    Args:
        text: the content.
        where: the name of its place in error messages.

    Raises:
        CheckpointError: as `read_tokenizer_json`.
    """

    def not_json(problem: str) -> CheckpointError:
        return CheckpointError(f"{where} is not a tokenizer: {problem}")

    document = parse_json_object(text, where, raises=not_json)
    try:
        if "model" not in document:
            raise _Wrong("it has no model")
        _check_model(document.get("model"))
        parts = {name: _checked_parts(name, document.get(name)) for name in _KINDS}
        _check_added_tokens(document.get("added_tokens"), parts["normalizer"])
        _check_growth("normalizer and pre_tokenizer", parts["normalizer"] + parts["pre_tokenizer"])
        _check_growth("decoder", parts["decoder"])
    except RecursionError:
        raise CheckpointError(f"{where} is nested too deeply to be read") from None
    except _Wrong as error:
        raise CheckpointError(f"{where} is not a tokenizer: {error}") from error


# --- the vocabulary ---


def _check_model(model: Any) -> None:
    """Check kind, ids and merges."""
    if not isinstance(model, dict):
        raise _Wrong(f"model is {shown(model)}; it must be an object")
    kind = model.get("type", "BPE")  # old files do not say it
    if kind not in _MODELS:
        raise _Wrong(f"the model is {shown(kind)}; it must be one of {', '.join(_MODELS)}")
    vocabulary = model.get("vocab")
    for token, token_id in vocabulary.items() if isinstance(vocabulary, dict) else ():
        _check_id(token, token_id)
    if isinstance(vocabulary, dict):
        _check_ids_differ(vocabulary)
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        _check_text(f"model.{name}", model.get(name) or "", _LONGEST_TEXT)
    longest_word = model.get("max_input_chars_per_word", 0)
    if not isinstance(longest_word, int) or longest_word > _LONGEST_WORD:
        raise _Wrong(f"max_input_chars_per_word is {shown(longest_word)}; it must be at most {_LONGEST_WORD}")
    if isinstance(vocabulary, list):  # Unigram: [token, score]
        tokens = (item[0] for item in vocabulary if isinstance(item, list) and item)
        n_bytes = sum(_n_bytes(token) for token in tokens if isinstance(token, str))
        if n_bytes > _MOST_UNIGRAM_BYTES:
            raise _Wrong(f"the tokens of model.vocab have {n_bytes} bytes; at most {_MOST_UNIGRAM_BYTES} are allowed")
    if prefix := model.get("continuing_subword_prefix"):
        _check_prefixes(prefix, model.get("merges"))


def _check_ids_differ(vocabulary: Mapping[str, int]) -> None:
    """Refuse two tokens with one id: their text would be lost, and the model would be given other words."""
    if len(set(vocabulary.values())) == len(vocabulary):
        return
    first: dict[int, str] = {}
    for token, token_id in vocabulary.items():
        other = first.setdefault(token_id, token)
        if other != token:
            raise _Wrong(f"the tokens {shown(other)} and {shown(token)} have the same id, {token_id}")


def _check_id(token: Any, token_id: Any) -> None:
    if type(token_id) is not int or not 0 <= token_id <= _MAX_TOKEN_ID:
        raise _Wrong(
            f"the id of the token {shown(token)} is {shown(token_id)}; "
            f"it must be a whole number from 0 to {_MAX_TOKEN_ID}"
        )


def _check_prefixes(prefix: str, merges: Any) -> None:
    """Check that the second token of each merge has the prefix: the library cuts it off without a look."""
    for merge in merges if isinstance(merges, list) else ():
        pair = merge.split(" ") if isinstance(merge, str) else merge
        second = pair[-1] if isinstance(pair, list) and pair else ""
        if not isinstance(second, str) or not second.startswith(prefix):
            raise _Wrong(f"the merge {shown(merge)} does not fit to continuing_subword_prefix {shown(prefix)}")


def _check_added_tokens(added: Any, normalizer: list[dict[str, Any]]) -> None:
    """Check ids and sizes. The library searches for all these tokens at once, in the form that the normalizer gives."""
    growth = math.prod(map(_growth, normalizer))
    prepended = sum(_n_bytes(part["prepend"]) for part in normalizer if isinstance(part.get("prepend"), str))
    n_bytes = 0.0
    special: dict[str, Any] = {}
    for token in added if isinstance(added, list) else ():
        if not isinstance(token, dict):
            raise _Wrong(f"{shown(token)} stands in added_tokens; it must be an object")
        _check_id(token.get("content"), token.get("id"))
        content: Any = token.get("content")
        _check_text("a token of added_tokens", content, _LONGEST_TEXT)
        if special.setdefault(content, token.get("special")) != token.get("special"):
            raise _Wrong(f"{shown(content)} stands twice in added_tokens, once as a special token and once not")
        n_bytes += (_n_bytes(content) + prepended) * growth if token.get("normalized") else _n_bytes(content)
    if n_bytes > _MOST_ADDED_BYTES:
        raise _Wrong(f"added_tokens may have {n_bytes:.0f} bytes; at most {_MOST_ADDED_BYTES} are allowed")


# --- normalizer, pre_tokenizer, post_processor, decoder ---


def _checked_parts(name: str, component: Any) -> list[dict[str, Any]]:
    """Return the parts of a component in their order, without the sequences around them."""
    if component is None:
        return []
    n_values = sum(1 for _ in _values(component))
    if n_values > _MOST_VALUES:
        raise _Wrong(f"{name} has {n_values} values; at most {_MOST_VALUES} are allowed")
    parts = list(_flat(name, component, 1))
    if len(parts) > _MOST_PARTS:
        raise _Wrong(f"{name} has {len(parts)} parts; at most {_MOST_PARTS} are allowed")
    for part in parts:
        _check_part(name, part)
    return parts


def _flat(name: str, part: Any, depth: int) -> Iterator[dict[str, Any]]:
    kinds = _KINDS[name].split()
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        near = nearest(kind, kinds) if isinstance(kind, str) else None
        hint = f"did you mean {near}?" if near else "it must be an object with one of the types of the library"
        raise _Wrong(f"{name} has the part {shown(part if kind is None else kind)}, which is not known; {hint}")
    if kind != "Sequence":
        yield part
        return
    if depth == _DEEPEST:
        raise _Wrong(f"{name} has sequences in sequences; at most {_DEEPEST} are allowed")
    listed = part.get(_INNER[name])
    if not isinstance(listed, list):
        raise _Wrong(f"{name}: {_INNER[name]} is {shown(listed)}; it must be a list")
    for each in listed:
        yield from _flat(name, each, depth + 1)


def _values(value: Any) -> Iterator[Any]:
    """Return all values inside a value."""
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _values(inner)


def _check_part(name: str, part: Mapping[str, Any]) -> None:
    """Check the sizes of one part, and the values for which the library panics."""
    kind = part["type"]
    table = part.get("precompiled_charsmap")
    pattern = part.get("pattern")
    for key, value in part.items():
        if key not in ("precompiled_charsmap", "pattern"):
            for text in _values(value):
                _check_text(f"{name}: {kind}.{key}", text if isinstance(text, str) else "", _LONGEST_TEXT)
    if kind == "Precompiled":
        _check_table(table)
    elif kind in ("Replace", "Split"):
        _check_pattern(f"{name}: {kind}.pattern", pattern)
    elif kind == "FixedLength" and part.get("length", 1) == 0:
        raise _Wrong(f"{name}: FixedLength.length is 0; it must be at least 1")
    elif kind == "TemplateProcessing":
        _check_template(part.get("single"))


def _check_text(where: str, text: Any, longest: int) -> None:
    if not isinstance(text, str):
        raise _Wrong(f"{where} is {shown(text)}; it must be a text")
    if len(text) > longest:
        raise _Wrong(f"{where} has {len(text)} characters; at most {longest} are allowed")


def _check_pattern(where: str, pattern: Any) -> None:
    text = next(iter(pattern.values()), None) if isinstance(pattern, dict) else pattern
    _check_text(where, text, _LONGEST_PATTERN)
    if not text:
        raise _Wrong(f"{where} is empty; it must be a text or a regular expression to look for")


def _check_template(template: Any) -> None:
    """Check that a template has the text once: otherwise it would be repeated, or left out."""
    pieces = template if isinstance(template, list) else ()
    sequences = [piece["Sequence"] for piece in pieces if isinstance(piece, dict) and "Sequence" in piece]
    if len(sequences) != 1 or not isinstance(sequences[0], dict) or sequences[0].get("id") != "A":
        raise _Wrong("post_processor: TemplateProcessing.single must have the sequence A once, and no other")


def _check_table(table: Any) -> None:
    """Check the table of SentencePiece that a part "Precompiled" has."""
    _check_text(_TABLE, table, _LARGEST_TABLE)
    replacements = _replacements(table)
    try:
        b"\0".join(replacements).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Wrong(f"{_TABLE} has replacements that are not UTF-8") from error
    if max(map(len, replacements)) > _LONGEST_REPLACEMENT:
        raise _Wrong(f"{_TABLE} has a replacement of more than {_LONGEST_REPLACEMENT} bytes")


def _replacements(table: str) -> list[bytes]:
    """Return the replacements of a table. It has the size of a trie, the trie, and texts that end with zero bytes."""
    try:
        raw = base64.b64decode(table, validate=True)
    except ValueError as error:
        raise _Wrong(f"{_TABLE} is not base64") from error
    n_trie_bytes = struct.unpack_from("<I", raw)[0] if len(raw) >= 4 else 0
    if n_trie_bytes % 4 or not 4 <= n_trie_bytes <= len(raw) - 4:
        raise _Wrong(f"{_TABLE} is not a table of SentencePiece")
    return raw[4 + n_trie_bytes :].split(b"\0")


# --- growth ---


def _check_growth(where: str, parts: list[dict[str, Any]]) -> None:
    growth = math.prod(map(_growth, parts))
    if growth > _MOST_GROWTH:
        raise _Wrong(f"{where} may make a text {growth:.3g} times as long; at most {_MOST_GROWTH} times is allowed")


def _growth(part: Mapping[str, Any]) -> float:
    """Return how many times as long a part can make a long text; a part that only adds a few characters counts as 1."""
    match part:
        case {"type": "ByteLevel"}:
            return 2
        case {"type": "Metaspace"}:
            return _BYTES_OF_A_CHARACTER
        case {"type": "Precompiled", "precompiled_charsmap": table}:
            return max(map(len, _replacements(table)))
        case {"type": "Replace", "pattern": {"Regex": _}, "content": str(content)}:
            return 1 + _n_bytes(content)  # it may match the empty text before each character
        case {"type": "Replace", "pattern": {"String": str(text)}, "content": str(content)}:
            return max(1, _n_bytes(content) / _n_bytes(text))
    return 1


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
