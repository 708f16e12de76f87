"""The chat on a pseudo-terminal: tests that need a terminal, signals or processes."""

import re
import signal
import sys

import pytest

pexpect = pytest.importorskip("pexpect")
from terminal_chat import READY, SCRIPTED  # noqa: E402

pytestmark = [pytest.mark.tty, pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX pseudo-terminal")]

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
    chat.send("/len 5\r")
    chat.expect("at most 5")
    chat.expect("> ")
    chat.send("Once\r")
    chat.expect("Once w5 w6 w7 w8 w9\r\n— 5 tokens")
    chat.expect("> ")
    chat.child.sendeof()
    assert chat.exit_code() == 0
    assert "\x1b" not in chat.log
