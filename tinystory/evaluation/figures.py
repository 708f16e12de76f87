"""XXX-DOC."""

from pathlib import Path
from typing import Any

from tinystory.errors import TinystoryError

__all__ = ["new_figure", "save_figure"]


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure that needs no display.

    Args:
        size: width and height in inches.

    Raises:
        TinystoryError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TinystoryError("plots need matplotlib: pip install 'tinystory[train]'") from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure; the suffix chooses the format.

    Raises:
        TinystoryError: it cannot be written; what was there is untouched.
    """
    temporary = path.with_name(f".{path.name}")
    try:
        figure.savefig(temporary, format=path.suffix[1:], dpi=110)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TinystoryError(f"cannot write {path}: {error.strerror or error}") from error
