"""Replace files and links as a whole: after a crash at any moment there is the old one or the new one, never a part.

It knows files only, and not what is written into them.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import BinaryIO

from tinystory.errors import UsageError
from tinystory.safe.leftovers import lock, sweep

__all__ = ["refuse_input", "replace_link", "sync_folder", "write_atomically"]

_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}
"""The errors by which a system says that it cannot sync folders, or not this one."""


def refuse_input(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse to replace one of the files that a command reads; links and other spellings of a name are seen through.

    Raises:
        UsageError: `out` is one of the inputs.
    """
    for path in inputs:
        with contextlib.suppress(OSError, ValueError):  # what is not there is no input that could be lost
            if out.samefile(path):
                raise UsageError(f"{out} would be replaced, and it is a file that is read here; give another name")


def write_atomically(
    path: Path, content: bytes | Callable[[BinaryIO], object], mode: int = 0o666, *, keep_mode: bool = False
) -> None:
    """Replace a file, or make a new one, in one step.

    The content goes into a temporary file beside the target, under a name that no other process uses. The file is
    synced to the disk and renamed, and then its folder is synced.

    Args:
        path: in a folder that exists; a link is followed.
        content: the whole content, or a function that writes it into an open binary file.
        mode: permissions of the file; the user's umask takes some away.
        keep_mode: keep the permissions that an existing file has.

    Raises:
        OSError: the file cannot be written, or a folder or a device is in its place; the old one is untouched.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file, so it cannot be replaced", str(path))
    _sweep_once(path.parent)
    temporary = _temporary(path)
    try:
        old_mode = stat.S_IMODE(path.stat().st_mode) if keep_mode and path.exists() else None
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode if old_mode is None else 0o600)
        with open(descriptor, "wb") as file:
            lock(descriptor)
            if old_mode is not None:
                os.chmod(temporary, old_mode)
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    sync_folder(path.parent)


def replace_link(link: Path, target: str) -> None:
    """Point a symbolic link at a target in one step, whether or not the link exists.

    Raises:
        OSError: the link cannot be written; the old one is untouched.
    """
    _sweep_once(link.parent)
    temporary = _temporary(link)
    try:
        temporary.symlink_to(target)
        os.replace(temporary, link)
    except BaseException:
        _remove(temporary)
        raise
    sync_folder(link.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; do nothing where the system cannot sync a folder.

    Raises:
        OSError: the disk reports an error.
    """
    if os.name != "posix":  # Windows cannot open a folder
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


@cache
def _sweep_once(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder, once in the life of this process."""
    sweep(folder, r"\.[0-9a-f]{16}\.partial")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(8)}.partial")


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
