"""Reading files that may come from anybody: what cannot be read is one kind of error, and not a model's."""

import os
import socket

import pytest

from tinystory.errors import CheckpointError, TinystoryError, UnreadableFile
from tinystory.safe.reading import (
    is_absent,
    open_regular,
    parse_json_object,
    read_bytes,
    read_json_object,
    read_text,
    read_toml,
    regular_file_size,
    shown,
)


@pytest.fixture(params=["missing", "folder", "pipe", "no JSON", "a list", "too large", "too deep"])
def bad_file(request, tmp_path):
    path = tmp_path / "a.json"
    contents = {"no JSON": "{", "a list": "[]", "too large": '{"a": "' + "b" * 99_999 + '"}', "too deep": "[" * 90_000}
    if request.param == "folder":
        path.mkdir()
    elif request.param == "pipe":
        os.mkfifo(path)
    elif request.param != "missing":
        path.write_text(contents[request.param])
    return path


def test_a_file_that_cannot_be_read_is_no_fault_of_a_model(bad_file):
    with pytest.raises(UnreadableFile) as caught:
        read_json_object(bad_file, 99_990)
    assert caught.value.exit_code == 3
    assert not isinstance(caught.value, CheckpointError)
    assert len(str(caught.value).splitlines()) == 1


def test_a_reader_may_name_the_class_of_the_error_and_the_text_stays(bad_file):
    with pytest.raises(UnreadableFile) as general:
        read_json_object(bad_file, 99_990)
    with pytest.raises(CheckpointError) as own:
        read_json_object(bad_file, 99_990, raises=CheckpointError)
    assert str(own.value) == str(general.value)
    assert own.value.exit_code == general.value.exit_code


def test_parts_of_the_reading_raise_the_same(tmp_path):
    for raises in (UnreadableFile, CheckpointError, TinystoryError):
        with pytest.raises(raises, match="No such file"):
            regular_file_size(tmp_path / "nothing", raises=raises)
        with pytest.raises(raises, match="the key 'a' stands twice"):
            parse_json_object('{"a": 1, "a": 2}', "the header", unique_keys=True, raises=raises)


@pytest.fixture(
    params=["a pipe", "a link to a pipe", "/dev/zero", "/dev/tty", "a socket", "/proc/self/pagemap", "a folder"]
)
def endless(request, tmp_path, monkeypatch):
    """A path at which a plain `open` or `read` would wait or never end, or fail."""
    path = tmp_path / "config.json"
    kind = request.param
    if kind.startswith("/"):
        if not os.path.exists(kind):
            pytest.skip(f"there is no {kind} here")
        path.symlink_to(kind)
    elif kind == "a socket":
        monkeypatch.chdir(tmp_path)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    elif kind == "a folder":
        path.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
        path = path if kind == "a link to a pipe" else tmp_path / "pipe"
    return path


def test_only_a_regular_file_is_opened_and_nothing_waits(endless):
    readers = (
        open_regular,
        read_json_object,
        read_toml,
        *(lambda p, r=r: r(p, 10**6) for r in (read_bytes, read_text)),
    )
    for read in readers:
        with pytest.raises(UnreadableFile, match="is not a regular file") as caught:
            read(endless)
        assert str(endless) in str(caught.value)


def test_the_writer_of_a_pipe_does_not_notice_that_it_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableFile):
        open_regular(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device"):  # no reader has come, and none was there
        os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK)


def test_the_size_is_bounded_also_while_a_file_grows(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    assert read_bytes(path, 10) == b"x" * 10
    with pytest.raises(UnreadableFile, match="has 10 bytes; at most 9"):
        read_bytes(path, 9)
    monkeypatch.setattr("tinystory.safe.reading._checked_size", lambda *_: 5)
    with pytest.raises(UnreadableFile, match="has more than 9 bytes"):
        read_bytes(path, 9)


def test_a_byte_order_mark_is_ignored_and_other_encodings_are_told(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json_object(path) == {"a": 1}
    path.write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert read_toml(path) == {"a": 1}
    assert read_text(path, 100) == "a = 1\n"
    for encoding in ("utf-16", "latin-1"):
        path.write_bytes("a = 'é'".encode(encoding))
        with pytest.raises(UnreadableFile, match=f"{path} is not UTF-8 text"):
            read_toml(path)


@pytest.mark.parametrize(
    "text", ["a = " + "1" * 5000, "a = " + "[" * 3000, "= 3", "a = 0x", "a = 1\na = 2", "a = 1e99999999x"]
)
def test_wrong_toml_is_one_line_with_the_name_of_the_file(tmp_path, text):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UnreadableFile) as caught:
        read_toml(tmp_path / "a.toml")
    assert str(tmp_path / "a.toml") in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def test_values_are_shown_short():
    for value in ("x" * 10**5, ["word"] * 10**4, {str(n): n for n in range(10**4)}, 16**5000, -(16**5000), [16**5000]):
        assert 0 < len(shown(value)) < 200
    assert shown(12) == "12"


def test_what_cannot_be_there_is_absent(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert [is_absent(tmp_path / name) for name in ("a", "file/a", "file", "loop", "a\0b")] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert is_absent(tmp_path / "/dev/null/tinystory")
    (tmp_path / "off").symlink_to("/dev/null")
    assert is_absent(tmp_path / "off")
