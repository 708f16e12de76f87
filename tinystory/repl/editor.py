"""The user's own editor for a text."""

import os
import shlex
import shutil
import subprocess

from tinystory.errors import UsageError
from tinystory.safe.leftovers import temporary_folder

__all__ = ["edit_text"]

_EDITORS = ("sensible-editor", "nano", "vi", "emacs")


def edit_text(text: str) -> str | None:
    """Open a text in $VISUAL, in $EDITOR, or in the first editor found; return the saved text.

    The newline that editors put at the end of a file is not part of the text.

    Returns:
        The edited text, or None if it has not changed.

    Raises:
        UsageError: there is no editor, it failed, or the saved text is not UTF-8.
    """
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or next(filter(shutil.which, _EDITORS), None)
    if not command:
        raise UsageError("no editor was found: set EDITOR to one, as in EDITOR=nano")
    with temporary_folder("tinystory-edit-") as folder:
        path = folder / "story.txt"
        path.write_bytes(text.encode("utf-8", errors="replace"))
        try:
            subprocess.run([*shlex.split(command), str(path)], check=True)
            edited = path.read_bytes().decode("utf-8")
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise UsageError(f"the editor {command!r} failed, and the story has not changed: {error}") from error
    if not text.endswith("\n"):
        edited = edited.removesuffix("\n")
    return None if edited == text else edited
