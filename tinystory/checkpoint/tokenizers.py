"""The tokenizer of a checkpoint, or one by the name of a model, a file, a folder or a hub id."""

from pathlib import Path
from typing import TYPE_CHECKING

from tinystory.checkpoint.header import CheckpointHeader
from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.errors import CheckpointError, UsageError, one_line

if TYPE_CHECKING:
    from tinystory.text.tokenizer import Tokenizer

__all__ = ["find_tokenizer", "load_tokenizer"]


def load_tokenizer(header: CheckpointHeader) -> "Tokenizer":
    """A checkpoint's vocabulary; torch is not needed.

    Raises:
        CheckpointError: it has none, or a damaged one.
    """
    from tinystory.text.tokenizer import Tokenizer

    directory = header.directory
    if (directory / "tokenizer.json").exists():
        return Tokenizer.from_file(directory / "tokenizer.json", header.bos_id, header.eos_ids)
    if (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        return Tokenizer.from_bpe_files(directory)
    raise CheckpointError(f"{directory} has no tokenizer.json (nor vocab.json with merges.txt)")


def find_tokenizer(name: str) -> "Tokenizer":
    """A run's vocabulary.

    Args:
        name: the name of a shipped model, a tokenizer.json, a folder with one or with vocab.json and
            merges.txt, or a hub name such as "gpt2".

    Raises:
        CheckpointError: it is damaged.
        UsageError: nothing is there, and the hub has none of that name or is out of reach.
    """
    from tinystory.text.tokenizer import Tokenizer

    path = SHIPPED_MODELS.get(name) or Path(name)
    if path.is_file():
        return Tokenizer.from_file(path)
    if (path / "tokenizer.json").exists():
        return Tokenizer.from_file(path / "tokenizer.json")
    if path.is_dir():
        return Tokenizer.from_bpe_files(path)
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        eos_ids = frozenset(i for i in (theirs.eos_token_id,) if i is not None)
        return Tokenizer(theirs.backend_tokenizer, theirs.bos_token_id, eos_ids)
    except Exception as error:  # the hub client, transformers and a slow tokenizer each fail in their own way
        reason = one_line(error)
        raise UsageError(f"{name} is no tokenizer file or folder, and the hub gave none: {reason}") from error
