"""Read seeded cases one after the other, and collect those that do not end as they should."""

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tinystory.errors import TinystoryError

KEPT = Path(__file__).parent / "kept"
"""Inputs that once failed, in a folder for each target."""

MOST_SECONDS = 2.0  # of the processor: other programs may be busy, too
MOST_MEGABYTES = 500
LONGEST_MESSAGE = 1_000
EXIT_CODES = (1, 2, 3)


@dataclass(frozen=True)
class Target:
    """A reader of files.

    Attributes:
        name: the word for the command line, and the folder of kept inputs.
        make: returns one case for a source of random numbers.
        read: reads a case, and may use an empty folder; it raises `TinystoryError` for a case that it refuses.
    """

    name: str
    make: Callable[[random.Random], bytes]
    read: Callable[[bytes, Path], None]

    def case(self, number, seed=0):
        """Return the case of a number: always the same."""
        return self.make(random.Random(f"{self.name}/{seed}/{number}"))


@dataclass
class Result:
    """What came out of many cases. A failure is the name of a case and the reason; the slowest is seconds and name."""

    n_read: int = 0
    n_refused: int = 0
    failures: list = field(default_factory=list)
    slowest: tuple = (0.0, "")
    largest: tuple = (0.0, "")


def run(target, cases, keep=None, progress=lambda result: None):
    """Read cases, which are pairs of name and bytes.

    Args:
        target: the reader.
        cases: pairs of name and bytes.
        keep: a folder to which failing cases are written. The case that is being read lies there as `running`, so that
            it is known after an abort.
        progress: is called with the result after each case.
    """
    result, idle = Result(), 0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as stderr:
        for name, case in cases:
            if not idle:
                _outcome(target, case, Path(folder))  # it imports what the reader needs
                idle = _memory("VmRSS")
            if keep:
                (keep / "running").write_bytes(case)
            _forget_peak()
            start = time.process_time()
            with _stderr_to(stderr):
                outcome = _outcome(target, case, Path(folder))
            seconds = time.process_time() - start
            megabytes = max(0, _memory("VmHWM") - idle) / 1024
            reason = _reason(outcome, seconds, megabytes, _drained(stderr))
            result.slowest, result.largest = (
                max(result.slowest, (seconds, name)),
                max(result.largest, (megabytes, name)),
            )
            result.n_read += outcome is None
            result.n_refused += isinstance(outcome, TinystoryError)
            if reason:
                result.failures.append((name, reason))
                if keep:
                    (keep / name).write_bytes(case)
            progress(result)
    if keep:
        (keep / "running").unlink(missing_ok=True)
    return result


def kept(target):
    """Return the inputs that once failed."""
    return [(path.name, path.read_bytes()) for path in sorted((KEPT / target.name).glob("*"))]


def _outcome(target, case, folder):
    """Return the error of one case, or None."""
    try:
        target.read(case, folder)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return error
    return None


def _reason(outcome, seconds, megabytes, written):
    """Return what is wrong with a case, or ""."""
    if outcome is not None and not isinstance(outcome, TinystoryError):
        return f"{type(outcome).__name__}: {str(outcome)[:200]}"
    message = str(outcome or "")
    if message.count("\n") > 1 or len(message) > LONGEST_MESSAGE:
        return f"a message of {len(message)} characters and {message.count(chr(10)) + 1} lines"
    if outcome is not None and outcome.exit_code not in EXIT_CODES:
        return f"exit code {outcome.exit_code}"
    if "unexpected error" in message:
        return message
    if written:
        return f"stderr: {written[:200]!r}"
    if seconds > MOST_SECONDS:
        return f"{seconds:.1f} s ({message or 'read'})"
    if megabytes > MOST_MEGABYTES:
        return f"{megabytes:.0f} MB ({message or 'read'})"
    return ""


@contextlib.contextmanager
def _stderr_to(file):
    """Lead file descriptor 2 to a file."""
    real = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(real, 2)
        os.close(real)


def _drained(file):
    """Return what was written to a file, and empty it."""
    file.seek(0)
    written = file.read()
    file.seek(0)
    file.truncate()
    return written


def _memory(field_name):
    """Return a figure of this process in KiB; 0 on systems that do not say it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else ()
    return next((int(line.split()[1]) for line in lines if line.startswith(field_name)), 0)


def _forget_peak():
    """Let the largest memory of this process begin again."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
