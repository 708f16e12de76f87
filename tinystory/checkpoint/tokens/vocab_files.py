"""Load the tokenizer of a folder that has no tokenizer.json, but the files of older versions of transformers.

A vocabulary and merges do not say how a text is cut into words. For GPT-2 this is known. For all others, the config
names a class of transformers, which builds the tokenizer. What nobody knows is refused.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from tinystory.checkpoint.tokens.special import ADDED_TOKENS, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG, read_optional
from tinystory.errors import CheckpointError
from tinystory.safe.reading import read_json_object, regular_file_size, shown
from tinystory.text.library_calls import library_call
from tinystory.text.tokenizer import END_OF_TEXT, byte_level_bpe

__all__ = ["is_plain_gpt2", "load_vocab_files"]

_FOREIGN_FILES = {
    "tokenizer.model": "a SentencePiece or tiktoken model",
    "spiece.model": "a SentencePiece model",
    "sentencepiece.bpe.model": "a SentencePiece model",
    "sentencepiece.model": "a SentencePiece model",
    "spm.model": "a SentencePiece model",
    "tekken.json": "the vocabulary of Mistral's own tokenizer",
    "tiktoken.model": "a tiktoken vocabulary",
}
"""What else may be the only file of a tokenizer, and what it is."""

_FILES = ("vocab.json", "merges.txt", "vocab.txt", TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS)
_PAIR = {"vocab.json": "merges.txt", "merges.txt": "vocab.json"}
_CONVERT = "make a tokenizer.json with transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
_MAX_VOCAB_BYTES = 64 * 2**20
_CLASS_NAME = re.compile(r"\w{1,80}Tokenizer(Fast)?")


def load_vocab_files(directory: Path, hf_config: Mapping[str, Any], vocab_size: int | None) -> FastTokenizer:
    """Load the tokenizer of a folder without a tokenizer.json.

    Args:
        directory: the folder.
        hf_config: the content of its config.json.
        vocab_size: the number of tokens of the model; None if it is not known.

    Raises:
        CheckpointError: there are no files of a tokenizer, they are damaged, or they do not say how text is cut.
    """
    pair = (directory / "vocab.json").exists() and (directory / "merges.txt").exists()
    if not pair and not (directory / "vocab.txt").exists():
        raise _no_tokenizer(directory)
    for name in _FILES:
        if (directory / name).exists():
            regular_file_size(directory / name, raises=CheckpointError)
    if pair and is_plain_gpt2(directory, hf_config):
        fast = byte_level_bpe(directory)
        if fast.token_to_id(END_OF_TEXT) is not None:
            fast.add_special_tokens([END_OF_TEXT])
        return fast
    _check_class(directory, hf_config)
    return _within_model(_built_by_transformers(directory), vocab_size)


def is_plain_gpt2(directory: Path, hf_config: Mapping[str, Any]) -> bool:
    """Return whether nothing says that a vocabulary is used in another way than GPT-2's."""
    others = (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS)
    return (
        hf_config.get("model_type") == "gpt2"
        and hf_config.get("tokenizer_class") in (None, "GPT2Tokenizer", "GPT2TokenizerFast")
        and not any((directory / name).exists() for name in others)
    )


def _check_class(directory: Path, hf_config: Mapping[str, Any]) -> None:
    """Check that the configs name a class of transformers that builds a tokenizer from the files that are there.

    Raises:
        CheckpointError: no config names one, it needs code of its own, or it is for other files.
    """
    tokenizer_config = read_optional(directory / TOKENIZER_CONFIG)
    named: Any = tokenizer_config.get("tokenizer_class") or hf_config.get("tokenizer_class")
    if named is None:
        named = _class_of_model_type(hf_config.get("model_type"))
    if tokenizer_config.get("auto_map") and _class(named) is None:
        raise CheckpointError(
            f"{directory} has no tokenizer.json, and its tokenizer needs code of its own, which tinystory does not run"
        )
    if not _builds_from_files(named, directory):
        what = "no config names" if named is None else f"{shown(named)} is not"
        raise CheckpointError(
            f"{directory} has no tokenizer.json, and {what} a tokenizer class of transformers for the files that are "
            "there, so it is not known how a text is cut into tokens; write the right tokenizer_class into "
            "tokenizer_config.json"
        )


def _class(name: object) -> type | None:
    """Return a class of transformers that is built on the library `tokenizers`; None if it is no such name."""
    if not isinstance(name, str) or not _CLASS_NAME.fullmatch(name):
        return None
    import transformers

    for spelling in (name, name.removesuffix("Fast") + "Fast", name.removesuffix("Fast")):
        found = getattr(transformers, spelling, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerFast):
            return found
    return None


def _builds_from_files(name: object, directory: Path) -> bool:
    """Return whether a class reads other files than tokenizer.json, and the folder has all of them."""
    names: Mapping[str, str] = getattr(_class(name), "vocab_files_names", {})
    files = [file for key, file in names.items() if key != "tokenizer_file"]
    return bool(files) and all((directory / file).exists() for file in files)


def _class_of_model_type(model_type: object) -> object:
    """Return the name of the class that transformers takes for an architecture; None if it has none of its own."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    names: Any = TOKENIZER_MAPPING_NAMES.get(str(model_type))
    name = names if isinstance(names, str) else next(filter(None, names or ()), None)  # version 4 has pairs
    return name if _class(name) is not None else None


def _built_by_transformers(directory: Path) -> FastTokenizer:
    """Let transformers build a tokenizer from the files of a folder, without code from it and without the network."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        with library_call(f"{directory}: transformers cannot build the tokenizer"):
            built: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
            fast = built.backend_tokenizer
    finally:
        logging.set_verbosity(verbosity)
    if not isinstance(fast, FastTokenizer) or not _has_all_tokens(fast, directory):
        raise CheckpointError(f"{directory}: transformers does not use all of the vocabulary; {_CONVERT}")
    return fast


def _has_all_tokens(fast: FastTokenizer, directory: Path) -> bool:
    """Return whether each token of the vocabulary file has its id."""
    if not (directory / "vocab.json").exists():
        lines = (directory / "vocab.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return len(set(lines)) <= fast.get_vocab_size()
    vocab = read_json_object(directory / "vocab.json", _MAX_VOCAB_BYTES, raises=CheckpointError)
    return all(fast.token_to_id(token) == token_id for token, token_id in vocab.items())


def _within_model(fast: FastTokenizer, vocab_size: int | None) -> FastTokenizer:
    """Return the tokenizer without added tokens above the vocabulary of the model, which transformers invents."""
    added = fast.get_added_tokens_decoder()
    if vocab_size is None or all(token_id < vocab_size for token_id in added):
        return fast
    document = json.loads(fast.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] < vocab_size]
    return FastTokenizer.from_str(json.dumps(document))


def _no_tokenizer(directory: Path) -> CheckpointError:
    """Return the error for a folder without files that can be read; it says what is there."""
    here = f"{directory} has no tokenizer.json"
    tiktoken = {path.name: "a tiktoken vocabulary" for path in sorted(directory.glob("*.tiktoken"))}
    for name, what in (_FOREIGN_FILES | tiktoken).items():
        if (directory / name).exists():
            return CheckpointError(f"{here}, only {name}, {what}; {_CONVERT}")
    for name, other in _PAIR.items():
        if (directory / name).exists():
            return CheckpointError(f"{here}, and {name} without {other}; the download or the copy is incomplete")
    return CheckpointError(f"{here} (nor vocab.json with merges.txt)")
