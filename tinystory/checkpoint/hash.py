"""Identify a model by the SHA-256 of its weights, config and tokenizer.

A hash is remembered in the user's cache folder for as long as the files stay the same.
"""

import contextlib
import hashlib
import json
from pathlib import Path

from tinystory.checkpoint.directory import follow_latest
from tinystory.checkpoint.safetensors_header import weight_files
from tinystory.errors import CheckpointError, TinystoryError
from tinystory.folders import hashes_file
from tinystory.safe.reading import open_regular, read_json_object, regular_file_size
from tinystory.safe.writing import write_atomically

__all__ = ["file_stamp", "model_hash"]

_MAX_REMEMBERED = 200
_BLOCK_BYTES = 2**20


def model_hash(directory: Path, stamp: str = "") -> str:
    """Return the SHA-256, in hex, of the name, size and bytes of each weight file, config.json and tokenizer.json.

    Other files of a vocabulary (vocab.json, merges.txt, tokenizer_config.json) are not in the hash, so that the hashes
    in saved sessions stay valid. A replay notices another vocabulary because the tokens then spell another text.

    A hash from the cache is used if neither size nor time of any file has changed. A cache that cannot be read or
    written is ignored.

    Args:
        directory: a checkpoint, or the checkpoint folder of a training run.
        stamp: the result of `file_stamp` when the files were loaded. If it is empty, the files are hashed as they are.

    Raises:
        CheckpointError: the directory is not a checkpoint, a file cannot be read, or the files have changed since
            the stamp was taken.
    """
    directory = follow_latest(directory)
    names = _hashed_files(directory)
    stamp_now = _stamp(directory, names)
    if stamp not in ("", stamp_now):
        raise _changed(directory)
    cache_file = hashes_file()
    cache = _read_cache(cache_file)
    entry = cache.get(str(directory))
    if isinstance(entry, list) and len(entry) == 2 and entry[0] == stamp_now and isinstance(entry[1], str):
        return entry[1]
    digest = hashlib.sha256()
    try:
        for name in names:
            path = directory / name
            digest.update(f"{name}\0{regular_file_size(path, raises=CheckpointError)}\0".encode())
            with open_regular(path, raises=CheckpointError) as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
    except OSError as error:
        raise CheckpointError(f"cannot read {directory}: {error.strerror}") from error
    if stamp_now != _stamp(directory, names):  # they changed while they were read
        raise _changed(directory)
    cache[str(directory)] = [stamp_now, digest.hexdigest()]
    _write_cache(cache_file, dict(list(cache.items())[-_MAX_REMEMBERED:]))
    return digest.hexdigest()


def file_stamp(directory: Path) -> str:
    """Return the sizes and times of the hashed files as text; it differs as soon as one of them is replaced.

    Raises:
        CheckpointError: the directory is not a checkpoint.
    """
    directory = follow_latest(directory)
    return _stamp(directory, _hashed_files(directory))


def _hashed_files(directory: Path) -> list[str]:
    """Return the names of the files that are hashed, in order."""
    names = [*weight_files(directory), "config.json"]
    return [*names, "tokenizer.json"] if (directory / "tokenizer.json").exists() else names


def _changed(directory: Path) -> CheckpointError:
    return CheckpointError(f"the files in {directory} have changed since they were loaded; load the model again")


def _stamp(directory: Path, names: list[str]) -> str:
    return "|".join(_file_stamp(directory / name) for name in names)


def _file_stamp(path: Path) -> str:
    regular_file_size(path, raises=CheckpointError)  # refuses everything except a regular file
    status = path.stat()
    # ctime as well: it changes even when a copy keeps the mtime of the old file.
    return f"{path.name}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def _read_cache(path: Path) -> dict[str, object]:
    try:
        return dict(read_json_object(path))
    except TinystoryError:
        return {}


def _write_cache(path: Path, cache: dict[str, object]) -> None:
    with contextlib.suppress(OSError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(cache).encode())
