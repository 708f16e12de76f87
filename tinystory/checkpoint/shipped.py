"""The models inside the package, by name; a model by its name, shipped or not."""

from pathlib import Path

from tinystory.checkpoint.directory import locate
from tinystory.checkpoint.header import CheckpointHeader, read_header

__all__ = ["DEFAULT_MODEL", "SHIPPED_MODELS", "find_model"]


_MODELS = Path(__file__).parent.parent / "models"


DEFAULT_MODEL = _MODELS / "default"


SHIPPED_MODELS = {"default": DEFAULT_MODEL} | {
    folder.name: folder for folder in sorted(_MODELS.iterdir()) if (folder / "config.json").is_file()
}
"""The models inside the package, by the names they have everywhere."""


def find_model(name: str | None) -> tuple[str, CheckpointHeader]:
    """Locate and check a checkpoint without importing torch: shipped, by its name, or a folder or hub id.

    Raises:
        CheckpointError: it is missing or invalid.
    """
    name = name or "default"
    return name, read_header(SHIPPED_MODELS.get(name) or locate(name))
