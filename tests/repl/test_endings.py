"""The end of a chat that nobody asked for: a closed window, a signal, a terminal that is gone. And Ctrl-Z."""

import os
import random
import re
import shutil
import signal
import sys
import termios
import time

import pytest

pexpect = pytest.importorskip("pexpect")
from kill_chats import kill_one  # noqa: E402
from terminal_chat import READY, SCRIPTED  # noqa: E402

from tinystory.story.session_file import load_session  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tty,
    pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX pseudo-terminal"),
]


def kept(folder):
    """Return the text and the number of tokens of each turn in the one session of a folder."""
    [file] = folder.rglob("sessions/*.json")
    turns = load_session(file).tree.turns.values()
    return [(turn.typed, len(turn.written.tokens) if turn.written else 0) for turn in turns]


def test_a_signal_at_the_input_line_keeps_what_was_typed(terminal, tmp_path):
    chat = terminal(SCRIPTED)
    chat.expect(READY)
    chat.send("half a thought")
    chat.expect("thought")
    chat.child.kill(signal.SIGHUP)
    assert chat.exit_code() == 129
    assert "half a thought" in next(tmp_path.rglob("history")).read_text()


@pytest.mark.parametrize(
    ("writing", "ignored"), [(True, False), (True, True), (False, True)], ids=["writing", "writing-nohup", "nohup"]
)
def test_a_terminal_that_is_gone_ends_the_chat(terminal, tmp_path, ignored, writing):
    chat = terminal(("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" if ignored else "") + SCRIPTED)
    chat.expect(READY)
    chat.send("Once\r" if writing else "half a thought")
    chat.expect(" w20 " if writing else "thought")
    chat.child.ptyproc.fileobj.close()
    chat.child.closed = chat.child.ptyproc.closed = True
    assert wait_for(chat.child) == 129
    if writing:
        assert kept(tmp_path)[0][1] >= 16
    else:
        assert "half a thought" in next(tmp_path.rglob("history")).read_text()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
def test_at_a_random_moment_nothing_is_lost(tmp_path, kind, seed):
    (tmp_path / "chat.py").write_text(SCRIPTED)
    seconds = random.Random(f"{kind.name} {seed}").uniform(0, 0.15)
    assert kill_one([sys.executable, str(tmp_path / "chat.py")], kind, seconds, tmp_path) == []


def wait_for(child):
    """Return the exit code of a child whose terminal is closed."""
    end = time.monotonic() + 15
    while time.monotonic() < end:
        done, status = os.waitpid(child.pid, os.WNOHANG)
        if done:
            child.terminated = child.ptyproc.terminated = True
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    raise AssertionError("the chat goes on without a terminal")


JOB = """
import os, sys
os.environ |= {"PS1": "$ ", "ENV": ""}  # the prompt of who started the tests may be another one
os.execvp("dash", ["dash", "-i", "-m"])
"""


@pytest.mark.skipif(shutil.which("dash") is None, reason="needs dash")
@pytest.mark.parametrize("where", ["writing", "input line"])
def test_ctrl_z_gives_the_shell_its_terminal_and_fg_takes_it_again(terminal, tmp_path, where):
    (tmp_path / "chat.py").write_text(SCRIPTED)
    shell = terminal(JOB)
    shell.expect(r"[#$] ")
    before = termios.tcgetattr(shell.child.fileno())
    shell.send(f"{sys.executable} {tmp_path}/chat.py\n")
    shell.expect(READY)
    if where == "writing":
        shell.send("Once\r")
        shell.expect(" w9 ")
    shell.send("\x1a")
    shell.expect("Stopped")
    shell.expect(r"[#$] ")
    if where == "writing":
        assert termios.tcgetattr(shell.child.fileno()) == before
    assert shell.child.getecho()
    shell.send("echo a''b\n")
    shell.expect("ab\r")
    shell.send("fg\n")
    if where == "writing":
        shell.expect(r" w\d+ ")
        assert not shell.child.getecho()
        shell.send("secret")
        assert "secret" not in shell.expect(r"( w\d+){5}")
        shell.child.sendintr()
        shell.expect("cancelled")
    else:
        shell.expect(">")
        shell.send("/len 5\r")
        shell.expect("at most 5")
    shell.expect(READY)
    shell.send("\x04")
    shell.expect(r"[#$] ")
    assert termios.tcgetattr(shell.child.fileno()) == before
    shell.send("exit\n")
    shell.expect(pexpect.EOF)


def test_what_is_typed_before_the_chat_stands_is_sent(terminal):
    chat = terminal("import time; time.sleep(0.3)\n" + SCRIPTED)
    chat.send("/len 3\rOnce\r")
    chat.expect("at most 3")
    chat.expect("Once w5 w6 w7\r\n")
    chat.send("\r/len 4\r")  # on the way from the end of a turn to the next input line
    chat.expect("at most 4")
    chat.expect(READY)
    chat.send("\x04")
    assert chat.exit_code() == 0


def test_a_terminal_that_does_not_tell_its_cursor_gets_no_warning(terminal):
    chat = terminal(SCRIPTED, PROMPT_TOOLKIT_NO_CPR="", COLUMNS="20")
    chat.expect(re.escape("\x1b[6n"))
    time.sleep(2.5)
    chat.send("/len 12\r")
    assert "WARNING" not in chat.expect("at most 12 tokens in one turn")  # one line, although COLUMNS is 20
    chat.expect(READY)
    chat.send("\x04")
    assert chat.exit_code() == 0


def test_a_terminal_without_a_name_sends_lines(terminal):
    chat = terminal(SCRIPTED, term="")
    chat.expect("> ")
    chat.send("/len 5\n")
    chat.expect("at most 5")
    chat.expect("> ")
    chat.send("Once\n")
    chat.expect("Once w5 w6 w7 w8 w9\r\n— 5 tokens")
    chat.expect("> ")
    chat.child.sendintr()
    chat.expect("once more leaves")
    chat.expect("> ")
    chat.child.sendeof()
    assert chat.exit_code() == 0
    assert "\x1b" not in chat.log


@pytest.mark.skipif(shutil.which("emacs") is None, reason="needs Emacs")
def test_emacs_comint_talks_with_the_chat(tmp_path):
    import subprocess

    (tmp_path / "chat.py").write_text(SCRIPTED)
    script = f"""
    (require 'comint)
    (setq process-environment (append '("XDG_STATE_HOME={tmp_path}" "XDG_CONFIG_HOME={tmp_path}"
        "XDG_DATA_HOME={tmp_path}") process-environment))
    (with-current-buffer (make-comint "chat" "{sys.executable}" nil "{tmp_path}/chat.py")
      (let ((process (get-buffer-process (current-buffer))))
        (defun until (text)
          (let ((end (+ (float-time) 15)))
            (while (and (< (float-time) end)
                        (not (save-excursion (goto-char (point-min)) (search-forward text nil t))))
              (accept-process-output process 0.1))))
        (defun until-prompt ()
          (let ((end (+ (float-time) 15)))
            (while (and (< (float-time) end) (not (string-suffix-p "\n> " (concat "\n" (buffer-string)))))
              (accept-process-output process 0.1))))
        (dolist (step '(("/len 5" "at most 5") ("Once" "— 5 tokens") ("/quit" "finished")))
          (until-prompt) (goto-char (point-max)) (insert (car step)) (comint-send-input) (until (cadr step)))
        (princ (buffer-string))))
    """
    (tmp_path / "talk.el").write_text(script)
    done = subprocess.run(
        ["emacs", "-Q", "--batch", "-l", str(tmp_path / "talk.el")], capture_output=True, text=True, timeout=60,
        env={**os.environ, "LC_ALL": "C.UTF-8", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert "> /len 5\nat most 5 tokens in one turn\n" in done.stdout
    assert "> Once\nOnce w5 w6 w7 w8 w9\n— 5 tokens" in done.stdout
    assert "\x1b" not in done.stdout
