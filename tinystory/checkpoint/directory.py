"""Find the directory of a checkpoint: from a path, a hub id, a training run, or after an interrupted save."""

import os
from pathlib import Path

from tinystory.checkpoint import hub
from tinystory.checkpoint.formats.foreign_files import told_file, told_folder
from tinystory.errors import CheckpointError
from tinystory.safe.reading import shown

__all__ = ["follow_latest", "locate", "previous_of"]


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
    if os.path.exists(path) or os.path.isdir(previous_of(path)):
        return follow_latest(path)
    looks_like_path = isinstance(model, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1
    if looks_like_path or (os.sep != "/" and os.sep in text):
        raise CheckpointError(f"there is no directory {_printable(path)}; give a checkpoint's directory or a hub id")
    if not hub.is_model_id(text):
        raise CheckpointError(f"{shown(text)} is neither a directory nor the id of a hub model (like org/name)")
    return follow_latest(hub.download(text))


def follow_latest(directory: Path) -> Path:
    """Return the directory that holds the files of a checkpoint, after following links.

    These are tried in order: `directory` itself, and its `latest` if it is the checkpoint folder of a training run. If
    one of them is missing because a save was killed between its two renames, the previous checkpoint is taken.

    Raises:
        CheckpointError: none of these has a config.json.
    """
    real = Path(os.path.realpath(directory))
    latest = Path(os.path.realpath(real / "latest"))
    candidates = [real]
    if not os.path.lexists(real):
        candidates.append(previous_of(real))
    if latest.is_relative_to(real):  # never follow a link that leads out of the run
        candidates.append(latest if os.path.lexists(latest) else previous_of(latest))
    for candidate in candidates:
        if os.path.lexists(candidate / "config.json"):
            return candidate
    raise CheckpointError(_not_a_checkpoint(directory))


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
    return f"{name} has no config.json, so it is neither a checkpoint nor a training run that has saved one"


def _printable(path: Path) -> str:
    return str(path) if str(path).isprintable() else shown(str(path))
