"""Call the `tokenizers` library so that no failure of it ends the program.

The library is written in Rust. Where it fails unexpectedly it raises `PanicException`, which is no `Exception`, and it
writes a report of many lines to file descriptor 2. The module knows no tokenizer.
"""

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator

from tinystory.errors import CheckpointError, TinystoryError, one_line

__all__ = ["is_failure", "library_call"]

_STDERR = 2


def is_failure(error: BaseException) -> bool:
    """Return whether an error is a failure of the library, and not a wish to stop the program such as Ctrl-C."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextlib.contextmanager
def library_call(what_fails: str) -> Iterator[None]:
    """Run calls of the library, and give an error of one line if one of them fails. Panics write nothing.

    Args:
        what_fails: the beginning of the message, such as "tokenizer.json cannot encode this text".

    Raises:
        CheckpointError: the library failed, in whatever way.
        KeyboardInterrupt, SystemExit: as they come.
    """
    panicked = False
    try:
        _held_stderr.hold()
        yield
    except TinystoryError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        panicked = not isinstance(error, Exception)
        raise CheckpointError(f"{what_fails}: {one_line(error)}") from error
    finally:
        _held_stderr.release(panicked)


class _HeldStderr:
    """File descriptor 2, which leads to a temporary file while a call runs.

    Calls may overlap in several threads: the first one begins to hold the text, and the last one ends it. What other
    threads wrote in the meantime is written then, unless a call has panicked.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_calls = 0
        self._panicked = False
        self._held = -1  # the temporary file; the process keeps it
        self._real = -1

    def hold(self) -> None:
        """Begin one call."""
        with self._lock:
            self._n_calls += 1
            if self._n_calls > 1:
                return
            self._panicked = False
            try:
                if self._held < 0:
                    with tempfile.TemporaryFile() as file:
                        self._held = os.dup(file.fileno())
                self._real = os.dup(_STDERR)
                os.dup2(self._held, _STDERR)
            except OSError:  # stderr is closed, or there is no room for the file: the call runs all the same
                pass

    def release(self, panicked: bool) -> None:
        """End one call."""
        with self._lock:
            self._n_calls = max(0, self._n_calls - 1)  # Ctrl-C may have come before the call was counted
            self._panicked |= panicked
            if self._n_calls or self._real < 0:
                return
            os.dup2(self._real, _STDERR)
            os.close(self._real)
            self._real = -1
            n_bytes = os.lseek(self._held, 0, os.SEEK_CUR)
            if n_bytes:
                self._pass_on(n_bytes)

    def _pass_on(self, n_bytes: int) -> None:
        """Write the held text, and empty the file."""
        os.lseek(self._held, 0, os.SEEK_SET)
        if not self._panicked:
            with contextlib.suppress(OSError):
                os.write(_STDERR, os.read(self._held, n_bytes))
        os.lseek(self._held, 0, os.SEEK_SET)
        os.ftruncate(self._held, 0)


_held_stderr = _HeldStderr()
