"""How long a chat keeps its writer waiting: for the prompt, and once torch is there for the first story.

Each chat runs on a pseudo-terminal of its own, in a home of its own, and is killed as soon as what was waited for is on
the screen: its CPU time is then that of everything up to there, torch included as far as it had come. The figures stand
beside what nobody can do without, a Python that imports torch, and says no more.
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
from typing import TYPE_CHECKING

from bench.pairs import Measurement, TimedRun, run_pairs
from tinystory.errors import TinystoryError

if TYPE_CHECKING:
    import argparse

__all__ = ["measure_chat"]

PROMPT = "Once upon a time"
SEED = 7
SECONDS = 60.0
"""As long as anything may take."""

READY = b"\x1b[?2004h"
"""What is sent when a line begins to be read, and the prompt with it."""

WHERE = b"\x1b[6n"
"""Asks a terminal where its cursor is."""

# Tells when torch is there, and is a chat like any other.
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


def measure_chat(directory: Path, args: "argparse.Namespace") -> list[Measurement]:
    """The first side is tinystory, the second a Python that imports torch; `--help` is told beside an empty Python."""
    measurements = {
        "help": [Measurement("chat", "--help (right: python -c pass)", "CPU s", lambda run: run.cpu, peer="python")],
        "prompt": [
            Measurement("chat", "process to prompt (right: import torch)", unit, value, peer="import torch")
            for unit, value in (("CPU s", cpu_of), ("s", wall_of))
        ],
        "story": [Measurement("chat", "torch to first token (right: import torch)", "s", wall_of, peer="import torch")],
    }
    torch = [sys.executable, "-c", "import torch"]
    sides: dict[str, tuple[Callable[[], TimedRun], Callable[[], TimedRun]]] = {
        "help": (
            lambda: finished([sys.executable, "-m", "tinystory", "--help"]),
            lambda: finished([sys.executable, "-c", "pass"]),
        ),
        "prompt": (lambda: to_prompt(directory), lambda: finished(torch)),
        "story": (lambda: to_story(directory), lambda: finished(torch)),
    }
    for name, (ours, theirs) in sides.items():
        ours(), theirs()  # files into the cache, bytecode written
        run_pairs(f"chat: {name}", args.pairs, measurements[name], ours, theirs)
    return [measurement for found in measurements.values() for measurement in found]


def cpu_of(run: TimedRun) -> float:
    """Its CPU seconds."""
    return run.cpu


def wall_of(run: TimedRun) -> float:
    """Its seconds."""
    return run.wall


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


def to_prompt(directory: Path) -> TimedRun:
    """Start a chat; until its prompt is on the screen."""
    command = [sys.executable, "-m", "tinystory", "chat", "-m", str(directory), "--seed", str(SEED)]
    with Chat(command) as chat:
        chat.until(READY)
        chat.until(b">")
        return chat.killed()


def to_story(directory: Path) -> TimedRun:
    """Start a chat and type a beginning at once; the time from torch's import to the first token on the screen."""
    with tempfile.TemporaryDirectory(prefix="tinystory-bench-") as folder:
        mark = Path(folder) / "torch"
        chat_flags = ["chat", "-m", str(directory), "--seed", str(SEED), "-d", "greedy"]
        with Chat([sys.executable, "-c", WATCHED, str(mark), *chat_flags]) as chat:
            chat.until(READY)
            chat.type(f"{PROMPT}\r")
            chat.until(b"loading")
            chat.until(PROMPT.encode())
            chat.until(b",")  # greedy; a style may stand before it
            run = chat.killed()
        now = chat.last_seen
        return replace(run, wall=now - float(mark.read_text(encoding="utf-8")))


class Chat:
    """A process on a pseudo-terminal.

    Attributes:
        last_seen: when what was last waited for came, in `time.perf_counter`'s seconds.
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
        """Read until something is on the screen.

        Raises:
            TinystoryError: it does not come.
        """
        seen = self._unread
        while wanted not in seen:
            ready, _, _ = select.select([self._terminal], [], [], SECONDS)
            try:
                new = os.read(self._terminal, 65536) if ready else b""
            except OSError:  # it has left
                new = b""
            if not new:
                raise TinystoryError(f"a chat never showed {wanted!r}; it showed {seen[-300:]!r}")
            seen += new
            for _ in range(new.count(WHERE)):  # as a terminal does
                self.type("\x1b[1;1R")
        self.last_seen = time.perf_counter()
        self._unread = seen.partition(wanted)[2]

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._terminal, text.encode())

    def killed(self) -> TimedRun:
        """End the process at once; its CPU time, and the time until what was last waited for."""
        os.kill(self._pid, signal.SIGKILL)
        _, _, usage = os.wait4(self._pid, 0)
        self._pid = 0
        os.close(self._terminal)
        shutil.rmtree(self._home, ignore_errors=True)
        return TimedRun("", usage.ru_utime + usage.ru_stime, self.last_seen - self._started)
