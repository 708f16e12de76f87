"""The notebooks of examples/: they run from the first cell to the last, and what they keep is small and inert."""

import gc
import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "examples" / "notebooks").glob("*.ipynb"))
MOST_BYTES = 50_000


def code_cells(path):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_the_four_notebooks_keep_small_outputs_of_a_whole_run():
    assert len(NOTEBOOKS) == 4
    for path in NOTEBOOKS:
        assert path.stat().st_size <= MOST_BYTES
        cells = code_cells(path)
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        content = path.read_text(encoding="utf-8")
        assert any("text/html" in output.get("data", {}) for cell in cells for output in cell["outputs"])
        assert not re.search(r"<script|\"error\"|\"stderr\"", content)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries that talk to the kernel
def test_the_notebooks_run(load_script):
    pytest.importorskip("nbclient", reason="nbclient runs the notebooks")
    pytest.importorskip("ipykernel", reason="ipykernel runs the notebooks")
    notebooks = load_script("site/notebooks")
    with notebooks.kernel() as kernel:
        for path in NOTEBOOKS:
            cells = [cell for cell in notebooks.executed(path, kernel).cells if cell.cell_type == "code"]
            for cell, kept in zip(cells, code_cells(path), strict=True):
                kinds = [output["output_type"] for output in kept["outputs"]]
                assert [output.output_type for output in cell.outputs] == kinds, path.name
                assert not [output for output in cell.outputs if output.get("name") == "stderr"], path.name
    del kernel
    gc.collect()  # here, since the libraries warn of sockets when these are collected
