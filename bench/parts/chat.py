"""The part `chat`: how long a user waits for the input line of a chat, and for the first token after torch is loaded.

Each chat runs on a pseudo-terminal of its own, with an empty home. It is killed when the expected text is on the
screen. So its CPU time includes everything until then, also the part of torch that was loaded. The other side is a
Python that only imports torch.
"""

import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.ours import PROMPT, SEED
from bench.pairs import Measurement, TimedRun, run_pairs, times
from bench.subject import Subject
from tinystory.errors import TinystoryError

__all__ = ["measure_chat"]

SECONDS = 60.0
"""The longest time without output."""

READY = b"\x1b[?2004h"
"""The escape sequence that a program sends when it begins to read a line."""

WHERE = b"\x1b[6n"
"""The escape sequence that asks a terminal where its cursor is."""

# A chat that writes the time into a file when torch has been imported.
WATCHED = """
import sys, time
from importlib.machinery import PathFinder
mark = sys.argv.pop(1)

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def timed(module):
            execute(module)
            with open(mark, "w") as file:
                file.write(str(time.perf_counter()))
        spec.loader.exec_module = timed
        return spec

sys.meta_path.insert(0, Watch())
from tinystory.cli import main
sys.exit(main())
"""


def measure_chat(subject: Subject) -> list[Measurement]:
    """Measure a chat beside a Python that imports torch, and `--help` beside a Python that does nothing."""
    directory = subject.directory
    help_cpu, _ = times("chat", "--help (right: python -c pass)", "python")
    _, story_wall = times("chat", "torch to first token (right: import torch)", "import torch")
    measurements = {
        "help": [help_cpu],
        "prompt": times("chat", "process to prompt (right: import torch)", "import torch"),
        "story": [story_wall],
    }
    torch = [sys.executable, "-c", "import torch"]
    sides: dict[str, tuple[Callable[[], TimedRun], Callable[[], TimedRun]]] = {
        "help": (
            lambda: finished([sys.executable, "-m", "tinystory", "--help"]),
            lambda: finished([sys.executable, "-c", "pass"]),
        ),
        "prompt": (lambda: to_input_line(directory), lambda: finished(torch)),
        "story": (lambda: to_story(directory), lambda: finished(torch)),
    }
    for name, (ours, theirs) in sides.items():
        ours(), theirs()  # so that files are in the cache, and bytecode is written
        run_pairs(f"chat: {name}", subject.settings.pairs, measurements[name], ours, theirs)
    return [measurement for measured in measurements.values() for measurement in measured]


def finished(command: Sequence[str]) -> TimedRun:
    """Run a command to its end.

    Raises:
        TinystoryError: it failed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise TinystoryError(f"{' '.join(command[1:])} failed with {process.returncode}")
    return TimedRun("", usage.ru_utime + usage.ru_stime, time.perf_counter() - started)


def to_input_line(directory: Path) -> TimedRun:
    """Run a chat until its input line is on the screen."""
    command = [sys.executable, "-m", "tinystory", "chat", "-m", str(directory), "--seed", str(SEED)]
    with Chat(command) as chat:
        chat.until(READY)
        chat.until(b">")
        return chat.killed()


def to_story(directory: Path) -> TimedRun:
    """Run a chat in which a prompt is typed at once. The time is from the import of torch to the first token."""
    with tempfile.TemporaryDirectory(prefix="tinystory-bench-") as folder:
        mark = Path(folder) / "torch"
        chat_flags = ["chat", "-m", str(directory), "--seed", str(SEED), "-d", "greedy"]
        with Chat([sys.executable, "-c", WATCHED, str(mark), *chat_flags]) as chat:
            chat.until(READY)
            chat.type(f"{PROMPT}\r")
            chat.until(b"loading")
            chat.until(PROMPT.encode())
            chat.until(b",")  # the first token of the greedy story; escape sequences may stand before it
            run = chat.killed()
        imported = float(mark.read_text(encoding="utf-8"))
        return replace(run, wall=chat.last_seen - imported)


class Chat:
    """A process on a pseudo-terminal.

    Attributes:
        last_seen: when the latest expected text came, in the seconds of `time.perf_counter`.
    """

    def __init__(self, command: Sequence[str]) -> None:
        import fcntl
        import pty
        import termios

        self._home = tempfile.mkdtemp(prefix="tinystory-bench-")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TINYSTORY_")} | {
            "TERM": "xterm-256color", "HOME": self._home,
            "XDG_CONFIG_HOME": self._home, "XDG_DATA_HOME": self._home, "XDG_STATE_HOME": self._home,
        }  # fmt: skip
        self._unread = b""
        self.last_seen = self._started = time.perf_counter()
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.execve(command[0], list(command), environment)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pid:
            self.killed()

    def until(self, wanted: bytes) -> None:
        """Read until some bytes have come.

        Raises:
            TinystoryError: the process ended, or sent nothing for SECONDS.
        """
        seen = self._unread
        while wanted not in seen:
            ready, _, _ = select.select([self._terminal], [], [], SECONDS)
            try:
                new = os.read(self._terminal, 65536) if ready else b""
            except OSError:  # the process has ended
                new = b""
            if not new:
                raise TinystoryError(f"a chat never showed {wanted!r}; it showed {seen[-300:]!r}")
            seen += new
            for _ in range(new.count(WHERE)):  # answer as a terminal does
                self.type("\x1b[1;1R")
        self.last_seen = time.perf_counter()
        self._unread = seen.partition(wanted)[2]

    def type(self, text: str) -> None:
        """Send keys to the process."""
        os.write(self._terminal, text.encode())

    def killed(self) -> TimedRun:
        """Kill the process. Return its CPU time, and the wall time until the latest expected text."""
        os.kill(self._pid, signal.SIGKILL)
        _, _, usage = os.wait4(self._pid, 0)
        self._pid = 0
        os.close(self._terminal)
        shutil.rmtree(self._home, ignore_errors=True)
        return TimedRun("", usage.ru_utime + usage.ru_stime, self.last_seen - self._started)
