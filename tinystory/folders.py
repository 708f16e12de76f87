"""Where a user's files lie: configuration, data, state and cache folders. What lies in them is known elsewhere."""

from pathlib import Path

__all__ = [
    "cache_folder",
    "compiled_folder",
    "config_file",
    "decoders_folder",
    "hashes_file",
    "history_file",
    "presets_file",
    "sessions_folder",
    "threads_file",
]


def _folder(kind: str) -> Path:
    # platformdirs is imported late: the quickest commands do not need it.
    import platformdirs

    path: Path = getattr(platformdirs, f"user_{kind}_path")("tinystory")
    return path


def config_file() -> Path:
    """Return the file of the user's settings; it need not exist."""
    return _folder("config") / "config.toml"


def presets_file() -> Path:
    """Return the file of the user's presets; it need not exist."""
    return _folder("config") / "presets.toml"


def decoders_folder() -> Path:
    """Return the folder of the user's own decoder files; it need not exist."""
    return _folder("config") / "decoders"


def sessions_folder() -> Path:
    """Return the folder of saved chats."""
    return _folder("data") / "sessions"


def history_file() -> Path:
    """Return the file of the lines that were typed in chats."""
    return _folder("state") / "history"


def cache_folder() -> Path:
    """Return the folder of what can be computed again."""
    return _folder("cache")


def threads_file() -> Path:
    """Return the file of the numbers of threads that were measured."""
    return cache_folder() / "threads.json"


def hashes_file() -> Path:
    """Return the file of the hashes of checkpoints that were computed."""
    return cache_folder() / "model_hash.json"


def compiled_folder() -> Path:
    """Return the folder of the libraries that were compiled for this computer."""
    return cache_folder() / "compiled"
