"""A model's identity: the SHA-256 of its weights, config and tokenizer, remembered while the files stay the same."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from tinystory.checkpoint.directory import follow_latest
from tinystory.checkpoint.safetensors_header import weight_files
from tinystory.errors import CheckpointError, TinystoryError
from tinystory.folders import hashes_file
from tinystory.safe.reading import read_json_object, regular_file_size

__all__ = ["file_stamp", "model_hash"]

_MAX_REMEMBERED = 200
_BLOCK_BYTES = 2**20


def model_hash(directory: Path, stamp: str = "") -> str:
    """SHA-256, in hex, over the name, size and bytes of each weight file, config.json and tokenizer.json.

    It is remembered in the user's cache folder as long as no file's size or times change; a cache that cannot
    be read or written is ignored.

    Args:
        directory: of the checkpoint.
        stamp: of its files when they were loaded; those that are there by now may be others. Empty takes any.

    Raises:
        CheckpointError: the directory is not a checkpoint, a file cannot be read, or is not the one of the stamp.
    """
    directory = follow_latest(directory)
    names = _names(directory)
    loaded, stamp = stamp, _stamp(directory, names)
    if loaded not in ("", stamp):
        raise _changed(directory)
    cache = _cache_file()
    known = _read_cache(cache)
    entry = known.get(str(directory))
    if isinstance(entry, list) and len(entry) == 2 and entry[0] == stamp and isinstance(entry[1], str):
        return entry[1]
    digest = hashlib.sha256()
    try:
        for name in names:
            path = directory / name
            digest.update(f"{name}\0{regular_file_size(path, raises=CheckpointError)}\0".encode())
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
    except OSError as error:
        raise CheckpointError(f"cannot read {directory}: {error.strerror}") from error
    if stamp != _stamp(directory, names):  # while they were read
        raise _changed(directory)
    known[str(directory)] = [stamp, digest.hexdigest()]
    _write_cache(cache, dict(list(known.items())[-_MAX_REMEMBERED:]))
    return digest.hexdigest()


def file_stamp(directory: Path) -> str:
    """What is another as soon as one of the hashed files is: their sizes and times.

    Raises:
        CheckpointError: the directory is not a checkpoint.
    """
    directory = follow_latest(directory)
    return _stamp(directory, _names(directory))


def _names(directory: Path) -> list[str]:
    """The files that are hashed, in order."""
    names = [*weight_files(directory), "config.json"]
    return [*names, "tokenizer.json"] if (directory / "tokenizer.json").exists() else names


def _changed(directory: Path) -> CheckpointError:
    return CheckpointError(f"the files in {directory} have changed since they were loaded; load the model again")


def _stamp(directory: Path, names: list[str]) -> str:
    return "|".join(_file_stamp(directory / name) for name in names)


def _file_stamp(path: Path) -> str:
    regular_file_size(path, raises=CheckpointError)  # raises for what is not a file
    status = path.stat()
    # ctime too: it also changes where a copy kept the old file's mtime
    return f"{path.name}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def _cache_file() -> Path | None:
    try:
        return hashes_file()
    except (OSError, RuntimeError):  # no home directory
        return None


def _read_cache(path: Path | None) -> dict[str, object]:
    try:
        return {} if path is None else dict(read_json_object(path))
    except TinystoryError:
        return {}


def _write_cache(path: Path | None, known: dict[str, object]) -> None:
    if path is None:
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(known), encoding="utf-8")
        os.replace(partial, path)
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
