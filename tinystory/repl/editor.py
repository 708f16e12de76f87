"""The user's own editor for a text."""

import os
import shlex
import shutil
import subprocess

from tinystory.errors import TinystoryError, UsageError
from tinystory.safe.leftovers import temporary_folder
from tinystory.safe.reading import read_bytes

__all__ = ["edit_text"]

_EDITORS = ("sensible-editor", "nano", "vi", "emacs")
_MARK = "\ufeff"
_MOST_BYTES = 2**24
"""The size of the largest text that is taken back; an editor may leave anything in the place of the file."""


def edit_text(text: str) -> str | None:
    """Open a text in $VISUAL, in $EDITOR, or in the first editor found; return the saved text.

    What editors add on their own is not part of the text: a newline at its end, a byte order mark, and carriage returns
    if the text had none.

    Returns:
        The edited text, or None if it has not changed.

    Raises:
        UsageError: there is no editor, it failed, or what it saved is no text in UTF-8.
    """
    named = (os.environ.get(name, "").strip() for name in ("VISUAL", "EDITOR"))
    command = next(filter(None, named), None) or next(filter(shutil.which, _EDITORS), None)
    if not command:
        raise UsageError("no editor was found: set EDITOR to one, as in EDITOR=nano")
    with temporary_folder("tinystory-edit-") as folder:
        path = folder / "story.txt"
        path.write_bytes(text.encode("utf-8", errors="replace"))
        try:
            subprocess.run([*shlex.split(command), str(path)], check=True)
            edited = read_bytes(path, _MOST_BYTES).decode("utf-8")
        except (OSError, ValueError, subprocess.CalledProcessError, TinystoryError) as error:
            raise UsageError(f"the editor {command!r} failed, and the text has not changed: {error}") from error
    if not text.startswith(_MARK):
        edited = edited.removeprefix(_MARK)
    if "\r" not in text:
        edited = edited.replace("\r\n", "\n")
    if not text.endswith("\n"):
        edited = edited.removesuffix("\n")
    return None if edited == text else edited
