"""Load the tokenizer of a checkpoint, or find one by the name of a model, a file, a folder or a hub id."""

from pathlib import Path
from typing import TYPE_CHECKING

from tinystory.checkpoint import hub
from tinystory.checkpoint.header import CheckpointHeader
from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.errors import CheckpointError, UsageError, one_line

if TYPE_CHECKING:
    from tinystory.text.tokenizer import Tokenizer

__all__ = ["find_tokenizer", "load_tokenizer"]


def load_tokenizer(header: CheckpointHeader) -> "Tokenizer":
    """Load the tokenizer of a checkpoint, without torch.

    Raises:
        CheckpointError: the checkpoint has no tokenizer, or a damaged one.
    """
    from tinystory.text.tokenizer import Tokenizer

    directory = header.directory
    if (directory / "tokenizer.json").exists():
        return Tokenizer.from_file(
            directory / "tokenizer.json", header.bos_id, header.eos_ids, n_rows=header.vocab_size
        )
    if (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        return Tokenizer.from_bpe_files(directory, n_rows=header.vocab_size)
    raise CheckpointError(f"{directory} has no tokenizer.json (nor vocab.json with merges.txt)")


def find_tokenizer(name: str) -> "Tokenizer":
    """Find and load a tokenizer, such as the one of a new run.

    Args:
        name: a shipped model, a tokenizer.json, a folder with a tokenizer.json or with vocab.json and merges.txt,
            or a hub id such as "gpt2".

    Raises:
        CheckpointError: the tokenizer is damaged.
        UsageError: there is no such file or folder, and the hub has no such tokenizer or cannot be reached.
    """
    from tinystory.text.tokenizer import Tokenizer

    path = SHIPPED_MODELS.get(name) or Path(name)
    if path.exists() and not path.is_dir():
        return Tokenizer.from_file(path)
    if (path / "tokenizer.json").exists():
        return Tokenizer.from_file(path / "tokenizer.json")
    if path.is_dir():
        return Tokenizer.from_bpe_files(path)
    if not hub.is_model_id(name):
        raise UsageError(f"there is no tokenizer file or folder {name}, and it is not the name of one on the hub")
    from tinystory.text.library_calls import is_failure

    try:
        return _from_hub(name, only_cache=True)  # without the hub, the library would try for a minute before its cache
    except BaseException as error:  # the hub client, transformers and a slow tokenizer raise errors of different kinds
        if not is_failure(error):
            raise
    if problem := hub.tokenizer_problem(name):
        raise UsageError(problem)
    try:
        return _from_hub(name, only_cache=False)
    except BaseException as error:
        if not is_failure(error):
            raise
        reason = one_line(error)
        raise UsageError(f"{name} is no tokenizer file or folder, and the hub gave none: {reason}") from error


def _from_hub(name: str, *, only_cache: bool) -> "Tokenizer":
    from transformers import AutoTokenizer

    from tinystory.text.tokenizer import Tokenizer

    hf_tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=only_cache)
    eos_ids = frozenset(i for i in (hf_tokenizer.eos_token_id,) if i is not None)
    return Tokenizer(hf_tokenizer.backend_tokenizer, hf_tokenizer.bos_token_id, eos_ids)
