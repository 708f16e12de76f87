"""The history of the input line, the toolbar under it, and errors in it."""

import os
import stat

import pytest
from prompt_toolkit.history import InMemoryHistory
from scripted_chat import CTRL_D

from tinystory.repl.history import open_history
from tinystory.repl.input_line import toolbar


def test_history_is_private_and_survives_whatever_happens_to_it(tmp_path):
    path = tmp_path / "new" / "history"
    history = open_history(path)
    history.append_string("one\ntwo")
    history.append_string("half \udcff")
    history.append_string("x" * 100_000)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(open_history(path).load_history_strings()) == ["half ?", "one\ntwo"]
    assert history.get_strings()[-1] == "x" * 100_000
    path.chmod(0o644)
    open_history(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    path.mkdir()
    history.append_string("kept")
    assert history.get_strings()[-1] == "kept"
    assert list(history.load_history_strings()) == []


def test_a_large_history_is_cut_to_its_latest_entries(tmp_path):
    path = tmp_path / "history"
    entry = "\n# 2026-11-27 10:00:00\n+story {}\n+goes on\n"
    path.write_text("".join(entry.format(number) for number in range(100_000)))
    history = open_history(path)
    assert path.stat().st_size <= 500_000
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    entries = list(history.load_history_strings())
    assert entries[:2] == ["story 99999\ngoes on", "story 99998\ngoes on"]
    assert 8_000 < len(entries) < 12_000
    history.append_string("new")
    assert list(open_history(path).load_history_strings())[:2] == ["new", entries[0]]


def test_a_large_history_that_cannot_be_cut_is_read_in_part(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("tinystory.repl.history.write_atomically", refuse)
    path = tmp_path / "history"
    path.write_text("\n# 2026-11-27 10:00:00\n+" + "x" * 3_000_000 + "\n\n# 2026-11-27 10:00:01\n+last\n")
    assert list(open_history(path).load_history_strings()) == ["last"]


def test_history_is_in_memory_where_there_can_be_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "file" / "history"):
        assert isinstance(open_history(path), InMemoryHistory)


def test_toolbar_drops_what_does_not_fit():
    pieces = ["default", "sample 0.8", "seed 42", "0 of 512 tokens"]
    assert toolbar(pieces, 80) == " default · sample 0.8 · seed 42 · 0 of 512 tokens"
    assert toolbar(pieces, 40) == " default · sample 0.8 · seed 42"
    assert toolbar(pieces, 3) == ""
    assert toolbar(["a\nb\x1b"], 80) == " a b␛"


def test_an_error_at_the_input_line_is_told_and_the_line_stays(make, talk, monkeypatch):
    """prompt_toolkit would show a traceback and wait for Enter."""

    def fail():
        talk.later("\x15Once\r" + CTRL_D)
        raise RuntimeError("no names")

    monkeypatch.setattr("tinystory.repl.input_line.preset_names", fail)
    studio = make((["."], "eos"))
    code, output = talk(studio, "/preset load \t")
    assert code == 0
    assert output.count("unexpected error (RuntimeError: no names)") == 1
    assert studio.backend.requests[0].prompt == "Once"


def test_an_input_line_that_cannot_be_drawn_is_given_up(make, talk, monkeypatch):
    def fail(*_):
        raise RuntimeError("no toolbar")

    monkeypatch.setattr("tinystory.repl.input_line.toolbar", fail)
    with pytest.raises(RuntimeError, match="no toolbar"):
        talk(make(), "Once")
