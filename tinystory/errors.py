"""Define the errors that a user can cause. Each message says in one or two lines what is wrong and what to do."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

__all__ = [
    "OUT_OF_MEMORY", "CheckpointError", "Meant", "SessionError", "TinystoryError", "UnreadableFile", "UsageError",
    "is_out_of_memory", "meant", "nearest", "one_line",
]  # fmt: skip

OUT_OF_MEMORY = "out of memory; try a smaller model, --dtype bfloat16, or fewer stories at once"


class TinystoryError(Exception):
    """A failure that the user can understand and correct; the command line exits with `exit_code`.

    Attributes:
        correction: the word that was typed, and the one that was probably meant; None if that is not known.
    """

    exit_code = 1
    correction: tuple[str, str] | None = None

    def correcting(self, typed: str, name: str | None) -> Self:
        """Note that `name` was probably meant by the word that was typed, if there is such a name."""
        self.correction = (typed, name) if name else None
        return self


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


_MOST_NAMES = 6
"""Names that a message lists for the beginning of a name."""


@dataclass(frozen=True)
class Meant:
    """What a word that is no name may stand for.

    Attributes:
        question: the end of a message, such as "did you mean `top-k`?"; empty if no name is like the word.
        name: the one name that was probably meant; None if there is none or there are several.
    """

    question: str
    name: str | None = None


def meant(text: str, names: Iterable[str], form: str = "{}") -> Meant:
    """Return what a mistyped or shortened name may stand for.

    Args:
        text: the word that was typed.
        names: the names that there are.
        form: how a message shows a name, such as "/{}".

    >>> meant("temp", ["temperature", "top-k", "top-p"], "`{}`")
    Meant(question='did you mean `temperature`?', name='temperature')
    >>> meant("top", ["temperature", "top-k", "top-p"])
    Meant(question='did you mean top-k or top-p?', name=None)
    """
    names = list(names)
    folded = _folded(text)
    alike = [name for name in names if _folded(name) == folded]
    begun = alike or [name for name in names if folded and _folded(name).startswith(folded)]
    if len(begun) > 1:
        shown = [form.format(name) for name in begun[:_MOST_NAMES]]
        listed = f"{', '.join(shown)} …" if len(begun) > _MOST_NAMES else f"{', '.join(shown[:-1])} or {shown[-1]}"
        return Meant(f"did you mean {listed}?")
    name = begun[0] if begun else nearest(text, names)
    return Meant(f"did you mean {form.format(name)}?", name) if name else Meant("")


def nearest(text: str, names: Iterable[str]) -> str | None:
    """Return the name that is most like a mistyped one, or None. Case, hyphens and underscores are ignored.

    Examples:
        >>> nearest("TopK", ["greedy", "top-k"])
        'top-k'
    """
    folded = {_folded(name): name for name in names}
    near = difflib.get_close_matches(_folded(text), folded, n=1)
    return folded[near[0]] if near else None


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name[:60].lower())


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
