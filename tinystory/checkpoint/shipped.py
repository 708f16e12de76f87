"""Find a model by its name: one of those inside the package, a folder, or a hub id."""

from pathlib import Path

from tinystory.checkpoint.directory import locate
from tinystory.checkpoint.header import CheckpointHeader, read_header

__all__ = ["DEFAULT_MODEL", "SHIPPED_MODELS", "find_model"]

# The package itself: this room is one folder below it.
_MODELS = Path(__file__).parent.parent / "models"

DEFAULT_MODEL = _MODELS / "default"

SHIPPED_MODELS = {"default": DEFAULT_MODEL} | {
    folder.name: folder for folder in sorted(_MODELS.iterdir()) if (folder / "config.json").is_file()
}
"""The folder of each model inside the package, by the name that users give."""


def find_model(name: str | None) -> tuple[str, CheckpointHeader]:
    """Find a checkpoint and check it, without importing torch.

    Args:
        name: a shipped model, a folder or a hub id; None is the default model.

    Returns:
        The name, "default" for None, and the checked header.

    Raises:
        CheckpointError: the checkpoint is missing or invalid.
    """
    name = name or "default"
    return name, read_header(SHIPPED_MODELS.get(name) or locate(name))
