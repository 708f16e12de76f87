"""What every test shares: one torch thread, and the public test data where this checkout has it."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data():
    """The folder with the public test data (checkpoints, stories, tokenizers), read-only."""
    default = Path(__file__).resolve().parent.parent / ".." / "shared"
    folder = Path(os.environ.get("TINYSTORY_TEST_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set TINYSTORY_TEST_DATA to its folder")
    return folder
