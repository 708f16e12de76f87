"""The chat on a pseudo-terminal: tests that need a terminal, signals or processes."""

import os
import re
import signal
import sys

import pytest

pexpect = pytest.importorskip("pexpect")

pytestmark = [pytest.mark.tty, pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX pseudo-terminal")]

READY = re.escape("\x1b[?2004h")
"""The sequence that prompt_toolkit sends when it begins to read a line, and the chat when it begins to write."""

SCRIPTED = """
import signal, sys, time
from tinystory.decoding import Token
from tinystory.writing.generate import Ended, Story, Text
from tinystory.decoding.plugins import discover
from tinystory.repl.app import App, ChatSettings
from tinystory.screen.screen import Screen
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

def end(number, frame): raise SystemExit(143)

signal.signal(signal.SIGTERM, end)
registry = discover(user_folder=None)
studio = Studio(
    registry, parse_spec("greedy", registry), backend=Words(), open_model=lambda name: Words(), seed=1,
    max_tokens=100_000,
)
settings = ChatSettings(color=False)
sys.exit(App(studio, Screen(sys.stdout, color=False), settings).run())
"""

GATED = """
import pathlib, sys, time
from importlib.machinery import PathFinder
gate = pathlib.Path(sys.argv[1])

class Gate:
    "Holds the import of torch until a file appears; in its code, as everything before that is under a common lock."
    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def wait(module):
            while not gate.exists():
                time.sleep(0.02)
            execute(module)
        spec.loader.exec_module = wait
        return spec

sys.meta_path.insert(0, Gate())
from tinystory.repl.app import ChatSettings, chat
sys.exit(chat(ChatSettings(model=sys.argv[2], seed=1, color=False, max_tokens=30)))
"""


def _hear_ctrl_c():
    """Undo what a shell does to its background jobs, in which these tests may run: there, SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A process on a pseudo-terminal, with everything that it has printed."""

    def __init__(self, code, *args, folder, term="xterm", size=(24, 80)):
        environment = {
            **os.environ,
            "TERM": term,
            "LC_ALL": "C.UTF-8",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "OMP_NUM_THREADS": "1",
            "XDG_STATE_HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "XDG_DATA_HOME": str(folder),
        }
        self.log = ""
        self.child = pexpect.spawn(
            sys.executable,
            ["-c", code, *args],
            env=environment,
            encoding="utf-8",
            dimensions=size,
            timeout=20,
            preexec_fn=_hear_ctrl_c,
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


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def start(code, *args, **options):
        opened.append(Terminal(code, *args, folder=tmp_path, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.child.close(force=True)


def test_prompt_completion_and_cancelling_do_not_wait_for_torch(terminal, tmp_path):
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from tinystory.checkpoint import save_checkpoint
    from tinystory.model.config import ModelConfig
    from tinystory.model.transformer import Transformer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    model = Transformer(ModelConfig.llama(256, 1, 1, 32, 64, 64))
    save_checkpoint(tmp_path / "model", model, fast.to_str(), bos_id=None, eos_ids=(), provenance={})

    gate = tmp_path / "gate"
    chat = terminal(GATED, str(gate), str(tmp_path / "model"))
    chat.expect("Ctrl-D leaves")
    chat.expect(READY)
    chat.send("/decoder gr\t\r")
    chat.expect("decoder: greedy")
    chat.expect(READY)
    chat.send("Once\r")
    chat.expect("loading .*model …")
    chat.child.sendintr()
    chat.expect("Once\r\n— cancelled while the model was loading")
    chat.expect(READY)
    gate.touch()
    chat.send("\r")
    chat.expect("30 tokens .* length · greedy · seed 1")
    chat.expect(READY)
    chat.send("/model nowhere-at-all/really\r")
    chat.expect("there is no directory")
    chat.expect(READY)
    chat.child.sendeof()
    assert chat.exit_code() == 0


def test_ctrl_c_keeps_the_story_and_twice_leaves(terminal):
    chat = terminal(SCRIPTED)
    chat.expect(READY)
    chat.send("Once\r")
    chat.expect("Once w5 w6 w7")
    chat.child.setwinsize(10, 30)
    chat.expect(" w20 ")
    chat.child.sendintr()
    chat.expect("cancelled ")
    chat.expect(READY)
    chat.send("/stats\r")
    chat.expect(r"tokens +(\d+) after 5\r")
    n_tokens = int(chat.child.match[1])
    assert n_tokens > 15
    chat.expect(READY)
    chat.child.setwinsize(3, 1)
    chat.send("and\r")
    chat.expect(f"and\r\nw{5 + n_tokens + 4}\r\n")
    chat.child.sendintr()
    chat.expect("cancelled")
    chat.expect(READY)
    chat.child.setwinsize(24, 80)
    chat.child.sendintr()
    chat.expect("Ctrl-C once more leaves")
    chat.expect(READY)
    chat.child.sendintr()
    assert chat.exit_code() == 130


def test_ctrl_c_ends_what_looks_and_compares(terminal, tmp_path):
    """In /versus Ctrl-C is a flag, in /ppl it is an exception. The input line comes back after both."""
    (tmp_path / "stories.txt").write_text("Once.")
    chat = terminal(SCRIPTED)
    chat.expect(READY)
    chat.send("Once\r")
    chat.expect(" w9 ")
    chat.child.sendintr()
    chat.expect("cancelled ")
    chat.expect(READY)
    chat.send("/versus one two\r")
    chat.expect("│ w1[0-9] ")
    chat.child.sendintr()
    chat.expect("cancelled +│ cancelled")
    chat.expect("the tree has not changed")
    chat.expect(READY)
    chat.send(f"/ppl {tmp_path / 'stories.txt'}\r")
    chat.expect("evaluating")  # before that, an import could swallow the exception
    assert chat.child.waitnoecho()
    chat.child.sendintr()
    assert "^C" not in chat.expect("cancelled\r\n")
    chat.expect(READY)
    chat.send("/tree\r")
    chat.expect("● 1")
    chat.expect(READY)
    chat.child.sendeof()
    assert chat.exit_code() == 0


def test_keys_typed_ahead_stay_out_of_the_story_and_are_not_lost(terminal):
    chat = terminal(SCRIPTED)
    chat.expect(READY)
    chat.send("/len 60\r")
    chat.expect("at most 60")
    chat.expect(READY)
    chat.send("Once\r")
    chat.expect("Once w5 w6")
    chat.send("/len 7\r\x1b[200~two\rlines\x1b[201~")
    story = chat.expect("60 tokens")
    assert [f"w{i}" for i in range(7, 65)] == story.split()[:58]
    assert "len" not in story
    chat.expect("at most 7")
    chat.expect("two")
    chat.expect("lines")
    chat.send("\r")
    chat.expect("two\r\nlines w")
    chat.expect("7 tokens")
    chat.expect(READY)
    chat.child.sendeof()
    assert chat.exit_code() == 0


def test_termination_is_not_swallowed_and_leaves_the_terminal_as_it_was(terminal):
    chat = terminal(SCRIPTED)
    chat.expect(READY)
    chat.send("Once\r")
    chat.expect(" w9 ")
    assert not chat.child.getecho()
    chat.child.kill(signal.SIGTERM)
    chat.expect(re.escape("\x1b[?2004l"))
    assert chat.exit_code() == 143


def test_dumb_terminal_gets_no_escapes(terminal):
    chat = terminal(SCRIPTED, term="dumb")
    chat.expect("> ")
    assert chat.child.waitnoecho()
    chat.send("/len 5\r")
    chat.expect("at most 5")
    chat.expect("> ")
    assert chat.child.waitnoecho()
    chat.send("Once\r")
    chat.expect("Once w5 w6 w7 w8 w9\r\n— 5 tokens")
    chat.expect("> ")
    assert chat.child.waitnoecho()
    chat.child.sendeof()
    assert chat.exit_code() == 0
    assert "\x1b" not in chat.log
