"""scripts/restore_case.py: capitals come back, nothing else changes."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

CASED = ['Once upon a time, Rose had a rose. "Look!" said Rose. She met Tom.\nThe rose was red. Mom saw it.'] * 12
LOWER = ['once upon a time, tom met rose. "look!" said tom.\nhe was red.', "and then he slept.", "once upon a â€œ time"]


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("restore_case")


@pytest.fixture
def restore(script, tmp_path, monkeypatch, capsys):
    """The exit code, the text written and what was said."""

    def run(cased, lower):
        for name, stories in (("cased.txt", cased), ("lower.txt", lower)):
            (tmp_path / name).write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
        paths = [str(tmp_path / name) for name in ("cased.txt", "lower.txt", "out.txt")]
        monkeypatch.setattr(sys, "argv", ["restore_case", "--like", paths[0], "--restore", paths[1], "--out", paths[2]])
        code = script.main()
        out = tmp_path / "out.txt"
        said = capsys.readouterr()
        return code, out.read_text() if out.exists() else None, said.out + said.err

    return run


def test_words_get_their_usual_form_and_pieces_and_broken_text_are_left_out(restore):
    code, restored, said = restore(CASED, LOWER)
    assert code == 0, said
    assert restored == 'Once upon a time, Tom met Rose. "Look!" said Tom.\nHe was red.\n<|endoftext|>\n'
    assert "1 of 3 stories restored" in said
    assert "in 2 held-out stories, 100.00%" in said


def test_a_source_that_is_missing_is_one_line_and_nothing_is_written(script, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.txt"
    monkeypatch.setattr(sys, "argv", ["restore_case", "--like", "gone.txt", "--restore", "x.txt", "--out", str(out)])
    assert script.main() == 2
    said = capsys.readouterr().err
    assert "gone.txt" in said
    assert said.count("\n") <= 2
    assert not out.exists()


@settings(deadline=None, max_examples=100)
@given(text=st.text(st.sampled_from("aBcé İß\n.\"'!_1 "), max_size=60))
def test_only_the_case_of_letters_changes(script, text):
    caser = script.Caser()
    caser.learn("Once upon a time. A Bc's é!")
    lower = text.lower()
    assert caser.restore(lower).lower() == lower
