"""Run the notebooks of examples/ and keep their outputs.

Usage: python scripts/site/notebooks.py

One kernel runs all of them, since most of the time would go into loading torch; it forgets all names in between.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

NOTEBOOKS = tuple(sorted((Path(__file__).resolve().parents[2] / "examples" / "notebooks").glob("*.ipynb")))


@contextmanager
def kernel() -> Iterator[Any]:
    """Start a kernel that talks through files and not over the network."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3", transport="ipc")
    manager.start_kernel(env=os.environ | {"OMP_NUM_THREADS": "1"})  # more threads only wait for each other
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def executed(path: Path, manager: Any) -> Any:
    """Return a notebook after a run of all its cells, without what differs from run to run."""
    from nbclient import NotebookClient

    nbformat = import_module("nbformat")  # it has no types

    notebook = nbformat.read(path, as_version=4)
    forget = nbformat.v4.new_code_cell("%reset -f")
    metadata = dict(notebook.metadata)
    notebook.cells.insert(0, forget)
    NotebookClient(notebook, km=manager, timeout=120, record_timing=False).execute()
    notebook.cells.remove(forget)
    notebook.metadata = metadata
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    return notebook


def main() -> None:
    """Run the notebooks and write them back."""
    nbformat = import_module("nbformat")

    with kernel() as manager:
        for path in NOTEBOOKS:
            nbformat.write(executed(path, manager), path)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
