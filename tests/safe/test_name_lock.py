"""The lock on a session's name: one holder at a time, and nothing is left behind."""

import os
import sys

import pytest

from tinystory.safe.name_lock import NameLock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no locks there")


def test_a_name_has_one_holder_at_a_time(tmp_path):
    folder = tmp_path / "new" / "sessions"
    lock = NameLock.take(folder, "tale")
    assert NameLock.take(folder, "tale") is None
    other = NameLock.take(folder, "another")
    assert sorted(os.listdir(folder)) == [".another.lock", ".tale.lock"]
    lock.release()
    again = NameLock.take(folder, "tale")
    assert again is not None
    for held in (again, other):
        held.release()
    assert os.listdir(folder) == []


def test_a_lock_on_a_file_that_was_removed_meanwhile_does_not_count(tmp_path, monkeypatch):
    """Between opening and locking, its holder may remove the file; a second chat would then lock another one."""
    import fcntl

    flock, removed = fcntl.flock, []

    def remove_first(descriptor, operation):
        if not removed:
            removed.append(tmp_path / ".tale.lock")
            removed[0].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    lock = NameLock.take(tmp_path, "tale")
    assert removed
    assert os.fstat(lock.descriptor).st_ino == (tmp_path / ".tale.lock").stat().st_ino
    assert NameLock.take(tmp_path, "tale") is None
    lock.release()


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "sessions").write_text("a file in its place")
    with pytest.raises(OSError, match="exists"):
        NameLock.take(tmp_path / "sessions", "tale")
