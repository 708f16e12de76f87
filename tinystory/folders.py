"""Name the files and folders of a user: configuration, data, state and cache. It does not know what they contain.

No function makes a file or folder; each may be missing.
"""

import os
from pathlib import Path

__all__ = [
    "cache_folder",
    "config_file",
    "decoders_folder",
    "hashes_file",
    "history_file",
    "presets_file",
    "sessions_folder",
    "threads_file",
]


_NOWHERE = Path(os.devnull, "tinystory")


def _folder(kind: str) -> Path:
    """Return a folder of the user; a path at which nothing can be if the user has no home.

    Without a home, platformdirs gives a relative path. In the current directory, a stranger's files could be there.
    """
    # platformdirs is imported late, since the quickest commands do not need it.
    import platformdirs

    try:
        path: Path = getattr(platformdirs, f"user_{kind}_path")("tinystory")
    except (OSError, RuntimeError, KeyError):  # there is neither a HOME nor an entry for the user
        return _NOWHERE
    return path if path.is_absolute() else _NOWHERE


def config_file() -> Path:
    """Return the file of the user's settings."""
    return _folder("config") / "config.toml"


def presets_file() -> Path:
    """Return the file of the user's presets."""
    return _folder("config") / "presets.toml"


def decoders_folder() -> Path:
    """Return the folder of the user's own decoder files."""
    return _folder("config") / "decoders"


def sessions_folder() -> Path:
    """Return the folder of saved chats."""
    return _folder("data") / "sessions"


def history_file() -> Path:
    """Return the file with the lines that the user typed in chats."""
    return _folder("state") / "history"


def cache_folder() -> Path:
    """Return the folder of files that can be computed again."""
    return _folder("cache")


def threads_file() -> Path:
    """Return the file with the measured numbers of threads."""
    return cache_folder() / "threads.json"


def hashes_file() -> Path:
    """Return the file with the computed hashes of checkpoints."""
    return cache_folder() / "model_hash.json"
