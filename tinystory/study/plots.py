"""Draw the plots of a study: quality against variety, and surprise by position. Knows only the findings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinystory.evaluation.plotting import label_points, new_figure, save_figure

__all__ = ["plot_profiles", "plot_quality"]

_REAL = "black"
_COLOR, _NEAREST_COLOR = "#4878a8", "#c44e52"
_N_NEAREST = 3


def plot_quality(findings: Mapping[str, Any], path: Path) -> None:
    """Draw each decoder as a point with its intervals and its place in the table, in two views.

    Left: distinct-2 against the bits gap to real stories, where 0 is best. Right: self-BLEU against bits per token,
    which shows whether a decoder is more or less surprising than real stories.

    Args:
        findings: the result of `findings`.
        path: a .png or .svg file.

    Raises:
        TinystoryError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure((16, 7))
    grid = figure.add_gridspec(1, 3, width_ratios=(5, 5, 4))
    views = (
        ("distinct_2", "distinct-2: more varied →", "bits_gap", "bits per token, gap to real stories: better ↓"),
        ("self_bleu", "self-BLEU: less varied →", "bits_per_token", "bits per token: more surprising →"),
    )
    labels: list[tuple[Any, list[tuple[float, float, str]]]] = []
    for index, (x, x_label, y, y_label) in enumerate(views):
        axes = figure.add_subplot(grid[index])
        labels.append((axes, []))
        for place, row in enumerate(findings["decoders"], start=1):
            color = _NEAREST_COLOR if place == 1 or row["spec"] in findings["tied"] else _COLOR
            labels[-1][1].extend(_point(axes, row["measures"], x, y, color=color, label=str(place)))
        real = findings["real"]["measures"]
        labels[-1][1].extend(_point(axes, real, x, y, color=_REAL, marker="*", markersize=16, label="real"))
        for name, line in ((x, axes.axvline), (y, axes.axhline)):
            if real[name]["value"] is not None:
                line(real[name]["value"], color=_REAL, linewidth=0.7, linestyle=":")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.25)
    legend = figure.add_subplot(grid[2])
    legend.axis("off")
    lines = [f"{place:>2}  {row['spec']}" for place, row in enumerate(findings["decoders"], start=1)]
    legend.text(0, 1, "\n".join(["★  real stories", *lines]), va="top", family="monospace", fontsize=9)
    for axes, points in labels:
        label_points(axes, points)
    save_figure(figure, path)


def plot_profiles(findings: Mapping[str, Any], path: Path) -> None:
    """Draw surprise by position: real stories, the nearest decoders, and those with the least and the most surprise.

    Arguments and errors are those of `plot_quality`.
    """
    figure = new_figure((10, 6))
    axes = figure.add_subplot()
    for row in _few(findings["decoders"]):
        _line(axes, findings, row["profile"], linewidth=1.4, marker="o", markersize=3, label=row["spec"])
    _line(axes, findings, findings["real"]["profile"], color=_REAL, linewidth=2.5, label="real stories")
    axes.set_xlabel("tokens after the prompt")
    axes.set_ylabel("bits per token, under the model's own distribution")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
    save_figure(figure, path)


def _few(decoders: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the nearest decoders, and those with the fewest and the most bits per token; each once."""
    by_bits = sorted(
        (row for row in decoders if row["measures"]["bits_per_token"]["value"] is not None),
        key=lambda row: row["measures"]["bits_per_token"]["value"],
    )
    few = [*decoders[:_N_NEAREST], *by_bits[:1], *by_bits[-1:]]
    return list({row["spec"]: row for row in few}.values())


def _point(
    axes: Any, measures: Mapping[str, Any], x: str, y: str, label: str, **style: Any
) -> list[tuple[float, float, str]]:
    """Draw a point with its intervals, and return it with its label; nothing if one of its figures is unknown."""
    across, up = measures[x], measures[y]
    if across["value"] is None or up["value"] is None:
        return []
    # The figure itself may lie outside an interval of percentiles.
    bars = [[[max(0, axis["value"] - axis["low"])], [max(0, axis["high"] - axis["value"])]] for axis in (across, up)]
    style = {"marker": "o", "markersize": 5} | style
    axes.errorbar(across["value"], up["value"], xerr=bars[0], yerr=bars[1], elinewidth=0.6, alpha=0.85, **style)
    return [(across["value"], up["value"], label)]


def _line(axes: Any, findings: Mapping[str, Any], profile: Sequence[float | None], **style: Any) -> None:
    width = findings["bucket_tokens"]
    points = [(width * (index + 0.5), bits) for index, bits in enumerate(profile) if bits is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
