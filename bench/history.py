"""The history of the benchmark: a file with one JSON object for each run, and a picture of the ratios."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinystory.errors import TinystoryError, UsageError
from tinystory.evaluation.plotting import new_figure, save_figure
from tinystory.training.plotting import read_metrics

__all__ = ["append", "curves", "plot", "read"]

BenchRecord = Mapping[str, Any]

MOST_BARS = 100
MOST_LINES = 12
"""The most lines in the picture of a part; more could not be told apart."""


def append(path: Path, record: BenchRecord) -> None:
    """Add a run to a file.

    Raises:
        TinystoryError: the file cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    except OSError as error:
        raise TinystoryError(f"cannot write {path}: {error.strerror or error}") from error


def read(path: Path) -> list[dict[str, Any]]:
    """Return the runs of a file, oldest first, or none without a file. A line cut off by a crash is left out."""
    if not path.exists():
        return []
    return [record for record in read_metrics(path) if "measurements" in record]


def label(measurement: BenchRecord) -> str:
    """Return the name of a measurement, the same in every run."""
    model = f"{measurement['model']}: " if measurement["model"] else ""
    return f"{model}{measurement['what']}, {measurement['unit']}, beside {measurement['peer']}"


def curves(records: Sequence[BenchRecord]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return the median ratios over the runs, by part and by name of the measurement.

    The name includes the number of threads, because runs with different numbers cannot be compared.

    Returns:
        For each name, points of the number of a run, from 1, and the ratio in it.
    """
    curves_of_parts: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for number, record in enumerate(records, 1):
        for measurement in record["measurements"]:
            name = f"{label(measurement)}, threads: {record['threads']}"
            points = curves_of_parts.setdefault(measurement["part"], {}).setdefault(name, [])
            points.append((number, measurement["ratio"]["median"]))
    return curves_of_parts


def plot(records: Sequence[BenchRecord], path: Path) -> None:
    """Draw the ratios: one run as bars, several runs as lines over time. The suffix of the file chooses the format.

    Raises:
        UsageError: the suffix is neither .svg nor .png, or there is no measurement.
        TinystoryError: matplotlib is not installed, or the file cannot be written.
    """
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot {path}: the name must end in .svg or .png")
    if not any(record["measurements"] for record in records):
        raise UsageError("--plot: nothing was measured, and --history has no run")
    figure = _lines(curves(records), len(records)) if len(records) > 1 else _bars(records[-1]["measurements"])
    save_figure(figure, path)


def _bars(measurements: Sequence[BenchRecord]) -> Any:
    shown = measurements[:MOST_BARS]
    figure = new_figure((11, 1.2 + 0.24 * len(shown)))
    axes = figure.add_subplot()
    ratios = [measurement["ratio"] for measurement in shown]
    middle = [ratio["median"] for ratio in ratios]
    spread = [[r["median"] - r["min"] for r in ratios], [r["max"] - r["median"] for r in ratios]]
    colours = [{None: "tab:blue", True: "tab:green", False: "tab:red"}[measurement["met"]] for measurement in shown]
    axes.barh(range(len(shown)), middle, xerr=spread, color=colours, error_kw={"linewidth": 0.8})
    for place, measurement in enumerate(shown):
        if measurement["aim"] is not None:
            axes.plot([measurement["aim"]] * 2, [place - 0.45, place + 0.45], color="black", linewidth=1.5)
    axes.set_yticks(range(len(shown)), [label(measurement) for measurement in shown], fontsize=7)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("ratio, median and range; above 1 tinystory is ahead; black: the aim, green: met, red: missed")
    return figure


def _lines(parts: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], n_runs: int) -> Any:
    figure = new_figure((13, 3.2 * len(parts)))
    for place, (part, lines) in enumerate(parts.items(), 1):
        axes = figure.add_subplot(len(parts), 1, place)
        longest = sorted(lines.items(), key=lambda line: -len(line[1]))[:MOST_LINES]
        for name, points in longest:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, label=name)
        axes.set_title(part if len(lines) <= MOST_LINES else f"{part}, {MOST_LINES} of {len(lines)}", fontsize=10)
        axes.set_yscale("log")
        axes.set_xlim(0.5, n_runs + 0.5)
        axes.set_xticks(range(1, n_runs + 1))
        axes.set_xlabel("run", fontsize=8)
        axes.set_ylabel("median ratio", fontsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
