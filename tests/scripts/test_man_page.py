"""The manual page is the one the command line gives."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tinystory.commands.flags import COMMAND_SUMMARIES
from tinystory.settings import BUILT_IN, variable

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tinystory.1"


def test_the_page_in_the_tree_is_what_the_parser_gives(load_script):
    expected = load_script("man_page").page()
    assert PAGE.read_text(encoding="utf-8") == expected, "run `python scripts/man_page.py`"


def test_the_page_names_every_command_and_setting():
    page = PAGE.read_text(encoding="utf-8")
    for name in COMMAND_SUMMARIES:
        assert f".SS \\fB{name}\\fR" in page
    for name in BUILT_IN:
        assert variable(name) in page


def test_the_page_renders_without_a_complaint():
    if not shutil.which("groff"):
        pytest.skip("groff is not installed")
    command = ["groff", "-man", "-ww", "-Tutf8", str(PAGE)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert "to find what the N stories share" in " ".join(result.stdout.split())
