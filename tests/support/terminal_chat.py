"""A process on a pseudo-terminal, and a chat with a model that writes numbered words."""

import os
import re
import signal
import sys

import pexpect

READY = re.escape("\x1b[?2004h")
"""The sequence that prompt_toolkit sends when it begins to read a line, and the chat when it begins to write."""

SCRIPTED = """
import sys, time
from tinystory.decoding import Token
from tinystory.writing.generate import Ended, Story, Text
from tinystory.decoding.plugins import discover
from tinystory.folders import history_file
from tinystory.interrupts import ending_signals
from tinystory.repl.app import App, ChatSettings
from tinystory.repl.history import open_history
from tinystory.screen.lease import output_until_hang_up
from tinystory.screen.screen import Screen
from tinystory.studio.keeper import Keeper
from tinystory.studio.studio import Studio
from tinystory.decoding.spec import parse_spec

class Words:
    "Writes numbered words until it is stopped."
    name, max_seq_len, loading = "words", 512, False
    dtype, vocabulary, heals = "float32", "words", False
    def facts(self): return [("model", self.name)]
    def start(self): pass
    def take_warnings(self): return ()
    def wait(self, cancel): return True
    def encode(self, text, *, bos): return [0] * bos + [ord(c) for c in text]
    def detokenize(self, ids): return "".join(chr(i) if i < 1000 else f" w{i - 1000}" for i in ids if i)
    def token_text(self, i): return self.detokenize([i])
    def model_hash(self): return "0" * 64
    def evaluate(self, stories):
        print("evaluating", flush=True)
        while True:
            time.sleep(0.01)
    def write(self, requests):
        request, = requests
        prompt_ids = request.prompt_ids or self.encode(request.prompt, bos=True)
        tokens, text, reason = [], "", "length"
        while len(tokens) < request.max_new_tokens:
            token = Token(1000 + len(prompt_ids) + len(tokens), -1.0)
            tokens.append(token)
            piece = self.detokenize([token.id])
            text += piece
            yield Text(0, piece, (token,))
            time.sleep(0.01)
            if request.cancel():
                reason = "cancelled"
                break
        figures = dict(seconds=1.0, first_token_seconds=0.1, tokens_per_second=1.0, bits_per_token=1.0)
        yield Ended(0, Story(request, text, prompt_ids, tuple(tokens), reason, figures))

registry = discover(user_folder=None)
studio = Studio(
    registry, parse_spec("greedy", registry), backend=Words(), open_model=lambda name: Words(), seed=1,
    max_tokens=100_000,
)
keeper = Keeper(studio)
settings = ChatSettings(color=False, keys=sys.argv[1] if len(sys.argv) > 1 else "emacs")
with ending_signals():
    try:
        with output_until_hang_up():
            code = App(studio, Screen(sys.stdout, color=False), settings, open_history(history_file()), keeper).run()
    finally:
        keeper.close()
sys.exit(code)
"""


def _hear_signals():
    """Undo what nohup and a shell do to background jobs, in which these tests may run: some signals are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


class Terminal:
    """A process on a pseudo-terminal, with everything that it has printed."""

    def __init__(self, code, *args, folder, term="xterm", size=(24, 80), **variables):
        environment = {
            **os.environ,
            "TERM": term,
            "LC_ALL": "C.UTF-8",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "OMP_NUM_THREADS": "1",
            "XDG_STATE_HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "XDG_DATA_HOME": str(folder),
            **variables,
        }
        self.log = ""
        self.child = pexpect.spawn(
            sys.executable,
            ["-c", code, *args],
            env=environment,
            encoding="utf-8",
            dimensions=size,
            timeout=20,
            preexec_fn=_hear_signals,
        )
        self.child.delaybeforesend = None

    def expect(self, pattern):
        """Wait for a pattern; return the text before it."""
        try:
            self.child.expect(pattern)
        except (pexpect.TIMEOUT, pexpect.EOF) as error:
            actual, log = self.child.before, self.log
            raise AssertionError(f"expected {pattern!r}\nactual   {actual!r}\nlog      {log!r}") from error
        self.log += self.child.before + (self.child.after if isinstance(self.child.after, str) else "")
        return self.child.before

    def send(self, text):
        self.child.send(text)

    def exit_code(self):
        self.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus
