"""Define the errors that a user can cause. Each message says in one or two lines what is wrong and what to do."""

import difflib
import re
from collections.abc import Iterable

__all__ = [
    "OUT_OF_MEMORY", "CheckpointError", "SessionError", "TinystoryError", "UnreadableFile", "UsageError",
    "is_out_of_memory", "nearest", "one_line",
]  # fmt: skip

OUT_OF_MEMORY = "out of memory; try a smaller model, --dtype bfloat16, or fewer stories at once"


class TinystoryError(Exception):
    """A failure that the user can understand and correct; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(TinystoryError):
    """The request itself is wrong: an unknown name, a value out of range, or a file of the user that is missing."""

    exit_code = 2


class UnreadableFile(TinystoryError):
    """A file is missing, is too large, or does not hold what it should; it may come from anybody."""

    exit_code = 3


class CheckpointError(TinystoryError):
    """A model is missing, is damaged, or cannot be run."""

    exit_code = 3


class SessionError(TinystoryError):
    """A session file is missing, in use, or cannot be written.

    Attributes:
        damaged: the content of the file is wrong.
    """

    exit_code = 3

    def __init__(self, message: str, *, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is used up. torch has an error of its own for it, and two messages."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in message or "out of memory" in message)


def nearest(text: str, names: Iterable[str]) -> str | None:
    """Return the name that is most like a mistyped one, or None. Case, hyphens and underscores are ignored.

    Examples:
        >>> nearest("TopK", ["greedy", "top-k"])
        'top-k'
    """

    def fold(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower())

    folded = {fold(name): name for name in names}
    near = difflib.get_close_matches(fold(text[:60]), folded, n=1)
    return folded[near[0]] if near else None


def one_line(error: BaseException, *, kind: bool = False) -> str:
    r"""Return the message of an error as one line of at most 160 characters; with `kind`, its class comes first.

    Examples:
        >>> one_line(ValueError("too\nlarge"), kind=True)
        'ValueError: too large'
    """
    message = " ".join(str(error).split())[:160]
    if not message:
        return type(error).__name__
    return f"{type(error).__name__}: {message}" if kind else message
