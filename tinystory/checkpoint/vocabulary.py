"""Read the tokens of a tokenizer.json or a vocab.json as plain data, without loading a tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinystory.errors import CheckpointError
from tinystory.safe.reading import read_json_object, shown

__all__ = ["added_above", "read_vocabulary", "vocabulary"]

MAX_TOKENIZER_BYTES = 64 * 2**20
_BYTES_PER_TOKEN = 1024
"""More than any real tokenizer file needs for a token, with merges and indentation."""


def read_vocabulary(directory: Path, vocab_size: int | None) -> tuple[dict[str, int], dict[str, int]]:
    """Read the tokens of a checkpoint's tokenizer, by their text.

    Args:
        directory: the checkpoint.
        vocab_size: the model's number of tokens; None if it is not known. It limits the size of the file.

    Returns:
        The ids of all tokens, empty if there is no tokenizer; and of those that `added_above` finds.

    Raises:
        CheckpointError: the file is not a tokenizer, is too large, or belongs to another model.
    """
    limit = MAX_TOKENIZER_BYTES
    if vocab_size is not None:
        limit = min(limit, 2**20 + _BYTES_PER_TOKEN * vocab_size)
    for name in ("tokenizer.json", "vocab.json"):
        path = directory / name
        if path.exists():
            document = read_json_object(path, limit, raises=CheckpointError)
            if name == "vocab.json":
                document = {"model": {"vocab": document}}
            tokens = vocabulary(document, str(path))
            if vocab_size is None:
                return tokens, {}
            return tokens, added_above(document, tokens, vocab_size, f"{path} has the token id")
    return {}, {}


def added_above(
    document: Mapping[str, Any], tokens: Mapping[str, int], vocab_size: int, complaint: str
) -> dict[str, int]:
    """Return the tokens whose ids the model does not have.

    Only added tokens may be such: people add `<pad>` or markers to a tokenizer and leave the model as it is. A token of
    the vocabulary itself shows that the tokenizer was made for a larger model.

    Args:
        document: the content of a tokenizer.json.
        tokens: its tokens, as from `vocabulary`.
        vocab_size: the model's number of tokens.
        complaint: the beginning of the error message; the id follows it.

    Raises:
        CheckpointError: a token of the vocabulary has such an id.
    """
    above = {token: token_id for token, token_id in tokens.items() if token_id >= vocab_size}
    if not above:
        return {}
    added = {str(token.get("content")) for token in document.get("added_tokens") or []}
    if strays := above.keys() - added:
        largest = max(above[token] for token in strays)
        raise CheckpointError(
            f"{complaint} {largest}, but the model's vocab_size is {vocab_size}; "
            "this tokenizer belongs to another model"
        )
    return above


def vocabulary(document: Mapping[str, Any], where: str) -> dict[str, int]:
    """Return the map from token to id in the content of a tokenizer.json, special tokens included.

    Args:
        document: the content.
        where: the name of the document in error messages.

    Raises:
        CheckpointError: the document has no vocabulary, or an id is not a whole number from 0.
    """
    model = document.get("model")
    listed = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(listed, list):  # Unigram: [[token, score], ...]; the index is the id
        listed = {_first(item, where): i for i, item in enumerate(listed)}
    if not isinstance(listed, dict):
        raise CheckpointError(f"{where} has no vocabulary under model.vocab; it is not a tokenizer")
    tokens: dict[str, Any] = dict(listed)
    added = document.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise CheckpointError(f"{where}: added_tokens is {shown(added)}; it must be a list of objects")
    tokens.update((str(token.get("content")), token.get("id")) for token in added)
    for token, token_id in tokens.items():
        if type(token_id) is not int or token_id < 0:
            raise CheckpointError(
                f"{where}: the id of {shown(token)} is {shown(token_id)}; it must be a whole number from 0"
            )
    return tokens


def _first(item: object, where: str) -> str:
    if not isinstance(item, list) or not item or not isinstance(item[0], str):
        raise CheckpointError(f"{where}: {shown(item)} stands in the vocabulary; it must be [token, score]")
    return item[0]
