"""Exports: what a file says of a story can steer no terminal, and a path may have spaces."""

import io
from dataclasses import replace

import pytest
from scripted_chat import run, write

from tinystory.errors import UsageError
from tinystory.repl.commands import execute
from tinystory.repl.commands.base import path_of
from tinystory.repl.stream import show_story
from tinystory.screen.screen import Screen

ODD = "\x1b[2J\x1b]0;title\x07\u202e\x9b1A"


@pytest.fixture
def studio(make):
    studio = make(([" sat", "."], "eos"))
    write(studio, "A cat")
    studio.backend.loaded = None  # the page of a story that this model has not written needs no model
    turn = studio.tree.turns[1]
    odd = replace(turn.written, spec=f"sample{ODD}\n| x", model=f"m{ODD}\nn", model_hash=ODD)
    studio.tree.turns[1] = replace(turn, written=odd, vocabulary="another")
    return studio


@pytest.mark.parametrize("ending", [".md", ".html", ".svg"])
def test_a_file_for_people_has_no_control_characters(studio, tmp_path, ending):
    path = tmp_path / f"story{ending}"
    run(studio, f"/export {path}")
    text = path.read_text(encoding="utf-8")
    assert all(character.isprintable() or character == "\n" for character in text.replace("\u200b", ""))


def test_a_turn_is_one_row_of_the_table(studio, tmp_path):
    run(studio, f"/export {tmp_path / 'story.md'}")
    rows = [line for line in (tmp_path / "story.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 3
    assert all(row.replace("\\|", "").count("|") == 6 for row in rows)


@pytest.mark.parametrize(
    ("argument", "path"),
    [
        ('"my story.txt"', "my story.txt"), ("'my story.txt'", "my story.txt"), ("my story.txt", "my story.txt"),
        ("it's.txt", "it's.txt"), ('"~/a b"', "/home/me/a b"), ("~/a", "/home/me/a"), ("", ""),
    ],
)  # fmt: skip
def test_a_path_may_stand_in_quotes(monkeypatch, argument, path):
    monkeypatch.setenv("HOME", "/home/me")
    assert path_of(argument, "/export") == path


@pytest.mark.parametrize("argument", ['"a', '"', '""', "'a\""])
def test_a_quote_that_is_not_closed_is_told(argument):
    with pytest.raises(UsageError, match=r"/ppl: the quote . is not closed"):
        path_of(argument, "/ppl")


def test_every_command_with_a_path_takes_quotes(studio, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(studio, '/export "with space.txt"')
    run(studio, '/export "with space.txt" !')
    assert [path.name for path in tmp_path.iterdir()] == ["with space.txt"]
    for line, said in (('/ppl "no such.txt"', "cannot read no such.txt"), ('/model "no such"', "no directory no such")):
        with pytest.raises(Exception, match=said):
            execute(studio, line)


def test_a_story_of_very_many_long_turns_is_no_json(studio, tmp_path, monkeypatch):
    monkeypatch.setattr("tinystory.repl.export.MAX_BYTES", 3)
    with pytest.raises(UsageError, match=r"too long for \.json"):
        execute(studio, f"/export {tmp_path / 'a.json'}")


def test_of_a_very_long_story_the_end_is_shown(studio, monkeypatch):
    monkeypatch.setattr("tinystory.repl.stream._MOST_SHOWN", 4)
    studio.keep(studio.begin("Once upon"))
    stream = io.StringIO()
    show_story(studio, Screen(stream, color=False))
    assert stream.getvalue() == "(the first 5 characters are not shown; /export FILE writes all)\nupon\n"
