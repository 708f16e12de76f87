"""The result of a run: a record with machine and versions, and tables for a person."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from bench.pairs import COLUMNS, Measurement
from bench.parts.roofline import cache_bytes
from bench.subject import Settings, Subject
from tinystory.screen.console import table_console

__all__ = ["processor", "record_of", "show", "versions"]

WIDTH = 150
"""The width of a table that does not go to a terminal."""

PACKAGES = ("tinystory", "torch", "transformers", "numpy", "ctranslate2", "accelerate")


def record_of(measurements: Sequence[Measurement], subjects: Sequence[Subject], settings: Settings) -> dict[str, Any]:
    """Return a run as plain data: figures, models, settings, machine and versions."""
    models = {
        subject.name: {"parameters": subject.config.n_parameters, "checks": subject.checks} for subject in subjects
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "models": models,
        **{name: getattr(settings, name) for name in ("tokens", "rows", "steps", "threads", "pairs")},
        "machine": {
            "processor": processor(), "cores": os.cpu_count(), "cache_bytes": cache_bytes(),
            "system": platform.system(), "load": os.getloadavg()[0],
        },
        "versions": versions(),
        "notes": list(dict.fromkeys(note for subject in subjects for note in subject.notes)),
        "measurements": [measurement.as_json() for measurement in measurements],
    }  # fmt: skip


def commit() -> str | None:
    """Return the commit of the sources, with a `+` if they have changed since, or None without git."""
    folder = Path(__file__).parent
    try:
        commands = [["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "-uno"]]
        head, changes = (
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+" if changes else head


def processor() -> str:
    """Return the name of the processor, or the kind of machine if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages among `PACKAGES`."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def lines_of(record: dict[str, Any]) -> list[str]:
    """Return the lines below the tables: models, machine, versions, checks and notes."""
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


def show(measurements: Sequence[Measurement], record: dict[str, Any], markdown: bool) -> None:
    """Print a table for each part, and the lines about the run."""
    lines = lines_of(record)
    parts = dict.fromkeys(measurement.part for measurement in measurements)
    tables = {part: rows_of(part, measurements, len(record["models"]) > 1) for part in parts}
    if markdown:
        for part, rows in tables.items():
            escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
            head = [(part, *COLUMNS), ("---", "---", *["---:"] * (len(COLUMNS) - 1))]
            print("\n".join(f"| {' | '.join(row)} |" for row in [*head, *escaped]) + "\n")
        print("\n".join(f"{line}.  " for line in lines))
        return
    console = table_console(width=WIDTH)
    for part, rows in tables.items():
        table = Table(part, *COLUMNS, box=box.SIMPLE_HEAD)
        for column in table.columns[2:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in lines:
        console.print(line, style="dim")


def rows_of(part: str, measurements: Sequence[Measurement], names_models: bool) -> list[list[str]]:
    """Return the cells of the measurements of a part."""
    rows = []
    for measurement in measurements:
        if measurement.part == part:
            first, *rest = measurement.row()
            rows.append([f"{measurement.model}: {first}" if names_models else first, *rest])
    return rows
