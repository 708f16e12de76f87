"""Make matplotlib figures without a display, and write them to files. Does not know what a figure shows."""

from pathlib import Path
from typing import Any

from tinystory.errors import TinystoryError
from tinystory.safe.writing import write_atomically

__all__ = ["new_figure", "save_figure"]

_DPI = 110


def new_figure(size: tuple[float, float]) -> Any:
    """Return an empty figure that needs no display.

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
    """Write a figure, atomically; the ending of the file, .png or .svg, is its format.

    Raises:
        TinystoryError: the file cannot be written; the old one is untouched.
    """
    try:
        write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=_DPI))
    except OSError as error:
        raise TinystoryError(f"cannot write {path}: {error.strerror or error}") from error
