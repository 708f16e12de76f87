"""Lock a name, so that two processes never write one thing: a session or a run. It knows neither."""

import errno
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = ["NameLock"]

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""The errors of file systems that have no locks. Two processes at once are rare there, so the name counts as locked."""


@dataclass
class NameLock:
    """A lock on a name, held by this process until `release` or until the process ends.

    Attributes:
        path: the path of the lock file.
        descriptor: the descriptor of the open lock file.
    """

    path: Path
    descriptor: int

    @classmethod
    def take(cls, folder: Path, name: str) -> "NameLock | None":
        """Lock a name in a folder, which is made if it is missing; return None if another process has the name.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f".{name}.lock"
        descriptor = _locked(path)
        return None if descriptor is None else cls(path, descriptor)

    def release(self) -> None:
        """Give the name back, and remove the lock file."""
        with suppress(OSError):
            self.path.unlink()
        with suppress(OSError):
            os.close(self.descriptor)


def _locked(path: Path) -> int | None:
    """Open and lock a file, which is made if it is missing; return None if another process has it locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        if sys.platform == "win32":
            return descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The process that had the lock may have removed the file meanwhile. Then another file has this path now.
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)
