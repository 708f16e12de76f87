"""Draw the log of a run, and compare the validation losses of several runs. Knows log records, and not their run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinystory.evaluation.plotting import new_figure, save_figure
from tinystory.safe.lines import parse_line
from tinystory.safe.reading import open_regular

__all__ = ["PANELS", "plot_metrics", "plot_runs", "read_metrics"]

PANELS = (
    ("loss, nats per token", ("train_loss", "valid_loss")),
    ("perplexity", ("valid_perplexity",)),
    ("bits per byte", ("valid_bits_per_byte",)),
    ("next-token accuracy", ("train_accuracy", "valid_accuracy")),
    ("learning rate", ("lr", "muon_lr")),
    ("tokens per second", ("tokens_per_second",)),
)
"""Title and keys of each plot; the x axis shows the tokens that the run has predicted."""

_LABELS = {"lr": "AdamW", "muon_lr": "Muon"}
"""The name of a line in the legend, if it is not the first word of its key."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines, such as `metrics.jsonl`, without a line that a crash has cut off."""
    records = []
    with open_regular(path) as file:
        for line in file:
            record = parse_line(line)
            if record is not None:
                records.append(record)
    return records


def plot_metrics(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the log of a run.

    Args:
        records: log records with `tokens` and any of the keys of `PANELS`.
        path: a .png or .svg file, which is replaced atomically.

    Raises:
        TinystoryError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure((12, 6.5))
    for index, (title, keys) in enumerate(PANELS):
        axes = figure.add_subplot(2, 3, index + 1)
        for key in keys:
            points = [(record["tokens"] / 1e6, record[key]) for record in records if record.get(key) is not None]
            if points:
                measured_rarely = key.startswith("valid") or key == "train_accuracy"
                style: dict[str, Any] = {"marker": "o", "markersize": 3} if measured_rarely else {}
                label = _LABELS.get(key, key.split("_")[0])
                axes.plot(*zip(*points, strict=True), linewidth=1.2, label=label, **style)
        axes.set_xlim(0, max((record["tokens"] / 1e6 for record in records), default=1) * 1.02)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("million tokens", fontsize=8)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        if len(axes.lines) > 1:
            axes.legend(fontsize=8)
    save_figure(figure, path)


def plot_runs(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw the validation losses of several runs over the tokens that they have predicted.

    Args:
        runs: the log records of each run, by the name of the run.
        path: a .png or .svg file, which is replaced atomically.

    Raises:
        TinystoryError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure((9, 5))
    axes = figure.add_subplot()
    for name, records in runs.items():
        points = [(record["tokens"] / 1e6, record["valid_loss"]) for record in records if "valid_loss" in record]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2, label=name)
    axes.set_xlabel("million tokens")
    axes.set_ylabel("validation loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)
