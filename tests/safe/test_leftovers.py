"""What killed processes leave is removed later: only ours, only old, only unused."""

import os
import sys
from pathlib import Path

import pytest

from tinystory.safe import writing
from tinystory.safe.leftovers import lock, sweep, temporary_folder
from tinystory.safe.writing import replace_link, write_atomically

LEFT = ".0123456789abcdef.partial"


def old(path, content=None):
    """Make an old file, or an old folder with a file in it."""
    if content is None:
        path.mkdir()
        (path / "story.txt").write_text("Once")
    else:
        path.write_text(content)
    os.utime(path, (1, 1))
    return path


def test_only_old_unused_things_of_the_pattern_go(tmp_path):
    for name in ("tmp-a", "other-a", "a.tmp-a"):
        old(tmp_path / name, "x")
    old(tmp_path / "tmp-folder")
    (tmp_path / "tmp-new").touch()
    (tmp_path / "tmp-link").symlink_to("other-a")
    os.utime(tmp_path / "tmp-link", (1, 1), follow_symlinks=False)
    os.mkfifo(tmp_path / "tmp-pipe")
    os.utime(tmp_path / "tmp-pipe", (1, 1))
    sweep(tmp_path, "tmp-.*")
    assert sorted(os.listdir(tmp_path)) == ["a.tmp-a", "other-a", "tmp-new", "tmp-pipe"]
    sweep(tmp_path / "missing", ".*")
    sweep(tmp_path / "other-a", ".*")


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_what_is_in_use_stays_however_old(tmp_path):
    path = old(tmp_path / "tmp-a", "x")
    with path.open() as file:
        assert lock(file.fileno())
        sweep(tmp_path, "tmp-.*")
        assert path.exists()
    sweep(tmp_path, "tmp-.*")
    assert not path.exists()


def test_what_belongs_to_another_user_stays(tmp_path, monkeypatch):
    path = old(tmp_path / "tmp-a", "x")
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    sweep(tmp_path, "tmp-.*")
    assert path.exists()


def test_a_temporary_folder_goes_and_takes_those_of_killed_processes_along(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old(tmp_path / "tinystory-edit-abcd_123")
    with temporary_folder("tinystory-edit-") as folder:
        os.utime(folder, (1, 1))
        with temporary_folder("tinystory-edit-") as second:
            assert sorted(os.listdir(tmp_path)) == sorted([folder.name, second.name])
    assert os.listdir(tmp_path) == []


def test_a_write_removes_half_written_files_of_killed_processes(tmp_path):
    writing._sweep_once.cache_clear()
    old(tmp_path / LEFT, "half")
    old(tmp_path / ".mine.partial", "a name that is not ours")
    write_atomically(tmp_path / "a", b"new")
    assert sorted(os.listdir(tmp_path)) == [".mine.partial", "a"]
    writing._sweep_once.cache_clear()
    Path(tmp_path / LEFT).symlink_to("a")
    os.utime(tmp_path / LEFT, (1, 1), follow_symlinks=False)
    replace_link(tmp_path / "latest", "a")
    assert sorted(os.listdir(tmp_path)) == [".mine.partial", "a", "latest"]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_a_write_that_takes_hours_is_left_alone(tmp_path):
    def content(file):
        file.write(b"new")
        file.flush()
        (name,) = [name for name in os.listdir(tmp_path) if name.endswith(".partial")]
        os.utime(tmp_path / name, (1, 1))
        sweep(tmp_path, r"\..*\.partial")

    write_atomically(tmp_path / "a", content)
    assert (tmp_path / "a").read_bytes() == b"new"
