"""Find the directory of a checkpoint: from a path, a hub id, a training run, or after an interrupted save.

A run names its latest and its best checkpoint in `latest.json` and `best.json`. Where the system has links, `latest`
and `best` are links to them, too. Older runs have only the links.
"""

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from tinystory.checkpoint import hub
from tinystory.checkpoint.formats.foreign_files import told_file, told_folder
from tinystory.errors import CheckpointError, UnreadableFile
from tinystory.safe.reading import read_json_object, shown
from tinystory.safe.writing import replace_link, write_atomically

__all__ = ["STEP_NAME", "follow_latest", "locate", "name_checkpoint", "named_checkpoint", "previous_of"]

STEP_NAME = re.compile(r"step-(\d+)")
"""The name of the folder of a checkpoint in a run, with its step."""


def locate(model: str | Path) -> Path:
    """Return the directory of the model that a user named.

    Args:
        model: a local directory, or the id of a model on the Hugging Face hub (`org/name` or `name`). A hub model
            that is not in the local cache is downloaded. A name that looks like a path is never sent to the hub: one
            that exists, begins with ".", "/" or "~", or has more than one slash.

    Raises:
        CheckpointError: there is no such directory or hub model, or the hub cannot be reached.
    """
    text = str(model)
    path = Path(os.path.expanduser(text))
    if os.path.exists(path) or os.path.isdir(previous_of(path)) or named_checkpoint(path.parent, path.name):
        return follow_latest(path)
    looks_like_path = isinstance(model, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1
    if looks_like_path or (os.sep != "/" and os.sep in text):
        raise CheckpointError(f"there is no directory {_printable(path)}; give a checkpoint's directory or a hub id")
    if not hub.is_model_id(text):
        raise CheckpointError(f"{shown(text)} is neither a directory nor the id of a hub model (like org/name)")
    return follow_latest(hub.download(text))


def follow_latest(directory: Path) -> Path:
    """Return the directory that holds the files of a checkpoint, after following links.

    These are tried in order: `directory` itself, then what `latest.json` or `latest` in it names if it is the folder of
    a training run, and for `RUN/latest` and `RUN/best` without links what `latest.json` and `best.json` name. If one
    of them is missing because a save was killed between its two renames, the previous checkpoint is taken.

    Raises:
        CheckpointError: none of these has a config.json.
    """
    real = Path(os.path.realpath(directory))
    latest = named_checkpoint(real, "latest") or Path(os.path.realpath(real / "latest"))
    candidates = [real]
    if not os.path.lexists(real):
        candidates.append(previous_of(real))
        if named := named_checkpoint(real.parent, real.name):
            candidates += [named, previous_of(named)]
    if latest.is_relative_to(real):  # never follow a link that leads out of the run
        candidates.append(latest if os.path.lexists(latest) else previous_of(latest))
    for candidate in candidates:
        if os.path.lexists(candidate / "config.json"):
            return candidate
    raise CheckpointError(_not_a_checkpoint(directory))


def named_checkpoint(run: Path, name: str) -> Path | None:
    """Return the checkpoint that `NAME.json` in the folder of a run names; None if there is no such file or folder.

    Args:
        run: the folder of the run.
        name: `latest` or `best`; any other name has no checkpoint.
    """
    if name not in ("latest", "best"):
        return None
    try:
        target = read_json_object(run / f"{name}.json", 4096).get("checkpoint")
    except (UnreadableFile, ValueError):
        return None
    if not isinstance(target, str) or not STEP_NAME.fullmatch(target):  # never a path that leads out of the run
        return None
    checkpoint = run / target
    return checkpoint if os.path.isdir(checkpoint) or os.path.isdir(previous_of(checkpoint)) else None


def name_checkpoint(run: Path, name: str, target: str) -> None:
    """Write `NAME.json` in the folder of a run, and make `NAME` a link where the system has links.

    A folder `NAME` is the copy that a program has made of the link; it is replaced.

    Args:
        run: the folder of the run.
        name: `latest` or `best`.
        target: the name of a checkpoint in the folder, as in `STEP_NAME`.

    Raises:
        OSError: the file cannot be written; the old one is untouched.
    """
    write_atomically(run / f"{name}.json", (json.dumps({"checkpoint": target}) + "\n").encode())
    link = run / name
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link, ignore_errors=True)
    try:
        replace_link(link, target)
    except (OSError, NotImplementedError):  # no links here; what is left would be an older checkpoint
        with suppress(OSError):
            link.unlink(missing_ok=True)


def previous_of(directory: Path) -> Path:
    """Return the path to which a save moves the old directory before it moves the new one in."""
    return directory.with_name(f".{directory.name}.previous")


def _not_a_checkpoint(directory: Path) -> str:
    """Return the error message for a path that is not a checkpoint."""
    name = _printable(directory)
    if os.path.isfile(directory):
        return f"{name} {told_file(directory)}"
    try:
        names = os.listdir(directory)
    except OSError as error:
        return f"cannot read the checkpoint directory {name}: {error.strerror}"
    if not names:
        return f"{name} is empty; a checkpoint holds config.json, model.safetensors and tokenizer.json"
    if told := told_folder(directory, names):
        return f"{name} {told}"
    if inner := _checkpoint_below(directory, names):
        return f"{name} has no config.json, but a folder in it has one; give {_printable(inner)}"
    return f"{name} has no config.json, so it is neither a checkpoint nor a training run that has saved one"


def _checkpoint_below(directory: Path, names: list[str]) -> Path | None:
    """Return a folder with a config.json that somebody may have meant: an unpacked archive, or the cache of the hub."""
    with suppress(OSError):
        if "snapshots" in names:
            directory = directory / "snapshots"
            names = os.listdir(directory)
        return next(
            (directory / name for name in sorted(names) if os.path.isfile(directory / name / "config.json")), None
        )
    return None


def _printable(path: Path) -> str:
    return str(path) if str(path).isprintable() else shown(str(path))
