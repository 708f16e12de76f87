"""scripts/train_tokenizer.py: a vocabulary from stories that are read one after the other, and mistakes in a line."""

import json
import tracemalloc
from pathlib import Path

import pytest

from tinystory.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("train_tokenizer")


def test_a_vocabulary_is_written_and_the_stories_are_counted(script, story_file, tmp_path, capsys):
    out = tmp_path / "new" / "folder" / "tokenizer.json"
    assert script.main(["--data", str(story_file), "--vocab-size", "280", "--out", str(out)]) == 0
    assert Tokenizer.from_file(out).vocab_size == 280
    assert capsys.readouterr().out.startswith(f"{out}: 280 tokens from 60 stories, ")


def test_column_and_separator_are_those_of_the_other_scripts(script, stories, tmp_path, capsys):
    rows, text, out = tmp_path / "a.jsonl", tmp_path / "a.txt", str(tmp_path / "t.json")
    rows.write_text("\n".join(json.dumps({"body": story}) for story in stories))
    text.write_text("\n\n".join(stories))
    assert script.main(["--data", str(rows), "--column", "body", "--vocab-size", "260", "--out", out]) == 0
    assert script.main(["--data", str(text), "--vocab-size", "260", "--out", out]) == 0
    assert script.main(["--data", str(text), "--separator", "---", "--out", out]) == 2
    shown = capsys.readouterr()
    assert shown.out.count("from 60 stories") == 2
    assert "taken from between blank lines" in shown.err
    assert "has no '---' between its stories" in shown.err


def test_stories_are_not_all_in_memory(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "read_stories", lambda *_, **__: (f"{n} " + "a word " * 100 for n in range(800)))
    tracemalloc.start()
    try:
        assert script.main(["--data", "a", "--vocab-size", "257", "--out", str(tmp_path / "t.json")]) == 0
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--out", "folder"], 2, "folder is a folder; name the file to write, such as folder/tokenizer.json"),
        (["--out", "file/t.json"], 1, "file/t.json cannot be written: "),
        (["--data", "gone.txt"], 2, "gone.txt: no such file"),
        (["--data", "empty.txt"], 2, "empty.txt is empty"),
        (["--data", "blank.txt"], 2, "blank.txt has no story"),
        (["--column", "x", "--data", "rows.jsonl"], 2, "rows.jsonl has no column 'x'"),
    ],
)
def test_a_mistake_is_a_line(script, story_file, tmp_path, monkeypatch, capsys, options, code, words):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("")
    Path("empty.txt").write_text("")
    Path("blank.txt").write_text("\n<|endoftext|>\n \n")
    Path("rows.jsonl").write_text('{"text": "One."}')
    assert script.main(["--data", str(story_file), "--vocab-size", "257", "--out", "t.json", *options]) == code
    shown = capsys.readouterr()
    assert shown.err.startswith("train_tokenizer: ")
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert not Path("t.json").exists()


@pytest.mark.parametrize("size", ["256", "-1", "100000000000"])
def test_a_size_out_of_range_is_refused(script, capsys, size):
    with pytest.raises(SystemExit):
        script.main(["--data", "a", "--out", "b", "--vocab-size", size])
    assert "--vocab-size must be from 257" in capsys.readouterr().err


def test_ctrl_c_is_a_line(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "run", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert script.main(["--data", "a", "--out", "b"]) == 130
    assert "interrupted; b is as it was before" in capsys.readouterr().err
