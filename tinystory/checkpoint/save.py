"""Write a checkpoint directory so that a crash at any moment leaves the whole old one or the whole new one.

The files are written into a hidden directory beside the target, and synced to the disk. If the target does not exist,
one rename puts the new directory in place. If it exists, the old directory is first renamed to `.NAME.previous`.
Between these two renames there is no directory NAME; then `directory.follow_latest` reads the renamed one. A directory
cannot be replaced by one rename, so of `safe.writing`, which replaces single files, only the sync of folders is used.
"""

import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystory.checkpoint import hf_layout
from tinystory.checkpoint.directory import previous_of
from tinystory.checkpoint.vocabulary import added_above, vocabulary
from tinystory.dtypes import STORED_DTYPES
from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.safe.reading import parse_json_object
from tinystory.safe.writing import sync_folder

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.model.config import ModelConfig
    from tinystory.model.transformer import Transformer

__all__ = ["save_checkpoint"]

_OUR_FILES = re.compile(  # a directory with other files than these is never replaced
    r"(config|generation_config|tinystory|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|merges\.txt|README\.md|chat_template\.jinja"
)
_STALE_SECONDS = 3600


def save_checkpoint(
    directory: Path,
    model: "Transformer",
    tokenizer_json: str,
    *,
    bos_id: int | None,
    eos_ids: Collection[int],
    dtype: str = "float32",
    provenance: Mapping[str, Any],
    model_card: str | None = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a whole checkpoint directory in one step.

    Args:
        directory: the target; its parents are made. A directory that exists must be empty or a checkpoint; it is
            replaced.
        model: on any device; its weights must be finite.
        tokenizer_json: the content of tokenizer.json, BOS template included.
        bos_id: the token that a story begins with.
        eos_ids: the tokens that end a story.
        dtype: the dtype of the weights on disk: float32, bfloat16 or float16.
        provenance: the content of tinystory.json: where the weights come from.
        model_card: the content of README.md; None writes no such file.
        extra_files: the content of more files by name, such as a training state.

    Raises:
        UsageError: the dtype is unknown, or the directory has files that do not belong to a checkpoint.
        CheckpointError: the weights are not finite, or model, tokenizer and ids do not fit together.
        TinystoryError: the disk is full, or a directory cannot be written.
    """
    directory = Path(os.path.realpath(directory))
    extra_files = extra_files or {}
    _check_target(directory, extra_files)
    texts = _text_files(model.config, tokenizer_json, bos_id, eos_ids, dtype, provenance)
    if model_card is not None:
        texts["README.md"] = model_card
    contents = {name: text.encode() for name, text in texts.items()} | dict(extra_files)
    weights = _weights(model, dtype)
    partial = directory.with_name(f".{directory.name}.partial-{secrets.token_hex(4)}")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(directory)
        partial.mkdir()
        for name, content in contents.items():
            (partial / name).write_bytes(content)
        _write_weights(partial / "model.safetensors", weights)
        # safetensors lets only the owner read its file; the other files have the mode of the user's umask.
        (partial / "model.safetensors").chmod((partial / "config.json").stat().st_mode)
        for path in partial.iterdir():
            _sync(path)
        sync_folder(partial)
        _swap_in(partial, directory)
    except OSError as error:
        raise TinystoryError(
            f"cannot save {directory}: {error.strerror or error}; the old files are untouched"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_target(directory: Path, extra_files: Iterable[str]) -> None:
    """Refuse to replace a directory that is neither empty nor a checkpoint."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot save to {directory}: {error.strerror}") from error
    foreign = [name for name in names if not _OUR_FILES.fullmatch(name) and name not in extra_files]
    if names and (foreign or "config.json" not in names):
        raise UsageError(
            f"{directory} holds {', '.join((foreign or names)[:3])}, which a save would delete; "
            "choose a new directory or one that holds only a checkpoint"
        )


def _text_files(
    config: "ModelConfig",
    tokenizer_json: str,
    bos_id: int | None,
    eos_ids: Collection[int],
    dtype: str,
    provenance: Mapping[str, Any],
) -> dict[str, str]:
    """Return the content of each JSON file of a checkpoint, by name."""
    if dtype not in STORED_DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; a checkpoint has one of {', '.join(STORED_DTYPES)}")
    ids = {*eos_ids, *(() if bos_id is None else (bos_id,))}
    document = parse_json_object(tokenizer_json, "the tokenizer", raises=CheckpointError)
    tokens = vocabulary(document, "the tokenizer")
    above = added_above(document, tokens, config.vocab_size, "the tokenizer has the id")
    token_of = {token_id: token for token, token_id in tokens.items() if token not in above}
    if unknown := ids - token_of.keys():
        raise CheckpointError(f"the BOS or EOS id {min(unknown)} is not in the tokenizer")
    hf_config = hf_layout.to_hf_config(config, dtype, bos_id, eos_ids)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None if bos_id is None else token_of[bos_id],
        "eos_token": token_of[min(eos_ids)] if eos_ids else None,
        "model_max_length": config.max_seq_len,
        "clean_up_tokenization_spaces": False,
    }
    generation_config = {name: hf_config[name] for name in ("bos_token_id", "eos_token_id")}
    contents: dict[str, Mapping[str, Any]] = {
        "config.json": hf_config,
        "generation_config.json": generation_config,
        "tinystory.json": provenance,
        "tokenizer_config.json": tokenizer_config,
    }
    files = {name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in contents.items()}
    return files | {"tokenizer.json": tokenizer_json}


def _weights(model: "Transformer", dtype: str) -> "dict[str, Tensor]":
    """Return the tensors by Hugging Face's names, on the CPU; a tied head is left out."""
    import torch

    state = model.state_dict()
    weights = {}
    for layout in hf_layout.tensor_layout(model.config):
        tensor = hf_layout.pack(layout, state).detach().to("cpu", getattr(torch, dtype))
        if not all(math.isfinite(bound.item()) for bound in torch.aminmax(tensor)):
            raise CheckpointError(f"the weights {', '.join(layout.parameters)} are not finite in {dtype}; not saved")
        weights[layout.name] = tensor
    return weights


def _write_weights(path: Path, weights: "dict[str, Tensor]") -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:  # this is how safetensors reports a full disk
        raise OSError(0, " ".join(str(error).split())) from error


def _swap_in(partial: Path, directory: Path) -> None:
    """Rename the finished directory to its final name; delete the old directory, if there was one."""
    previous = previous_of(directory)
    existed = directory.exists()
    if existed:
        os.replace(directory, previous)
    try:
        os.replace(partial, directory)
    except BaseException:
        if existed:
            os.replace(previous, directory)
        raise
    try:
        sync_folder(directory.parent)
    except OSError as error:  # the old directory stays beside the new one
        raise TinystoryError(
            f"{directory} is saved, but a power cut may undo that: the disk reports {error.strerror or error}"
        ) from error
    shutil.rmtree(previous, ignore_errors=True)


def _clean_up(directory: Path) -> None:
    """Repair or remove the directories that a killed save has left."""
    previous = previous_of(directory)
    if previous.is_dir():
        if directory.exists():
            shutil.rmtree(previous)
        else:
            os.replace(previous, directory)
    for leftover in directory.parent.glob(f".{_glob_escaped(directory.name)}.partial-*"):
        if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)


def _glob_escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
