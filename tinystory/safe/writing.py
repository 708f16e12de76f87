"""Writing a file whole or not at all."""

import contextlib
import os
import secrets
import stat
from pathlib import Path

__all__ = ["write_atomically"]


def write_atomically(path: Path, content: bytes, mode: int = 0o666, *, keep_mode: bool = False) -> None:
    """Replace a file by another in one step; a crash at any moment leaves the old one or the new one.

    Args:
        path: in a folder that exists; a link is followed.
        content: all of it.
        mode: of the file, less what the user's umask takes.
        keep_mode: a file that is there keeps the mode it has.

    Raises:
        OSError: it cannot be written; what was there is untouched.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        kept = stat.S_IMODE(path.stat().st_mode) if keep_mode and path.exists() else None
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode if kept is None else 0o600)
        with open(descriptor, "wb") as file:
            if kept is not None:
                os.chmod(partial, kept)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # Windows cannot open a directory
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
