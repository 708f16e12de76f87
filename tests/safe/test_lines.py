"""Files of JSON lines go on after any loss at their end, and a file of somebody else stays as it is."""

import os
import sys
from pathlib import Path

import pytest

from tinystory.safe import lines
from tinystory.safe.lines import ForeignLine, JsonLines, parse_line

WHOLE = b'{"a": 1}\n{"a": "Zo\xc3\xab"}\n{"a": 3}\n'


def test_a_file_goes_on_after_any_loss_at_its_end(tmp_path):
    path = tmp_path / "file.jsonl"
    for length in range(len(WHOLE) + 1):
        path.write_bytes(WHOLE[:length])
        kept = WHOLE[:length][: WHOLE[:length].rfind(b"\n") + 1]
        with JsonLines(path, b'{"a": ') as file:
            assert b"".join(file.whole_lines()) == kept
            file.append(b'{"a": 4}\n')
        assert path.read_bytes() == kept + b'{"a": 4}\n'


@pytest.mark.parametrize("tail", [b"My diary", b'{"b": 1}\n', b'{"b'])
def test_a_line_of_somebody_else_is_neither_cut_off_nor_written_on(tmp_path, tail):
    path = tmp_path / "file.jsonl"
    path.write_bytes(WHOLE + tail)
    with JsonLines(path, b'{"a": ') as file, pytest.raises(ForeignLine):
        list(file.whole_lines())
    assert path.read_bytes() == WHOLE + tail


def test_a_line_longer_than_any_of_ours_is_not_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_MAX_LINE_BYTES", 12)
    path = tmp_path / "file.jsonl"
    path.write_bytes(WHOLE[:9] + b'{"a": "0123456789"}\n')
    before = path.read_bytes()
    with JsonLines(path) as file, pytest.raises(ForeignLine):
        list(file.whole_lines())
    assert path.read_bytes() == before


def test_a_reader_that_stops_early_leaves_the_file_as_it_is(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_bytes(WHOLE + b'{"a')
    with JsonLines(path) as file:
        assert next(file.whole_lines()) == b'{"a": 1}\n'
    assert path.read_bytes() == WHOLE + b'{"a'


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_an_exclusive_file_is_held_by_one_at_a_time(tmp_path):
    path = tmp_path / "file.jsonl"
    with JsonLines(path, exclusive=True):
        with pytest.raises(BlockingIOError):
            JsonLines(path, exclusive=True)
        JsonLines(path).close()
    JsonLines(path, exclusive=True).close()


def test_a_line_is_written_whole_even_if_the_disk_takes_it_in_parts(tmp_path, monkeypatch):
    original = os.write
    with JsonLines(tmp_path / "file.jsonl") as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda descriptor, data: original(descriptor, data[:3]))
            file.append(WHOLE[:9])
        file.sync()
    assert (tmp_path / "file.jsonl").read_bytes() == WHOLE[:9]


def test_a_closed_file_takes_no_line(tmp_path):
    file = JsonLines(tmp_path / "file.jsonl")
    file.close()
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.append(WHOLE)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_a_device_is_only_written(tmp_path):
    with JsonLines(Path("/dev/full"), exclusive=True) as file:
        assert list(file.whole_lines()) == []
        with pytest.raises(OSError, match="No space left"):
            file.append(WHOLE)
        file.sync()


def test_only_objects_are_records():
    assert parse_line(b'{"a": 1}\n') == {"a": 1}
    for line in (b"[1]\n", b"{\n", b"\xff\n", b"[" * 100_000 + b"\n", b""):
        assert parse_line(line) is None
