"""Remove what killed processes have left: temporary files and folders of ours that are old and that nobody uses.

A process that works on one holds a lock on it. Where the system has no locks, its age alone decides.
"""

import contextlib
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = ["lock", "sweep", "temporary_folder"]

_STALE_SECONDS = 3600


def sweep(folder: Path, pattern: str) -> None:
    """Remove the entries of a folder that match a pattern, belong to this user, are older than an hour, and are unused.

    Args:
        folder: the folder; nothing happens if it is missing or cannot be read.
        pattern: a regular expression for the whole name. It must match no name that a user would give.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if re.fullmatch(pattern, entry.name):
                with contextlib.suppress(OSError):
                    _remove_unused(Path(entry.path), entry.stat(follow_symlinks=False))


def lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed, so that `sweep` leaves it alone.

    Returns:
        False if another process has locked it.
    """
    if sys.platform == "win32" or descriptor < 0:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this file system has no locks
        return True
    return True


@contextlib.contextmanager
def temporary_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a folder that is removed at the end. If the process is killed, a later call removes it.

    Args:
        prefix: what its name begins with.
        parent: the folder that it lies in; by default the system's folder for temporary files.

    Raises:
        OSError: it cannot be made.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    sweep(parent, re.escape(prefix) + "[a-z0-9_]{8}")
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name:
        descriptor = os.open(name, os.O_RDONLY) if os.name == "posix" else -1
        try:
            lock(descriptor)
            yield Path(name)
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def _remove_unused(path: Path, status: os.stat_result) -> None:
    if time.time() - status.st_mtime < _STALE_SECONDS or (os.name == "posix" and status.st_uid != os.getuid()):
        return
    if stat.S_ISLNK(status.st_mode):
        path.unlink()
        return
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) if os.name == "posix" else -1
    try:
        if lock(descriptor):
            shutil.rmtree(path) if stat.S_ISDIR(status.st_mode) else path.unlink()
    finally:
        if descriptor >= 0:
            os.close(descriptor)
