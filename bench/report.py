"""What was measured, on what, and with which versions: the table, and the record of a run."""

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.pairs import COLUMNS, Measurement, Subject
from bench.parts.roofline import cache_bytes

__all__ = ["processor", "record_of", "show", "versions"]

WIDTH = 150
"""Of a table that goes to no terminal."""

PACKAGES = ("tinystory", "torch", "transformers", "numpy", "ctranslate2", "accelerate")


def record_of(found: Sequence[Measurement], subjects: Sequence[Subject], args: argparse.Namespace) -> dict[str, Any]:
    """A run as JSON."""
    models = {
        subject.name: {"parameters": subject.config.n_parameters, "checks": subject.checks} for subject in subjects
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "models": models,
        **{name: getattr(args, name) for name in ("tokens", "rows", "steps", "threads", "pairs")},
        "machine": {
            "processor": processor(), "cores": os.cpu_count(), "cache_bytes": cache_bytes(),
            "system": platform.system(), "load": os.getloadavg()[0],
        },
        "versions": versions(),
        "notes": list(dict.fromkeys(note for subject in subjects for note in subject.notes)),
        "measurements": [measurement.as_json() for measurement in found],
    }  # fmt: skip


def commit() -> str | None:
    """Of the sources measured, `+` after it where they were changed since; None outside a git repository."""
    folder = Path(__file__).parent
    try:
        asked = [["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "-uno"]]
        said = [subprocess.run(c, cwd=folder, capture_output=True, text=True, check=True).stdout for c in asked]
    except (OSError, subprocess.CalledProcessError):
        return None
    return said[0].strip() + ("+" if said[1].strip() else "")


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Of all that was measured and is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def lines_of(record: dict[str, Any]) -> list[str]:
    """What the table was measured on."""
    models = ", ".join(
        f"{name}: {about['parameters'] / 1e6:.1f}M parameters" for name, about in record["models"].items()
    )
    machine = record["machine"]
    lines = [
        f"{models}; threads: {record['threads']}; {record['tokens']} tokens a story, "
        f"{record['rows']} rows a training step; medians of {record['pairs']} interleaved pairs",
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load']:.1f}, {machine['system']}; "
        + ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
    ]
    for name, about in record["models"].items():
        for peer, check in about["checks"].get("greedy", {}).items():
            same = "the same" if check["same"] else "not the same"
            ties = f", numerical ties: {check['numerical_ties']}" if "numerical_ties" in check else ""
            lines.append(f"{name}, greedy token ids beside {peer}: {same}{ties}")
        if (apart := about["checks"].get("training_loss_difference")) is not None:
            lines.append(f"{name}, mean training losses of both sides: {apart:.1e} nats per token apart")
    return [*lines, *record["notes"]]


def show(found: Sequence[Measurement], record: dict[str, Any], markdown: bool) -> None:
    """Print a table of each part, and what they were measured on."""
    lines = lines_of(record)
    tables = {part: rows_of(part, found, len(record["models"]) > 1) for part in dict.fromkeys(m.part for m in found)}
    if markdown:
        for part, rows in tables.items():
            escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
            head = [(part, *COLUMNS), ("---", "---", *["---:"] * (len(COLUMNS) - 1))]
            print("\n".join(f"| {' | '.join(row)} |" for row in [*head, *escaped]) + "\n")
        print("\n".join(f"{line}.  " for line in lines))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for part, rows in tables.items():
        table = Table(part, *COLUMNS, box=box.SIMPLE_HEAD)
        for column in table.columns[2:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in lines:
        console.print(line, style="dim", highlight=False, markup=False)


def rows_of(part: str, found: Sequence[Measurement], names_models: bool) -> list[list[str]]:
    """The part's measurements as cells."""
    rows = []
    for measurement in found:
        if measurement.part == part:
            first, *rest = measurement.row()
            rows.append([f"{measurement.model}: {first}" if names_models else first, *rest])
    return rows
