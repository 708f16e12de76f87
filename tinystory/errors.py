"""The errors a user can cause. Each message says what is wrong and what to do, in one or two lines."""

import difflib
import re
from collections.abc import Iterable

__all__ = ["CheckpointError", "SessionError", "TinystoryError", "UnreadableFile", "UsageError", "nearest", "one_line"]


class TinystoryError(Exception):
    """Something failed that the user can understand and mend; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(TinystoryError):
    """The request itself is wrong: an unknown name, a value out of range, a missing file of the user's."""

    exit_code = 2


class UnreadableFile(TinystoryError):
    """A file is missing, is too large, or does not hold what it should; it may come from anybody."""

    exit_code = 3


class CheckpointError(TinystoryError):
    """A model is missing, damaged, or of a kind that cannot be run."""

    exit_code = 3


class SessionError(TinystoryError):
    """A session file is missing, in use, or cannot be written; where its content is at fault, it is `damaged`."""

    def __init__(self, message: str, *, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged


def nearest(text: str, names: Iterable[str]) -> str | None:
    """The name most like a mistyped one, if any is; case, hyphens and underscores do not count.

    >>> nearest("TopK", ["greedy", "top-k"])
    'top-k'
    """

    def fold(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower())

    folded = {fold(name): name for name in names}
    near = difflib.get_close_matches(fold(text[:60]), folded, n=1)
    return folded[near[0]] if near else None


def one_line(error: BaseException, *, kind: bool = False) -> str:
    r"""Return what an error says as one line of at most 160 characters; with `kind` its class comes first.

    >>> one_line(ValueError("too\nlarge"), kind=True)
    'ValueError: too large'
    """
    message = " ".join(str(error).split())[:160]
    if not message:
        return type(error).__name__
    return f"{type(error).__name__}: {message}" if kind else message
