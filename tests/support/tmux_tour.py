"""A chat in tmux, driven by keys and read from its screen."""

import os
import re
import subprocess
import sys
import time
import uuid

SECONDS = 30.0
"""The longest wait for anything on a busy machine."""

WRONG = ("unexpected error", "Traceback", "please report it", "\x1b", "^[[")
ADDED_LINE = "and they all went home."
ENDLESS = '''
import math
from dataclasses import dataclass
from tinystory.decoding import LogitsProcessor

@dataclass(frozen=True)
class Endless(LogitsProcessor):
    """No story ends by itself."""
    name = "endless"

    def __call__(self, logits, step):
        return logits.index_fill(0, logits.new_tensor(sorted(step.eos_ids)).long(), -math.inf)
'''


def found(pattern, text):
    """Return how often a pattern is in a text."""
    return sum(1 for _ in re.finditer(pattern, text, re.MULTILINE))


class Tour:
    """A chat in a tmux session of its own.

    Attributes:
        commands: the names of the slash commands that have been typed.
        folder: where it runs.
    """

    def __init__(self, folder, size=(80, 24), options=(), **environment):
        self.commands, self.folder = set(), folder
        self._name = f"tinystory-tour-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        editor = folder / "editor.sh"
        editor.write_text(f'#!/bin/sh\nprintf "%s" " {ADDED_LINE}" >> "$1"\n', encoding="utf-8")
        editor.chmod(0o700)
        endless = folder / "endless.py"
        endless.write_text(ENDLESS, encoding="utf-8")
        settings = folder / "tmux.conf"
        # tmux keeps the copied text, and the screen of a chat that has ended.
        settings.write_text("set -g set-clipboard on\nset -g remain-on-exit on\nset -g history-limit 50000\n")
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TMUX", "TINYSTORY_", "COLORFGBG", "NO_COLOR", "VISUAL"))
        } | {
            "HOME": str(folder),
            "TMUX_TMPDIR": str(folder),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_DATA_HOME": str(folder / "data"),
            "XDG_STATE_HOME": str(folder / "state"),
            "OMP_NUM_THREADS": "1",
            "LC_ALL": "C.UTF-8",
            "EDITOR": str(editor),
            "TERM": "xterm-256color",
            **environment,
        }
        columns, rows = size
        chat = [sys.executable, "-m", "tinystory", "chat", "--seed", "7", "-n", "20"]
        chat += ["--decoder-file", str(endless), *options]
        self._tmux("-f", str(settings), "new-session", "-d", "-x", f"{columns}", "-y", f"{rows}", "-c", f"{folder}",
                   "--", "sh", "-c", 'trap : INT; "$@"; echo $? > status', "sh", *chat)  # fmt: skip

    def _tmux(self, *args, check=True):
        done = subprocess.run(
            ["tmux", "-L", self._name, *args], env=self._environment, capture_output=True, text=True, timeout=SECONDS
        )
        assert not check or done.returncode == 0, f"tmux {args}: {done.stderr}"
        return done.stdout

    def shown(self, *, styled=False):
        """Return everything that has been on the screen; a wrapped line is one line."""
        text = self._tmux("capture-pane", "-p", "-J", "-S", "-", *(["-e"] if styled else []))
        return "\n".join(line.rstrip() for line in text.splitlines())

    def screen(self):
        """Return the present screen."""
        return "\n".join(line.rstrip() for line in self._tmux("capture-pane", "-p").splitlines())

    def until(self, met, what):
        """Poll until a condition holds."""
        end = time.monotonic() + SECONDS
        while not met():
            assert time.monotonic() < end, f"waited for {what}; shown so far:\n{self.shown()}"
            time.sleep(0.02)

    def ready(self):
        """Wait for an empty input line, with the toolbar under it."""
        self.until(lambda: re.search(r"^>\n+ [^\n]+\Z", self.screen().rstrip("\n"), re.MULTILINE), "the input line")

    def press(self, *keys):
        self._tmux("send-keys", *keys)

    def type(self, text):
        self._tmux("send-keys", "-l", "--", text)

    def paste(self, text):
        self._tmux("set-buffer", "-b", "pasted", "--", text)
        self._tmux("paste-buffer", "-p", "-b", "pasted")

    def after(self, act, *patterns, prompt=True):
        """Do something, and wait until each pattern has come once more than before. Return the text shown since."""
        before = self.shown()
        counts = [found(pattern, before) for pattern in patterns]
        act()
        for pattern, count in zip(patterns, counts, strict=True):
            self.until(lambda p=pattern, n=count: found(p, self.shown()) > n, repr(pattern))
        if prompt:
            self.ready()
        return self.shown()[len(before.partition("\n>\n")[0]) :]

    def keys(self, *keys, sees=(), prompt=True):
        return self.after(lambda: self.press(*keys), *((sees,) if isinstance(sees, str) else sees), prompt=prompt)

    def says(self, text, *patterns, enter=True):
        """Type a line and send it."""

        def act():
            self.type(text)
            if enter:
                self.press("Enter")

        if text.startswith("/") and not text.startswith("//"):
            self.commands.add(text[1:].split()[0])
        return self.after(act, *patterns, prompt=enter)

    def copied(self):
        """Return the text on the terminal's clipboard."""
        return self._tmux("show-buffer", check=False)

    def leave(self):
        """Press Ctrl-D; return the exit code."""
        self.press("C-d")
        return self.exit_code()

    def exit_code(self):
        status = self.folder / "status"
        self.until(lambda: status.exists() and status.read_text(), "the end")
        return int(status.read_text())

    def check(self):
        """Check that the screen shows no traceback and no escape sequence."""
        shown = self.shown()
        assert not [wrong for wrong in WRONG if wrong in shown], shown

    def end(self):
        self._tmux("kill-server", check=False)
