"""Check the screens of the documentation: the lessons show what the program does."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "docs" / "lessons").glob("[0-9]*.md"))

sys.path.insert(0, str(ROOT / "scripts"))
import screens  # noqa: E402


@pytest.fixture(autouse=True)
def width(monkeypatch):
    """Put the width of the terminal back, which the script sets."""
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_shows_what_the_program_answers(path, monkeypatch, tmp_path):
    """`python scripts/screens.py --lessons docs/lessons` writes the outputs."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{screens.os.environ['PATH']}")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    page = path.read_text(encoding="utf-8")
    assert screens.lesson(page) == page


def test_only_the_outputs_of_a_page_are_written():
    page = "Text.\n```console\n$ echo 1\nold\nold\n$ echo 2\n```\nMore.\n```\n$ echo 3\n```\n"
    assert screens.lesson(page) == page.replace("old\nold\n", "1\n").replace("echo 2\n", "echo 2\n2\n")


def test_every_lesson_has_tasks_and_something_to_type():
    assert len(LESSONS) == 5
    for path in LESSONS:
        page = path.read_text(encoding="utf-8")
        assert len(re.findall(r"\*\*(?:Task|Question)", page)) >= 2
        assert screens._BLOCK.search(page)
        assert f"({path.name})" in (path.parent / "README.md").read_text(encoding="utf-8")


def test_the_moving_picture_shows_each_line_and_each_answer_once():
    typed = ("/len 5", "/seed 3")
    picture = screens.tour(typed, 60)
    assert picture.count('class="frame"') == 2 * len(typed)
    for line in typed:
        assert line.replace(" ", "&#160;") in picture
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")
    shown = re.findall(r"@keyframes show-\d+ \{.*?([\d.]+)% \{ visibility: visible \} ([\d.]+)%", picture)
    assert [float(last) for _, last in shown[:-1]] == [float(first) for first, _ in shown[1:]]
    assert (float(shown[0][0]), float(shown[-1][1])) == (0, 100)


def test_the_pictures_in_the_tree_are_small():
    for path in (ROOT / "docs" / "screens").glob("*.svg"):
        assert path.stat().st_size < 1_000_000
