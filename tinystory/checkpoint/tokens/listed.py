"""Apply what the files beside a tokenizer.json say about added tokens and about the text, as transformers does."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders
from tokenizers.models import BPE

from tinystory.checkpoint.tokens.special import (
    ADDED_TOKENS,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    named_tokens,
    read_optional,
)
from tinystory.errors import CheckpointError
from tinystory.safe.reading import shown
from tinystory.text.library_calls import library_call
from tinystory.text.tokenizer_file import check_tokenizer

__all__ = ["with_clean_spaces", "with_listed_tokens"]

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
"""The texts that lose their first space, or the spaces around them, in this order."""

_NO_PREFIX = "\0"
"""It begins no token, so that each one gets a space before it."""


def with_listed_tokens(fast: FastTokenizer, directory: Path) -> FastTokenizer:
    """Return the tokenizer with the added tokens that other files of its folder list and tokenizer.json lacks.

    They stand under added_tokens_decoder in tokenizer_config.json or, if it has no such list, in added_tokens.json. As
    in transformers, they get the next free ids in the order of their ids.

    Raises:
        CheckpointError: a list is damaged, or too large.
    """
    known = fast.get_vocab()
    missing = [token for token in _listed_tokens(directory) if token["content"] not in known]
    if not missing:
        return fast
    document = json.loads(fast.to_str())
    document["added_tokens"] += sorted(missing, key=lambda token: token["id"])
    text = json.dumps(document)
    check_tokenizer(text, f"{directory} with the added tokens of its other files")
    with library_call(f"{directory}: the added tokens cannot be used"):
        return FastTokenizer.from_str(text)


def with_clean_spaces(fast: FastTokenizer, directory: Path) -> FastTokenizer:
    """Return the tokenizer; its text has no spaces before `.`, `'s` and so on if tokenizer_config.json asks for that.

    As in transformers, `clean_up_tokenization_spaces` does not count for BPE, where such spaces are part of the text.
    """
    if read_optional(directory / TOKENIZER_CONFIG).get("clean_up_tokenization_spaces") is not True:
        return fast
    if isinstance(fast.model, BPE):
        return fast
    joined = fast.decoder or decoders.WordPiece(prefix=_NO_PREFIX, cleanup=False)
    replaced = [decoders.Replace(text, text.strip()) for text in _CLEANED]
    fast.decoder = decoders.Sequence([joined, decoders.Fuse(), *replaced])
    return fast


def _listed_tokens(directory: Path) -> list[dict[str, Any]]:
    """Return the added tokens that the files list, in the form of tokenizer.json."""
    config = read_optional(directory / TOKENIZER_CONFIG)
    if "added_tokens_decoder" in config:
        where, listed = f"{directory / TOKENIZER_CONFIG}: added_tokens_decoder", config["added_tokens_decoder"]
        if not isinstance(listed, dict) or not all(isinstance(token, dict) for token in listed.values()):
            raise CheckpointError(f"{where} is {shown(listed)}; it must be an object of objects")
        return [_token(where, key, token.get("content"), token) for key, token in listed.items()]
    special = _special_names(directory)
    where = str(directory / ADDED_TOKENS)
    return [
        _token(where, token_id, content, {"special": content in special, "normalized": content not in special})
        for content, token_id in read_optional(directory / ADDED_TOKENS).items()
    ]


def _special_names(directory: Path) -> set[str]:
    """Return the special tokens that the files name, those without a role included."""
    names = {token for token, _ in named_tokens(directory).values()}
    for file in (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP):
        content = read_optional(directory / file)
        for key in ("additional_special_tokens", "extra_special_tokens"):
            others = content.get(key)
            for token in others if isinstance(others, list) else ():
                names.add(str(token.get("content")) if isinstance(token, dict) else str(token))
    return names


def _token(where: str, token_id: Any, content: Any, flags: dict[str, Any]) -> dict[str, Any]:
    """Return one added token in the form of tokenizer.json.

    Raises:
        CheckpointError: it is no text with a whole number.
    """
    number = int(token_id) if isinstance(token_id, str) and token_id.isdecimal() else token_id
    if type(number) is not int or not isinstance(content, str) or not content:
        raise CheckpointError(
            f"{where} has {shown(content)} with the id {shown(token_id)}; it must be a text with a whole number"
        )
    return {"id": number, "content": content} | {flag: flags.get(flag) is True for flag in _FLAGS}
