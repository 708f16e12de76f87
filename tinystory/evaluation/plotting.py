"""Make matplotlib figures without a display, and write them to files. Does not know what a figure shows."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinystory.errors import TinystoryError
from tinystory.safe.writing import write_atomically

__all__ = ["label_points", "new_figure", "save_figure"]

_DPI = 110
_LABEL_DISTANCES = (10, 15, 21, 28, 36, 46, 58)
"""Distances between a point and the middle of its label that are tried, in points of the figure."""
_LABEL_ANGLES = range(45, 405, 30)
_MARKER = 4
"""Half the width of a marker that no label may cover, in pixels."""


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


def label_points(axes: Any, points: Iterable[tuple[float, float, str]]) -> None:
    """Write a label beside each point, so that it covers no marker and no other label, with a thin line to its point.

    Call it when everything else of the figure is drawn. A label stays at its last place if no place is free.

    Args:
        axes: the axes of the points.
        points: x and y in the units of the data, and the label.
    """
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    points = list(points)
    axes.figure.canvas.draw()  # lays the axes out, so that sizes are known
    renderer = axes.figure.canvas.get_renderer()
    taken = [Bbox.from_extents(*(place - _MARKER), *(place + _MARKER)) for place in map(_pixels(axes), points)]
    for x, y, text in points:
        line = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0}
        label = axes.annotate(
            text, (x, y), (0, 0), textcoords="offset points", ha="center", va="center", fontsize=9, arrowprops=line
        )
        label.set_in_layout(False)
        for distance, angle in ((d, math.radians(a)) for d in _LABEL_DISTANCES for a in _LABEL_ANGLES):
            label.set_position((distance * math.cos(angle), distance * math.sin(angle)))
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer)  # that of an annotation has its line, too
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _pixels(axes: Any) -> Any:
    """Return a function that gives the place of a point in the figure."""
    return lambda point: axes.transData.transform(point[:2])


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure, atomically; the ending of the file, .png or .svg, is its format.

    Raises:
        TinystoryError: the file cannot be written; the old one is untouched.
    """
    try:
        write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=_DPI))
    except OSError as error:
        raise TinystoryError(f"cannot write {path}: {error.strerror or error}") from error
