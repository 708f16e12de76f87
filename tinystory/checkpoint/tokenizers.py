"""Load the tokenizer of a checkpoint, or find one by the name of a model, a file, a folder or a hub id."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tinystory.checkpoint import hub
from tinystory.checkpoint.header import CheckpointHeader
from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.checkpoint.tokens.special import (
    GENERATION_CONFIG,
    SpecialIds,
    configured_ids,
    named_tokens,
    read_optional,
    with_class_defaults,
    with_named_tokens,
)
from tinystory.errors import CheckpointError, UsageError, one_line
from tinystory.safe.reading import read_json_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

    from tinystory.text.tokenizer import Tokenizer

__all__ = ["find_tokenizer", "load_tokenizer", "special_ids", "tokenizer_warnings"]

_GPT2 = {"model_type": "gpt2"}


def load_tokenizer(header: CheckpointHeader) -> "Tokenizer":
    """Load the tokenizer of a checkpoint, without torch if the checkpoint has a tokenizer.json.

    A prompt of a model that tinystory has written begins with BOS. In all other models, it gets the special tokens of
    the tokenizer's template, as in transformers.

    Raises:
        CheckpointError: the checkpoint has no tokenizer, or a damaged one.
    """
    from tinystory.checkpoint.tokens.listed import with_clean_spaces, with_listed_tokens
    from tinystory.text.template import special_tokens_around
    from tinystory.text.tokenizer import Tokenizer

    path = header.directory / "tokenizer.json"
    if path.exists() and _is_ours(header):
        return Tokenizer.from_file(path, header.bos_id, header.eos_ids, n_rows=header.vocab_size)
    if path.exists():
        fast = with_listed_tokens(Tokenizer.from_file(path).fast, header.directory)
    else:
        from tinystory.checkpoint.tokens.vocab_files import load_vocab_files

        fast = load_vocab_files(header.directory, header.hf_config, header.vocab_size)
    fast = with_clean_spaces(fast, header.directory)
    _mark_special(fast, (token for token, _ in named_tokens(header.directory).values()))
    ids = special_ids(header, fast)
    return Tokenizer(fast, ids.bos_id, ids.eos_ids, header.vocab_size, special_tokens_around(fast))


def special_ids(header: CheckpointHeader, fast: "FastTokenizer") -> SpecialIds:
    """Return the tokens that begin and end a story of a checkpoint, and what names them.

    Args:
        header: the checkpoint.
        fast: its tokenizer.
    """
    from tinystory.text.tokenizer import END_OF_TEXT

    ids = header.special_ids
    if not _is_ours(header):
        if header.config is None:
            ids = with_class_defaults(ids, header.hf_config, header.vocab_size)
        ids = _with_tokens_of_tokenizer(ids, header.directory, fast)
    if ids.bos_id is None and not ids.eos_ids:
        end, origin = fast.token_to_id(END_OF_TEXT), f"the vocabulary, which has {END_OF_TEXT}"
        ids = ids.or_bos(end, origin).or_eos(end, origin)
    return ids


def _with_tokens_of_tokenizer(ids: SpecialIds, directory: Path, fast: "FastTokenizer") -> SpecialIds:
    """Return the ids; BOS is what the tokenizer puts before each text, and what is missing has the tokens it names."""
    from tinystory.text.template import special_tokens_around

    first = next(iter(special_tokens_around(fast)[0]), None)
    if first is not None and first != ids.bos_id:
        ids = replace(ids, bos_id=first, bos_from="the tokenizer, which puts it before each text")
    return with_named_tokens(ids, named_tokens(directory), fast)


def tokenizer_warnings(header: CheckpointHeader, tokenizer: "Tokenizer") -> tuple[str, ...]:
    """Return a warning if the tokenizer puts a token after each prompt that ends a story."""
    ends = [tokenizer.token_text(token_id) for token_id in tokenizer.suffix if token_id in tokenizer.eos_ids]
    if not ends:
        return ()
    return (
        f"{header.directory}: the tokenizer puts {' '.join(ends)}, which ends a story, after each prompt, as in "
        "transformers; if the stories do not go on from the prompt, remove it from post_processor in tokenizer.json",
    )


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
    if path.is_dir():
        return _tokenizer_of_folder(path)
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


def _tokenizer_of_folder(directory: Path) -> "Tokenizer":
    """Load the tokenizer of a folder, with the BOS and EOS that its files name; `<|endoftext|>` is what they lack.

    A folder without a tokenizer.json and without configs has the tokenizer of GPT-2.
    """
    from tinystory.checkpoint.tokens.listed import with_clean_spaces, with_listed_tokens
    from tinystory.checkpoint.tokens.vocab_files import is_plain_gpt2, load_vocab_files
    from tinystory.text.tokenizer import END_OF_TEXT, Tokenizer

    path, config = directory / "tokenizer.json", directory / "config.json"
    hf_config = read_json_object(config, raises=CheckpointError) if config.exists() else {}
    if path.exists():
        fast = with_listed_tokens(Tokenizer.from_file(path).fast, directory)
    elif is_plain_gpt2(directory, hf_config or _GPT2) and (directory / "vocab.json").exists():
        return Tokenizer.from_bpe_files(directory)
    else:
        fast = load_vocab_files(directory, hf_config or _GPT2, None)
    fast = with_clean_spaces(fast, directory)
    _mark_special(fast, (token for token, _ in named_tokens(directory).values()))
    ids, _ = configured_ids(hf_config, read_optional(directory / GENERATION_CONFIG), fast.get_vocab_size())
    ids = _with_tokens_of_tokenizer(ids, directory, fast)
    end = fast.token_to_id(END_OF_TEXT)
    ids = ids.or_bos(end, "").or_eos(end, "")
    return Tokenizer(fast, ids.bos_id, ids.eos_ids)


def _is_ours(header: CheckpointHeader) -> bool:
    """Return whether tinystory has written a checkpoint."""
    return (header.directory / "tinystory.json").exists()


def _mark_special(fast: "FastTokenizer", tokens: Iterable[str]) -> None:
    """Mark tokens of the vocabulary as special, so that they are no text of a story."""
    special = {token.content for token in fast.get_added_tokens_decoder().values() if token.special}
    fast.add_special_tokens([token for token in tokens if token not in special and fast.token_to_id(token) is not None])
