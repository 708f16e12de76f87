"""The errors a user can cause. Each message says what is wrong and what to do, in one or two lines."""

__all__ = ["CheckpointError", "SessionError", "TinystoryError", "UsageError"]


class TinystoryError(Exception):
    """Something failed that the user can understand and mend; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(TinystoryError):
    """The request itself is wrong: an unknown name, a value out of range, a missing file of the user's."""

    exit_code = 2


class CheckpointError(TinystoryError):
    """A model is missing, damaged, or of a kind that cannot be run."""

    exit_code = 3


class SessionError(TinystoryError):
    """A session file is missing, in use, or cannot be written; where its content is at fault, it is `damaged`."""

    def __init__(self, message: str, *, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged
